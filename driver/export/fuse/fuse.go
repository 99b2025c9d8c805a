package fuse

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
)

// prefix begins the name of the file below a loop device of ours.
const prefix = "bowline:"

// maxName is the longest name of an export, in bytes.
const maxName = 200

// DefaultBlockSize is the logical block size of exports, in bytes, unless
// another is asked for.
const DefaultBlockSize = 4096

// Options say how a device is exported.
type Options struct {
	// Name tells exports apart (List, Detach): 1 to 200 printable characters
	// of ASCII but no blanks and slashes. Shown, behind "/bowline:", by
	// losetup and in /sys/block/loopN/loop/backing_file. That it is unique on
	// the machine is up to the caller.
	Name string

	// BlockSize is the logical block size of the block device in bytes: 512,
	// 1024, 2048 or 4096, not less than that of the exported device. 0 means
	// DefaultBlockSize.
	BlockSize int

	// IOUring has requests brought over io_uring, with fewer system calls for each.
	// The price is that nobody can take the export over (CanResend). It needs Linux
	// 6.14 and switches that on for the machine if it is off, which needs root.
	IOUring bool
}

// Export is a Device that is a block device of the kernel.
type Export struct {
	name string
	srv  *server
	loop loopDevice
}

// New exports dev, which must stay open until the export ends (Done). The block
// device is ready when New returns. New fails with export.ErrInvalid if opts do
// not fit dev, and with export.ErrUnsupported if they ask for io_uring where that
// cannot be had.
func New(ctx context.Context, dev blockdev.Device, opts Options) (*Export, error) {
	if opts.BlockSize == 0 {
		opts.BlockSize = DefaultBlockSize
	}
	if err := opts.validate(dev); err != nil {
		return nil, err
	}
	e, err := attach(ctx, dev, opts)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", opts.Name, err)
	}
	return e, nil
}

func (o Options) validate(dev blockdev.Device) error {
	switch {
	case !validName(o.Name):
		return fmt.Errorf("export name %q: must be 1 to %d printable characters of ASCII without blanks and slashes: %w", o.Name, maxName, export.ErrInvalid)
	case !blockdev.ValidBlockSize(o.BlockSize) || o.BlockSize < dev.BlockSize():
		return fmt.Errorf("export %s: block size %d for a device with blocks of %d bytes: %w", o.Name, o.BlockSize, dev.BlockSize(), export.ErrInvalid)
	case dev.Size() < int64(o.BlockSize):
		return fmt.Errorf("export %s: the device has %d bytes, which is less than a block of %d: %w", o.Name, dev.Size(), o.BlockSize, export.ErrInvalid)
	}
	return nil
}

func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' || r == '\\' }) < 0
}

func attach(ctx context.Context, dev blockdev.Device, opts Options) (e *Export, err error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	srv := newServer(fd, dev, prefix+opts.Name, opts.BlockSize)
	if opts.IOUring {
		if srv.uring, err = newUring(); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("FUSE over io_uring: %w", err)
		}
	}
	root, err := srv.mount()
	if err != nil {
		return nil, err
	}
	e = &Export{name: opts.Name, srv: srv}
	if err = srv.begun(); err == nil {
		err = aside(func() error { return e.attachLoop(ctx, root) }, root)
	}
	_ = unix.Close(root)
	if err != nil {
		<-srv.done
		return nil, err
	}
	return e, nil
}

// mount makes the file system and starts to serve it. It returns a descriptor of the
// root.
func (s *server) mount() (root int, err error) {
	root, err = mount(s.fd, s.file)
	if err == nil {
		if err = s.start(); err == nil {
			return root, nil
		}
		_ = unix.Close(root)
	}
	if s.uring != nil {
		s.uring.free()
	}
	_ = unix.Close(s.fd)
	return -1, err
}

// attachLoop puts the loop device over the file in the directory root and
// finds out what a punched hole will mean.
//
// The loop driver passes on as a punched hole both REQ_OP_DISCARD and those
// REQ_OP_WRITE_ZEROES that may deallocate, which is how ext4 zeroes what it
// wants to read as zeros. To take the second for the first would destroy data,
// for a device may leave discarded blocks as they are. Since Linux 6.10 the
// driver stops offering REQ_OP_WRITE_ZEROES for good when the file does not
// support FALLOC_FL_ZERO_RANGE; the block layer then writes pages of zeros, and
// a punched hole can only be a discard. So one zeroing is provoked and refused,
// before anybody knows of the device; the write of zeros that follows is
// acknowledged and not done.
func (e *Export) attachLoop(ctx context.Context, root int) error {
	file, err := unix.Openat(root, e.srv.file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the file: %w", err)
	}
	defer unix.Close(file)
	loop, fd, err := configure(ctx, file, e.srv.file, e.srv.blockSize)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	e.loop = loop
	err = e.probeDiscards(fd)
	if err != nil {
		_ = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
		return fmt.Errorf("%s: %w", loop.path(), err)
	}
	return nil
}

func (e *Export) probeDiscards(fd int) error {
	if err := provokeZeroing(fd, uint64(e.srv.blockSize)); err != nil {
		return fmt.Errorf("probe zeroing: %w", err)
	}
	zeroes, err := e.loop.sysfs("queue/write_zeroes_max_bytes")
	if err != nil {
		return err
	}
	if zeroes == "0" && e.srv.probed.Load() {
		e.srv.discards.Store(discardsPlain)
	} else {
		e.srv.discards.Store(discardsAmbiguous)
	}
	return nil
}

// isProbe tells whether a request is one of those that probeDiscards provokes.
func (s *server) isProbe(off, length int64) bool { return off == 0 && length == int64(s.blockSize) }

// Path is the block device, for example /dev/loop3.
func (e *Export) Path() string { return e.loop.path() }

// DiscardsAmbiguous tells whether discards cannot be told from zeroings on this
// kernel. They arrive as WriteZeroes then.
func (e *Export) DiscardsAmbiguous() bool { return e.srv.discards.Load() == discardsAmbiguous }

// IOUring tells whether requests come over io_uring.
func (e *Export) IOUring() bool { return e.srv.uring != nil }

// Stats are counts since the export began.
func (e *Export) Stats() export.Stats { return e.srv.counts.stats() }

// Done is closed when the export has ended: after Close, or because somebody
// else detached the loop device.
func (e *Export) Done() <-chan struct{} { return e.srv.done }

// Grow makes the block device as large as the Device has become.
func (e *Export) Grow() error {
	if err := aside(e.loop.setCapacity); err != nil {
		return fmt.Errorf("grow export %s: %w", e.name, err)
	}
	return nil
}

// Close ends the export. It fails with export.ErrBusy, and changes nothing, if
// the block device is mounted or held open, by another than a passing look, or
// until ctx is done. When it returns nil no goroutine works for the export any
// more, and the Device can be closed.
func (e *Export) Close(ctx context.Context) error {
	select {
	case <-e.srv.done:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := e.loop.detach(ctx, e.srv.file); err != nil {
		return fmt.Errorf("close export %s: %w", e.name, err)
	}
	select {
	case <-e.srv.done:
		return nil
	case <-ctx.Done():
		// Somebody opened the device just before it went.
		return fmt.Errorf("close export %s: it ends, but has not yet: %w", e.name, ctx.Err())
	}
}
