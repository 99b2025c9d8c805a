package fuse

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/iomem"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// maxIO is the most data that one request carries, in bytes. Larger reads and writes
// come in several requests at once. It is agreed on with the kernel when the connection
// begins, so who takes that over must not have less; it is another process of the same
// program.
const maxIO = 256 << 10

const (
	inHeaderSize  = int(unsafe.Sizeof(linuxabi.FuseInHeader{}))
	outHeaderSize = int(unsafe.Sizeof(linuxabi.FuseOutHeader{}))
	writeInSize   = int(unsafe.Sizeof(linuxabi.FuseWriteIn{}))
)

// message is the buffer for one request and its reply.
//
// It is laid out so that data begins at a page whether the kernel writes (a
// header and a FuseWriteIn before it) or reads (a FuseOutHeader before it), so
// the device can do direct I/O on it without a copy. The headers lie at the end
// of the first page:
//
//	request   [page - 40 - 40, …)   FuseInHeader, body
//	reply     [page - 16, …)        FuseOutHeader, body
//	data      [page, page + maxIO)  of a FuseWrite, or of the reply to a FuseRead
//
// A reply overwrites its request, so a request is decoded before the reply is
// begun. The memory is always there: a thread that is being killed gets no more, and if
// the kernel has none to put a request into that it has already taken from the queue, it
// fails the request: the successor would never see it.
type message struct {
	mem    []byte
	page   int  // where the data begins
	pooled bool // mem is from messages, and not mapped for itself
}

// messages is the memory of those messages that are in use only while there is much to
// do. It is in huge pages, with which a volume that has nothing to do would have more
// memory than it needs.
var messages = iomem.NewPool(os.Getpagesize() + maxIO)

// newMessage makes a message, from the pool if pooled is set.
func newMessage(pooled bool) (*message, error) {
	m := &message{page: os.Getpagesize(), pooled: pooled}
	var err error
	if pooled {
		m.mem, err = messages.Get()
		return m, err
	}
	if m.mem, err = iomem.Map(m.page + maxIO); err != nil {
		return nil, err
	}
	if err := iomem.Hold(m.mem); err != nil {
		m.free()
		return nil, err
	}
	return m, nil
}

func (m *message) free() {
	if m.pooled {
		messages.Put(m.mem)
	} else {
		_ = iomem.Unmap(m.mem)
	}
}

// in is where a request is read into.
func (m *message) in() []byte { return m.mem[m.page-inHeaderSize-writeInSize:] }

// data is where the data is.
func (m *message) data() payload { return m.mem[m.page : m.page+maxIO] }

// out is the reply with a body of n bytes.
func (m *message) out(n int) []byte { return m.mem[m.page-outHeaderSize : m.page+n] }

// payload is memory for the data of a request, and of its reply. It begins at a
// page; its length is the most that one can have, bytes.
type payload []byte

// request is a decoded request. Which fields have a meaning depends on the
// opcode.
type request struct {
	op     linuxabi.FuseOpcode
	unique uint64
	node   uint64

	off    int64
	length int64  // of a read, write or fallocate
	mode   uint32 // of a fallocate
	name   []byte // of a lookup; where the request is
	init   linuxabi.FuseInitIn
}

// decode reads the request of n bytes that m holds into r. It returns the errno
// to answer with; r.unique is valid unless the request is shorter than its
// header, in which case there is nothing to answer and ok is false.
func (m *message) decode(n int, r *request) (errno unix.Errno, ok bool) {
	b := m.in()[:n]
	h, ok := view[linuxabi.FuseInHeader](b)
	if !ok {
		return 0, false
	}
	body := b[inHeaderSize:]
	var data []byte
	switch h.Opcode {
	case linuxabi.FuseWrite:
		split := min(len(body), writeInSize)
		body, data = body[:split], body[split:]
	case linuxabi.FuseLookup:
		body, data = nil, body
	}
	errno = r.decode(h, body, data, maxIO)
	if int64(h.Len) != int64(n) {
		errno = unix.EIO
	}
	return errno, true
}

// decode reads a request into r: its header, the structure that belongs to its
// opcode, and the data that follow it. limit is the most data that a read or a
// write may have, bytes. It returns the errno to answer with; r.unique is valid in
// any case.
//
// The kernel is trusted with its own memory, but not believed: lengths are
// checked against what arrived, and offsets against overflow. Whether a range
// lies in the device is checked by who knows the device.
func (r *request) decode(h *linuxabi.FuseInHeader, body, data []byte, limit int) unix.Errno {
	r.op, r.unique, r.node = h.Opcode, h.Unique, h.NodeID
	switch r.op {
	case linuxabi.FuseRead:
		in, ok := view[linuxabi.FuseReadIn](body)
		if !ok {
			return unix.EINVAL
		}
		return r.setRange(in.Offset, uint64(in.Size), uint64(limit))
	case linuxabi.FuseWrite:
		in, ok := view[linuxabi.FuseWriteIn](body)
		if !ok || uint64(in.Size) != uint64(len(data)) {
			return unix.EINVAL
		}
		return r.setRange(in.Offset, uint64(in.Size), uint64(limit))
	case linuxabi.FuseFallocate:
		in, ok := view[linuxabi.FuseFallocateIn](body)
		if !ok {
			return unix.EINVAL
		}
		r.mode = in.Mode
		return r.setRange(in.Offset, in.Length, 1<<63-1)
	case linuxabi.FuseLookup:
		if len(data) == 0 || data[len(data)-1] != 0 {
			return unix.EINVAL
		}
		r.name = data[:len(data)-1]
	case linuxabi.FuseInit:
		if len(body) < linuxabi.FuseInitInLegacySize {
			return unix.EINVAL
		}
		r.init = linuxabi.FuseInitIn{}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&r.init)), unsafe.Sizeof(r.init)), body)
		if len(body) < int(unsafe.Sizeof(r.init)) {
			r.init.Flags &^= linuxabi.FuseInitExt
		}
	}
	return 0
}

func (r *request) setRange(off, length, limit uint64) unix.Errno {
	if length > limit || off > 1<<63-1 || length > 1<<63-1-off {
		return unix.EINVAL
	}
	r.off, r.length = int64(off), int64(length)
	return 0
}

// view is the structure that b begins with; ok is false if b is too short. b
// must be aligned for T.
func view[T any](b []byte) (v *T, ok bool) {
	if uintptr(len(b)) < unsafe.Sizeof(*v) {
		return nil, false
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(b))), true
}

// body lays a zeroed T out as the body of the reply.
func body[T any](p payload) *T {
	b := (*T)(unsafe.Pointer(unsafe.SliceData(p)))
	*b = *new(T)
	return b
}
