package linuxabi

// FSExtentMap (FS_IOC_FIEMAP) tells where the extents of a file are. Its argument
// is an ExtentMap with records behind it.
const FSExtentMap = 0xc020660b

// ExtentMap is struct fiemap. All offsets and lengths are bytes. The records of
// the answer, FileExtents, follow it in memory.
type ExtentMap struct {
	Start    uint64 // in: of the range in the file
	Length   uint64 // in: of the range
	Flags    uint32
	Mapped   uint32 // out: so many records were filled in
	Count    uint32 // in: room for so many records
	Reserved uint32
}

// FileExtent is struct fiemap_extent.
type FileExtent struct {
	Logical    uint64 // bytes from the beginning of the file
	Physical   uint64 // bytes from the beginning of the device
	Length     uint64 // bytes
	Reserved64 [2]uint64
	Flags      uint32 // ExtentLast, ExtentShared
	Reserved   [3]uint32
}

const (
	// ExtentLast is set in FileExtent.Flags of the last extent of the file.
	ExtentLast = 0x1
	// ExtentShared is set if other files have the same extent.
	ExtentShared = 0x2000
)
