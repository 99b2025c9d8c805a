// Package mapping is what stands between a backing device and the file system on
// it: the backup-on-write engine behind an exporter that makes a block device of
// the kernel of it.
//
//	file system
//	/dev/loopN          exporter (package export/fuse)
//	bow.Engine          old content of what is overwritten is kept
//	blockdev.File       image file or block device
//
// Restore puts a backing device without a mapping back to its checkpoint.
package mapping

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"golang.org/x/sys/unix"
)

// Mapping is an attached volume. Its methods may be called at the same time,
// Close only as the last one.
type Mapping struct {
	*bow.Engine
	dev    *watched
	export *fuse.Export
	path   string
	meter  *meter
	memory *memory // nil without Handover
}

// Options say how to attach.
type Options struct {
	// Name tells this mapping from others of this machine. It is in the name
	// that the kernel shows of the exported device.
	Name string

	// BlockSize is the logical block size of the mapped device in bytes: 512,
	// 1024, 2048 or 4096, and not less than that of the backing device.
	BlockSize int

	// KeepAllocated leaves the space of an image file allocated that is
	// discarded.
	KeepAllocated bool

	// IOUring has requests brought over io_uring, see fuse.Options. There is no
	// Handover then.
	IOUring bool
}

func (o Options) open(path string) (*watched, error) {
	flags := []blockdev.Flag{blockdev.Exclusive}
	if o.KeepAllocated {
		flags = append(flags, blockdev.KeepAllocated)
	}
	f, err := blockdev.Open(path, flags...)
	return &watched{File: f}, err
}

// Attach puts a mapping on the image file or block device at path. The backing
// device is opened exclusively: it fails with blockdev.ErrInUse if it is attached
// already, with bow.ErrCheckpointOpen if it has an open checkpoint that cannot be
// carried on with, and with export.ErrUnsupported if o asks for io_uring where that
// cannot be had. If it fails, everything is as before.
func Attach(ctx context.Context, path string, o Options) (*Mapping, error) {
	dev, err := o.open(path)
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, err)
	}
	engine, err := bow.Open(dev, o.BlockSize)
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, errors.Join(err, dev.Close()))
	}
	m := &Mapping{Engine: engine, dev: dev, path: path, meter: newMeter(engine)}
	m.export, err = fuse.New(ctx, m.meter, fuse.Options{Name: o.Name, BlockSize: o.BlockSize, IOUring: o.IOUring})
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, errors.Join(err, engine.Close()))
	}
	return m, nil
}

// releasePatience is how long TakeOver waits for the backing device to be released
// by a process that is dead.
const releasePatience = 10 * time.Second

// Handover is what the process that takes a mapping over needs. The descriptors are
// duplicates.
type Handover struct {
	Export fuse.Handover
	Conn   int // descriptor of the connection of the export
	Memory int // descriptor of what the engine knows
}

// Close closes the descriptors.
func (h Handover) Close() error { return errors.Join(unix.Close(h.Conn), unix.Close(h.Memory)) }

// TakeOver continues a mapping of a process that died, whose users have not been
// told: o is what it was attached with. It fails with export.ErrNotFound if the
// export has ended. If it fails, it may be tried again; if not, it owns the
// descriptors of h.
func TakeOver(ctx context.Context, path string, o Options, h Handover) (*Mapping, error) {
	// Before the device is touched, which may be somebody else's now.
	if err := h.Export.Check(); err != nil {
		return nil, fmt.Errorf("taking over %s: %w", path, err)
	}
	dev, err := o.openReleased(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("taking over %s: %w", path, err)
	}
	// From here on nobody else does I/O: who held the device until now had it
	// open as long as any of his requests lasted.
	memory, err := openMemory(h.Memory)
	if err != nil {
		return nil, fmt.Errorf("taking over %s: %w", path, errors.Join(err, dev.Close()))
	}
	engine, err := bow.TakeOver(dev, o.BlockSize, memory.mem)
	if err != nil {
		memory.unmap()
		return nil, fmt.Errorf("taking over %s: %w", path, errors.Join(err, dev.Close()))
	}
	m := &Mapping{Engine: engine, dev: dev, path: path, meter: newMeter(engine), memory: memory}
	m.export, err = fuse.TakeOver(h.Conn, m.meter, h.Export)
	if err != nil {
		memory.unmap()
		return nil, fmt.Errorf("taking over %s: %w", path, errors.Join(err, engine.Close()))
	}
	return m, nil
}

// openReleased is open, but waits for others to release the device.
func (o Options) openReleased(ctx context.Context, path string) (*watched, error) {
	ctx, cancel := context.WithTimeout(ctx, releasePatience)
	defer cancel()
	for {
		dev, err := o.open(path)
		if !errors.Is(err, blockdev.ErrInUse) {
			return dev, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Millisecond):
		}
	}
}

// Path is the path of the backing device.
func (m *Mapping) Path() string { return m.path }

// Device is the path of the mapped block device.
func (m *Mapping) Device() string { return m.export.Path() }

// IOUring tells whether requests come over io_uring.
func (m *Mapping) IOUring() bool { return m.export.IOUring() }

// Done is closed when the mapped device is gone, whoever took it away.
func (m *Mapping) Done() <-chan struct{} { return m.export.Done() }

// Export is what the mapped device has had to do since the mapping began.
func (m *Mapping) Export() export.Stats { return m.export.Stats() }

// Latencies are those of all requests since the mapping began.
func (m *Mapping) Latencies() []Latency { return m.meter.latencies() }

// Handover returns what a successor needs for TakeOver; the caller closes it. From
// then on the engine keeps in mind what that needs to know. ok is false if the
// kernel has no way for a successor, or none over io_uring. It is to be called once, before the mapping is
// used.
func (m *Mapping) Handover() (h Handover, ok bool, err error) {
	if !m.export.CanResend() {
		return h, false, nil
	}
	if m.memory, err = newMemory(m.Size() / int64(m.BlockSize())); err != nil {
		return h, false, err
	}
	m.Remember(m.memory.mem)
	h.Export = m.export.Handover()
	if h.Memory, err = unix.FcntlInt(uintptr(m.memory.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return h, false, fmt.Errorf("duplicating the memory for a successor: %w", err)
	}
	if h.Conn, err = m.export.Duplicate(); err != nil {
		return h, false, errors.Join(err, unix.Close(h.Memory))
	}
	return h, true, nil
}

// Grow makes the mapped device as large as the backing device has become. It fails
// with bow.ErrState while a checkpoint is open.
func (m *Mapping) Grow() error {
	if err := m.dev.Refresh(); err != nil {
		return fmt.Errorf("growing the mapping of %s: %w", m.path, err)
	}
	if err := m.Engine.Grow(); err != nil {
		return fmt.Errorf("growing the mapping of %s: %w", m.path, err)
	}
	return m.export.Grow()
}

// Close takes the mapping away. It fails with export.ErrBusy, and everything goes
// on, while the mapped device is mounted or open. An open checkpoint stays on the
// backing device.
func (m *Mapping) Close(ctx context.Context) error {
	if err := m.export.Close(ctx); err != nil {
		return fmt.Errorf("detaching %s: %w", m.path, err)
	}
	err := errors.Join(m.Engine.Flush(), m.Engine.Close())
	m.memory.close()
	if err != nil {
		return fmt.Errorf("detaching %s: %w", m.path, err)
	}
	return nil
}
