package linuxabi

// The FUSE protocol between the kernel and the process that serves a file
// system: every message read from /dev/fuse begins with a FuseInHeader, every
// message written to it with a FuseOutHeader. Only what a server of one regular
// file with direct I/O needs is here. All numbers are in the byte order of the
// machine.

// Version of the protocol that the structures below describe. Major versions
// have to be equal, of the minor versions the lower counts.
const (
	FuseKernelVersion      = 7
	FuseKernelMinorVersion = 40
)

// FuseRootID is the node id of the root of every FUSE file system.
const FuseRootID = 1

// FuseMinReadBuffer is the least size in bytes of a buffer for reading from
// /dev/fuse.
const FuseMinReadBuffer = 8192

// FuseUniqueResend is set in FuseInHeader.Unique of a request that is sent
// again after FuseNotifyResend. The reply carries it too.
const FuseUniqueResend = 1 << 63

// FuseOpcode says what a request asks for.
type FuseOpcode uint32

// Requests.
const (
	FuseLookup      FuseOpcode = 1
	FuseForget      FuseOpcode = 2 // has no reply
	FuseGetattr     FuseOpcode = 3
	FuseOpen        FuseOpcode = 14
	FuseRead        FuseOpcode = 15
	FuseWrite       FuseOpcode = 16
	FuseStatfs      FuseOpcode = 17
	FuseRelease     FuseOpcode = 18
	FuseFsync       FuseOpcode = 20
	FuseFlush       FuseOpcode = 25
	FuseInit        FuseOpcode = 26
	FuseInterrupt   FuseOpcode = 36 // has no reply
	FuseDestroy     FuseOpcode = 38
	FuseNotifyReply FuseOpcode = 41 // has no reply
	FuseBatchForget FuseOpcode = 42 // has no reply
	FuseFallocate   FuseOpcode = 43
)

// Notifications: FuseOutHeader.Error of a message with Unique 0.
const (
	// FuseNotifyRetrieve makes the kernel send a FuseNotifyReply with what it
	// has cached of a file. The body is a FuseNotifyRetrieveOut.
	FuseNotifyRetrieve = 5

	// FuseNotifyResend makes the kernel send all requests again that were read
	// and not answered (Linux 6.9). It has no body.
	FuseNotifyResend = 7
)

// Bits of FuseInitIn.Flags and FuseInitOut.Flags.
const (
	FuseBigWrites = 1 << 5
	FuseAsyncDIO  = 1 << 15
	FuseMaxPages  = 1 << 22
	FuseInitExt   = 1 << 30 // Flags2 is valid
)

// Bits of FuseInitIn.Flags2 and FuseInitOut.Flags2.
const (
	FuseHasResend2 = 1 << (39 - 32)
	FuseOverUring2 = 1 << (41 - 32) // requests come over io_uring (Linux 6.14)
)

// Bits of FuseOpenOut.OpenFlags.
const (
	FuseOpenDirectIO             = 1 << 0
	FuseOpenNoFlush              = 1 << 5
	FuseOpenParallelDirectWrites = 1 << 6
)

// FuseInHeader begins every request.
type FuseInHeader struct {
	Len         uint32 // of the whole request in bytes
	Opcode      FuseOpcode
	Unique      uint64
	NodeID      uint64
	UID         uint32
	GID         uint32
	PID         uint32
	TotalExtLen uint16
	_           uint16
}

// FuseOutHeader begins every reply and every notification.
type FuseOutHeader struct {
	Len    uint32 // of the whole reply in bytes
	Error  int32  // 0 or a negative errno; in a notification its code
	Unique uint64 // of the request; 0 in a notification
}

// FuseInitIn is the body of FuseInit.
type FuseInitIn struct {
	Major        uint32
	Minor        uint32
	MaxReadahead uint32
	Flags        uint32
	Flags2       uint32
	_            [11]uint32
}

// FuseInitInLegacySize is the size of FuseInitIn without Flags2 and what
// follows, which kernels before 5.17 send.
const FuseInitInLegacySize = 16

// FuseInitOut answers FuseInit.
type FuseInitOut struct {
	Major               uint32
	Minor               uint32
	MaxReadahead        uint32
	Flags               uint32
	MaxBackground       uint16 // asynchronous requests at once
	CongestionThreshold uint16
	MaxWrite            uint32 // bytes
	TimeGran            uint32 // nanoseconds
	MaxPages            uint16
	MapAlignment        uint16
	Flags2              uint32
	MaxStackDepth       uint32
	RequestTimeout      uint16 // seconds
	_                   [11]uint16
}

// FuseAttr are the attributes of a file.
type FuseAttr struct {
	Ino       uint64
	Size      uint64
	Blocks    uint64 // of 512 bytes
	Atime     uint64
	Mtime     uint64
	Ctime     uint64
	AtimeNsec uint32
	MtimeNsec uint32
	CtimeNsec uint32
	Mode      uint32
	Nlink     uint32
	UID       uint32
	GID       uint32
	Rdev      uint32
	Blksize   uint32
	Flags     uint32
}

// FuseAttrOut answers FuseGetattr.
type FuseAttrOut struct {
	AttrValid     uint64 // seconds
	AttrValidNsec uint32
	_             uint32
	Attr          FuseAttr
}

// FuseEntryOut answers FuseLookup, whose body is a name that ends with a zero
// byte.
type FuseEntryOut struct {
	NodeID         uint64
	Generation     uint64
	EntryValid     uint64 // seconds
	AttrValid      uint64 // seconds
	EntryValidNsec uint32
	AttrValidNsec  uint32
	Attr           FuseAttr
}

// FuseOpenOut answers FuseOpen.
type FuseOpenOut struct {
	FH        uint64
	OpenFlags uint32
	BackingID int32
}

// FuseReadIn is the body of FuseRead. The reply is the data.
type FuseReadIn struct {
	FH        uint64
	Offset    uint64
	Size      uint32
	ReadFlags uint32
	LockOwner uint64
	Flags     uint32
	_         uint32
}

// FuseWriteIn is the body of FuseWrite; the data follow it.
type FuseWriteIn struct {
	FH         uint64
	Offset     uint64
	Size       uint32
	WriteFlags uint32
	LockOwner  uint64
	Flags      uint32
	_          uint32
}

// FuseWriteOut answers FuseWrite.
type FuseWriteOut struct {
	Size uint32
	_    uint32
}

// FuseFallocateIn is the body of FuseFallocate.
type FuseFallocateIn struct {
	FH     uint64
	Offset uint64
	Length uint64
	Mode   uint32 // FALLOC_FL_*
	_      uint32
}

// FuseStatfsOut answers FuseStatfs.
type FuseStatfsOut struct {
	Blocks  uint64 // of Frsize bytes
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	Bsize   uint32
	Namelen uint32
	Frsize  uint32
	_       [7]uint32
}

// FuseNotifyRetrieveOut is the body of FuseNotifyRetrieve.
type FuseNotifyRetrieveOut struct {
	NotifyUnique uint64 // comes back as FuseInHeader.Unique
	NodeID       uint64
	Offset       uint64
	Size         uint32
	_            uint32
}

// FUSE over io_uring: the kernel puts requests into memory that the server lends it
// in entries, a UringCmd on /dev/fuse each, and the results of those say that there
// is one. Every possible processor has a queue of entries of its own.

// Commands of UringCmd on /dev/fuse: UringSQE.Off.
const (
	// FuseUringRegister lends an entry. UringSQE.Addr is that of two iovecs,
	// Len is 2: a FuseUringHeader, and memory for what does not fit into that.
	FuseUringRegister = 1
	// FuseUringCommitAndFetch answers the request that is in an entry, and
	// lends it for the next.
	FuseUringCommitAndFetch = 2
)

// FuseUringCommand is in UringSQE.Cmd.
type FuseUringCommand struct {
	Flags    uint64
	CommitID uint64 // FuseUringCommitAndFetch: that of the request
	Queue    uint16 // number of the processor
	_        [6]uint8
}

// FuseUringHeader is what an entry has besides data.
type FuseUringHeader struct {
	InOut    [128]byte // FuseInHeader; FuseOutHeader in the reply
	Op       [128]byte // the body of the request that follows from its opcode, such as FuseReadIn
	Flags    uint64
	CommitID uint64 // what FuseUringCommand.CommitID has to be in the reply
	Payload  uint32 // bytes of data that the request, or the reply, has
	_        uint32
	_        uint64
}
