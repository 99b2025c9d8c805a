// Package iouring is the kernel's io_uring: requests are written into a ring that
// the kernel reads, many of them are submitted with one system call, and results
// come in another ring in the order in which they are ready.
//
// What is here is what a loop of one thread needs that submits, waits and handles
// results. It needs Linux 6.10.
package iouring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// ErrUnsupported says that this process cannot have a ring: the kernel is too old
// or built without, or somebody forbids it.
var ErrUnsupported = errors.New("io_uring cannot be used")

// maxEntries is the most requests that a ring has room for.
const maxEntries = 32768

// Ring is a pair of rings. It belongs to one thread, the one that calls Enable: the
// goroutine has to keep to it (runtime.LockOSThread), and when that thread ends, so
// do the requests that it has submitted.
type Ring struct {
	fd        int
	mem, sqes []byte // mapped; the kernel holds the pages

	sqHead, sqTail *uint32 // shared with the kernel, which moves the head
	sqMask         uint32
	tail           uint32 // of the requests that are being filled in

	cqHead, cqTail *uint32 // shared with the kernel, which moves the tail
	cqMask         uint32
	cqes           []linuxabi.UringCQE
}

// New makes a ring with room for so many requests that have not been submitted, and
// so many results that have not been taken; both are rounded up to powers of two.
// More results than that are not lost, but cost time. It fails with ErrUnsupported
// where there is no io_uring for this process.
func New(requests, results int) (*Ring, error) {
	if requests < 1 || requests > maxEntries || results < requests || results > 2*maxEntries {
		return nil, fmt.Errorf("io_uring for %d requests and %d results: not possible", requests, results)
	}
	p := linuxabi.UringParams{
		CQEntries: uint32(results),
		// Who enables it, which may be another thread than this, is its user. Its
		// memory is ours: what the kernel maps would hold the ring as long as any
		// thread of the process lives, which may be one that waits for an answer that
		// never comes unless the ring goes.
		Flags: linuxabi.UringSetupCQSize | linuxabi.UringSetupDisabled | linuxabi.UringSetupSQE128 |
			linuxabi.UringSetupSingleIssuer | linuxabi.UringSetupDeferTaskrun | linuxabi.UringSetupNoMmap,
	}
	r := &Ring{fd: -1}
	if err := r.memory(&p, requests, results); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(requests), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errors.Join(setupError(errno), r.Close())
	}
	r.fd = int(fd)
	if err := r.find(&p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func setupError(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return fmt.Errorf("the kernel was built without: %w", ErrUnsupported)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("sysctl kernel.io_uring_disabled or a seccomp profile forbids it: %w", ErrUnsupported)
	case unix.EINVAL:
		return fmt.Errorf("the kernel is older than Linux 6.10: %w", ErrUnsupported)
	}
	return fmt.Errorf("io_uring_setup: %w", errno)
}

// memory gives p the memory of the rings: for results with the positions in both, and
// for requests.
func (r *Ring) memory(p *linuxabi.UringParams, requests, results int) (err error) {
	const head = 4096 // more than the kernel needs for what is not an entry
	const sqe, cqe = int(unsafe.Sizeof(linuxabi.UringSQE{})), int(unsafe.Sizeof(linuxabi.UringCQE{}))
	for _, m := range []struct {
		mem  *[]byte
		addr *uint64
		size int
	}{
		{&r.mem, &p.CQ.UserAddr, head + 2*results*cqe + 2*requests*4}, // twice: they are rounded up
		{&r.sqes, &p.SQ.UserAddr, 2 * requests * sqe},
	} {
		*m.mem, err = unix.Mmap(-1, 0, m.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return fmt.Errorf("memory of %d bytes: %w", m.size, err)
		}
		*m.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(*m.mem))))
	}
	return nil
}

// find finds the parts of the rings in their memory.
func (r *Ring) find(p *linuxabi.UringParams) error {
	if p.Features&linuxabi.UringFeatNoDrop == 0 {
		return fmt.Errorf("features %#x: %w", p.Features, ErrUnsupported)
	}
	word := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[offset])) }
	r.sqHead, r.sqTail, r.sqMask = word(p.SQ.Head), word(p.SQ.Tail), *word(p.SQ.RingMask)
	r.cqHead, r.cqTail, r.cqMask = word(p.CQ.Head), word(p.CQ.Tail), *word(p.CQ.RingMask)
	r.cqes = unsafe.Slice((*linuxabi.UringCQE)(unsafe.Pointer(&r.mem[p.CQ.CQEs])), p.CQEntries)
	// Requests are in the order of their places, now and for ever.
	for i, array := uint32(0), unsafe.Slice(word(p.SQ.Array), p.SQEntries); i < p.SQEntries; i++ {
		array[i] = i
	}
	return nil
}

// Enable makes the calling thread the one that uses the ring. It comes before all
// that follows.
func (r *Ring) Enable() error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), linuxabi.UringRegisterEnableRings, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("enabling an io_uring: %w", errno)
	}
	return nil
}

// Next returns a zeroed request to be filled in, which is part of the next Submit.
// If there is no room, it submits first. What a request points to must be memory
// that stays where it is until the result is there.
func (r *Ring) Next() (*linuxabi.UringSQE, error) {
	for r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		if err := r.enter(0); err != nil {
			return nil, err
		}
	}
	const size = uint32(unsafe.Sizeof(linuxabi.UringSQE{}))
	e := (*linuxabi.UringSQE)(unsafe.Pointer(&r.sqes[(r.tail&r.sqMask)*size]))
	*e = linuxabi.UringSQE{}
	r.tail++
	return e, nil
}

// Submit submits what there is to submit. Results of what failed at once are there
// then.
func (r *Ring) Submit() error { return r.enter(0) }

// Wait submits what there is to submit and returns when there is a result, or some
// signal.
func (r *Ring) Wait() error { return r.enter(1) }

func (r *Ring) enter(wait uintptr) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	submit := r.tail - atomic.LoadUint32(r.sqHead)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), wait, linuxabi.UringEnterGetEvents, 0, 0)
	switch errno {
	case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY:
		// EAGAIN, EBUSY: short of memory, or too many results not taken.
	default:
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	return nil
}

// Pending is how many requests the kernel has not taken yet.
func (r *Ring) Pending() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// Result takes the next result; ok is false if there is none.
func (r *Ring) Result() (result linuxabi.UringCQE, ok bool) {
	head := *r.cqHead // nobody else changes it
	if head == atomic.LoadUint32(r.cqTail) {
		return result, false
	}
	result = r.cqes[head&r.cqMask]
	atomic.StoreUint32(r.cqHead, head+1)
	return result, true
}

// Close ends all requests that are under way, sooner or later, and gives the ring
// back. Nothing may use it at the same time.
func (r *Ring) Close() error {
	var errs []error
	for _, mem := range [][]byte{r.mem, r.sqes} {
		if mem != nil {
			errs = append(errs, unix.Munmap(mem))
		}
	}
	if r.fd >= 0 {
		errs = append(errs, unix.Close(r.fd))
	}
	return errors.Join(errs...)
}
