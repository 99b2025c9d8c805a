// Package aio is the kernel's asynchronous I/O, io_submit(2): one thread has the
// kernel begin reads and writes, another learns how they ended.
//
// It can do less than io_uring, but every kernel has it and nobody forbids it. Each
// request holds the open file that it was submitted for: if the process dies, a lock on
// that file, or the right of having it alone, lasts until the request has ended.
package aio

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// Context is where requests are submitted and their results are found. Submit and
// Wait may be called at the same time; Close is the last call of all.
type Context struct{ id uintptr }

// New makes a Context for at most so many requests under way.
func New(requests int) (*Context, error) {
	var c Context
	_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(requests), uintptr(unsafe.Pointer(&c.id)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_setup for %d requests: %w", requests, errno)
	}
	return &c, nil
}

// Request is a read or a write of memory that stays where it is, at [Offset, Offset
// + Bytes) of a file or device, or AIOPoll.
type Request = linuxabi.AIORequest

// Event tells that a request has ended.
type Event = linuxabi.AIOEvent

// Submit begins r. r can be used again when Submit returns; what it points to, when
// its Event is there. On a file that is not open for direct I/O it lasts as long as
// the request. It fails with EAGAIN if too many are under way.
func (c *Context) Submit(r *Request) error {
	list := [1]*Request{r}
	for {
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, c.id, 1, uintptr(unsafe.Pointer(&list)))
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return fmt.Errorf("io_submit: %w", errno)
		case n != 1:
			return fmt.Errorf("io_submit: %w", unix.EAGAIN)
		default:
			return nil
		}
	}
}

// Wait waits until a request has ended, and returns the Events that there are then,
// in the memory of events.
func (c *Context) Wait(events []Event) ([]Event, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, c.id, 1, uintptr(len(events)), uintptr(unsafe.Pointer(unsafe.SliceData(events))), 0, 0)
		switch {
		case errno == unix.EINTR, errno == 0 && n == 0:
		case errno != 0:
			return nil, fmt.Errorf("io_getevents: %w", errno)
		default:
			return events[:n], nil
		}
	}
}

// Close waits for the requests that are under way. Their Events, and others that have
// not been fetched, are lost.
func (c *Context) Close() error {
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, c.id, 0, 0); errno != 0 {
		return fmt.Errorf("io_destroy: %w", errno)
	}
	return nil
}
