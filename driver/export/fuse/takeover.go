package fuse

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// Handover is what a successor must know of an export besides its device and its
// descriptor.
type Handover struct {
	Name              string
	Loop              int // number of the loop device
	BlockSize         int // bytes
	DiscardsAmbiguous bool
}

// Handover is what a successor must know. It does not change as long as the export
// lasts.
func (e *Export) Handover() Handover {
	return Handover{
		Name:              e.name,
		Loop:              int(e.loop),
		BlockSize:         e.srv.blockSize,
		DiscardsAmbiguous: e.DiscardsAmbiguous(),
	}
}

// Check fails with export.ErrNotFound if the export has ended.
func (h Handover) Check() error {
	loop, file := loopDevice(h.Loop), prefix+h.Name
	switch now, err := loop.sysfs("loop/backing_file"); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), err == nil && now != "/"+file:
		return fmt.Errorf("export %s is not at %s any more: %w", h.Name, loop.path(), export.ErrNotFound)
	case err != nil:
		return fmt.Errorf("looking for export %s: %w", h.Name, err)
	}
	return nil
}

// CanResend tells whether the kernel (Linux 6.9 and later) can send requests again,
// so that a successor can take the export over. Over io_uring it cannot.
func (e *Export) CanResend() bool { return e.srv.resends.Load() }

// Duplicate returns a new descriptor of the connection to the kernel, for who keeps
// it until TakeOver; the caller closes it. As long as it is open, requests wait
// when this process dies. It fails with export.ErrNotFound if the export has ended.
func (e *Export) Duplicate() (int, error) {
	t := &e.srv.trimmer
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return -1, fmt.Errorf("export %s has ended: %w", e.name, export.ErrNotFound)
	}
	fd, err := unix.FcntlInt(uintptr(e.srv.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating the connection of export %s: %w", e.name, err)
	}
	return fd, nil
}

// TakeOver continues the export h of a process that is gone, with all its threads
// that did I/O on the same device. fd is a duplicate of its descriptor and belongs
// to the export, unless TakeOver fails. dev must be as far as that of the
// predecessor was: what that had done is done.
//
// It fails with export.ErrNotFound if the export has ended in the meantime; all
// that is left to do then is to close fd.
func TakeOver(fd int, dev blockdev.Device, h Handover) (*Export, error) {
	o := Options{Name: h.Name, BlockSize: h.BlockSize}
	if err := o.validate(dev); err != nil {
		return nil, err
	}
	if err := h.Check(); err != nil {
		return nil, err
	}
	e := &Export{name: h.Name, loop: loopDevice(h.Loop), srv: newServer(fd, dev, prefix+h.Name, h.BlockSize)}
	e.srv.resends.Store(true)
	e.srv.discards.Store(discardsPlain)
	if h.DiscardsAmbiguous {
		e.srv.discards.Store(discardsAmbiguous)
	}
	// What was taken and not answered comes before what is new. Nobody answers
	// yet, so nothing is sent again that this server has taken.
	switch err := resend(fd); {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTCONN):
		return nil, fmt.Errorf("export %s has ended: %w", h.Name, export.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("taking over export %s: having its requests sent again: %w", h.Name, err)
	}
	if err := e.srv.start(); err != nil {
		return nil, fmt.Errorf("taking over export %s: %w", h.Name, err)
	}
	return e, nil
}

// resend makes the kernel send all requests again that were read from fd and not
// answered.
func resend(fd int) error {
	m := linuxabi.FuseOutHeader{Error: linuxabi.FuseNotifyResend}
	m.Len = uint32(unsafe.Sizeof(m))
	for {
		_, err := unix.Write(fd, unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)))
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}
