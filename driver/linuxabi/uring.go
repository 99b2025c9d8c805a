package linuxabi

// io_uring: two rings that a process shares with the kernel, one of requests, of
// which the kernel takes what it is told of, and one of their results.

// Bits of UringParams.Flags.
const (
	UringSetupCQSize       = 1 << 3  // UringParams.CQEntries is valid
	UringSetupDisabled     = 1 << 6  // until UringRegisterEnableRings (Linux 5.10)
	UringSetupSQE128       = 1 << 10 // requests of 128 bytes
	UringSetupSingleIssuer = 1 << 12 // one thread submits (Linux 6.0)
	UringSetupNoMmap       = 1 << 14 // memory is given in UserAddr (Linux 6.5)
	UringSetupDeferTaskrun = 1 << 13 // and does the kernel's work when it waits (Linux 6.1)
)

// Bits of UringParams.Features.
const (
	UringFeatNoDrop = 1 << 1 // no result is lost for want of room
)

// UringEnterGetEvents makes io_uring_enter wait for results.
const UringEnterGetEvents = 1 << 0

// UringRegisterEnableRings is an opcode of io_uring_register.
const UringRegisterEnableRings = 12

// UringOpcode says what a request does.
type UringOpcode uint8

// Requests.
const (
	UringNop   UringOpcode = 0
	UringRead  UringOpcode = 22
	UringWrite UringOpcode = 23
	UringCmd   UringOpcode = 46
)

// UringParams is struct io_uring_params.
type UringParams struct {
	SQEntries    uint32
	CQEntries    uint32
	Flags        uint32
	SQThreadCPU  uint32
	SQThreadIdle uint32
	Features     uint32 // out
	WQFD         uint32
	_            [3]uint32
	SQ           UringSQOffsets
	CQ           UringCQOffsets
}

// UringSQOffsets are where the parts of the ring of requests are in its mapping.
type UringSQOffsets struct {
	Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, _ uint32
	UserAddr                                                    uint64
}

// UringCQOffsets are where the parts of the ring of results are in its mapping.
type UringCQOffsets struct {
	Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags, _ uint32
	UserAddr                                                    uint64
}

// UringSQE is struct io_uring_sqe, a request, in its long form (SQE128), of which
// the short one is the first 64 bytes.
type UringSQE struct {
	Opcode   UringOpcode
	Flags    uint8
	Ioprio   uint16
	FD       int32
	Off      uint64 // UringCmd: the command is the low half
	Addr     uint64
	Len      uint32
	OpFlags  uint32
	UserData uint64
	BufIndex uint16
	_        uint16
	_        uint32
	Cmd      [80]byte // UringCmd: its argument; zero otherwise
}

// UringCQE is struct io_uring_cqe, a result.
type UringCQE struct {
	UserData uint64 // of the request
	Res      int32  // what the system call would return, or a negative errno
	Flags    uint32
}
