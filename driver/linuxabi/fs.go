package linuxabi

// ioctl requests of a mounted file system, on any open file or directory of it.
const (
	// FSFreeze (FIFREEZE) flushes the file system and blocks all writes to it.
	FSFreeze = 0xc0045877
	// FSThaw (FITHAW) ends FSFreeze.
	FSThaw = 0xc0045878
	// FSTrim (FITRIM) discards free space. Its argument is an FSTrimRange.
	FSTrim = 0xc0185879
	// FSGetMap (FS_IOC_GETFSMAP) tells what every extent of the device is used
	// for. Its argument is an FSMapHead with records behind it.
	FSGetMap = 0xc0c0583b
)

// FSTrimRange is struct fstrim_range. All fields are bytes.
type FSTrimRange struct {
	Start  uint64
	Length uint64 // in: of the range; out: that were discarded
	MinLen uint64 // free extents shorter than this are left alone
}

// FSMap is struct fsmap: one extent of a device, or a key of a query.
type FSMap struct {
	Device   uint32 // see FSMapDeviceIsDevT
	Flags    uint32 // FSMapSpecialOwner, FSMapLast
	Physical uint64 // bytes from the beginning of the device
	Owner    uint64 // inode number, or with FSMapSpecialOwner an FSMapOwn number
	Offset   uint64 // bytes from the beginning of the file
	Length   uint64 // bytes
	Reserved [3]uint64
}

// FSMapHead is struct fsmap_head. The records of the answer follow it in memory.
type FSMapHead struct {
	InFlags  uint32
	OutFlags uint32 // FSMapDeviceIsDevT
	Count    uint32 // in: room for so many records; 0: only count them
	Entries  uint32 // out: so many were filled in
	Reserved [6]uint64
	Low      FSMap // the answer begins after this; zero: at the beginning
	High     FSMap // the answer ends here; all ones: at the end
}

const (
	// FSMapDeviceIsDevT is set in FSMapHead.OutFlags if FSMap.Device is a device
	// number in the kernel's 32-bit encoding rather than a cookie.
	FSMapDeviceIsDevT = 0x1

	// FSMapSpecialOwner is set in FSMap.Flags if Owner is not an inode number.
	FSMapSpecialOwner = 0x10
	// FSMapLast is set in FSMap.Flags of the last record of all.
	FSMapLast = 0x20

	// FSMapOwnFree is the special owner of free space.
	FSMapOwnFree = 1
)
