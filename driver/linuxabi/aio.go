package linuxabi

// Asynchronous I/O (io_setup(2) and its kin): reads and writes are submitted with a
// system call, and what they came to is fetched with another.

// AIOOpcode says what a request does.
type AIOOpcode uint16

// Requests.
const (
	AIORead  AIOOpcode = 0
	AIOWrite AIOOpcode = 1
	AIOPoll  AIOOpcode = 5 // once, for the POLL* in Buf (Linux 4.18)
)

// AIORequest is struct iocb.
type AIORequest struct {
	Data    uint64 // comes back in the event
	Key     uint32
	Flags   uint32 // RWF_*
	Opcode  AIOOpcode
	Reqprio int16
	FD      uint32
	Buf     uint64
	Bytes   uint64
	Offset  int64
	_       uint64
	More    uint32 // IOCB_FLAG_*
	ResFD   uint32
}

// AIOEvent is struct io_event: that a request has ended.
type AIOEvent struct {
	Data    uint64
	Request uint64 // its address
	Res     int64  // bytes, or minus an errno
	Res2    int64
}
