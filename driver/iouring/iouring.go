// Package iouring is the kernel's io_uring: requests are written into a ring that
// the kernel reads, many of them are submitted with one system call, and results
// come in another ring in the order in which they are ready.
//
// What is here is what a loop of one thread needs that submits, waits and handles
// results. It needs Linux 6.1.
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
	mem, sqes []byte // mappings

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
		Flags: linuxabi.UringSetupCQSize | linuxabi.UringSetupSQE128 |
			linuxabi.UringSetupSingleIssuer | linuxabi.UringSetupDeferTaskrun |
			// Who enables it, which may be another thread than this, is its user.
			linuxabi.UringSetupDisabled,
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(requests), uintptr(unsafe.Pointer(&p)), 0)
	switch errno {
	case 0:
	case unix.ENOSYS:
		return nil, fmt.Errorf("the kernel was built without: %w", ErrUnsupported)
	case unix.EPERM, unix.EACCES:
		return nil, fmt.Errorf("sysctl kernel.io_uring_disabled or a seccomp profile forbids it: %w", ErrUnsupported)
	case unix.EINVAL:
		return nil, fmt.Errorf("the kernel is older than Linux 6.1: %w", ErrUnsupported)
	default:
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &Ring{fd: int(fd)}
	if err := r.mmap(&p); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Ring) mmap(p *linuxabi.UringParams) (err error) {
	const features = linuxabi.UringFeatSingleMmap | linuxabi.UringFeatNoDrop
	if p.Features&features != features {
		return fmt.Errorf("features %#x: %w", p.Features, ErrUnsupported)
	}
	size := max(p.SQ.Array+4*p.SQEntries, p.CQ.CQEs+p.CQEntries*uint32(unsafe.Sizeof(linuxabi.UringCQE{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.mem, err = unix.Mmap(r.fd, linuxabi.UringOffSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("mapping the rings: %w", err)
	}
	size = p.SQEntries * uint32(unsafe.Sizeof(linuxabi.UringSQE{}))
	if r.sqes, err = unix.Mmap(r.fd, linuxabi.UringOffSQEs, int(size), prot, flags); err != nil {
		return fmt.Errorf("mapping the requests: %w", err)
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
	return errors.Join(append(errs, unix.Close(r.fd))...)
}
