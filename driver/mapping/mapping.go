// Package mapping is what stands between a backing device and the file system on
// it: the backup-on-write engine behind an exporter that makes a block device of
// the kernel of it.
//
//	file system
//	/dev/loopN          exporter (package export/fuse)
//	bow.Engine          old content of what is overwritten is kept
//	blockdev.File       image file or block device
package mapping

import (
	"context"
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/export/fuse"
)

// Mapping is an attached volume. Its methods may be called at the same time,
// Close only as the last one.
type Mapping struct {
	*bow.Engine
	export *fuse.Export
	path   string
}

// Options say how to attach.
type Options struct {
	// Name tells this mapping from others of this machine. It is in the name
	// that the kernel shows of the exported device.
	Name string

	// BlockSize is the logical block size of the mapped device in bytes: 512,
	// 1024, 2048 or 4096, and not less than that of the backing device.
	BlockSize int
}

// Attach puts a mapping on the image file or block device at path. The backing
// device is opened exclusively: it fails with blockdev.ErrInUse if it is attached
// already, and with bow.ErrCheckpointOpen if it has an open checkpoint. If it
// fails, everything is as before.
func Attach(ctx context.Context, path string, o Options) (*Mapping, error) {
	dev, err := blockdev.Open(path, blockdev.Exclusive)
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, err)
	}
	engine, err := bow.Open(dev, o.BlockSize)
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, errors.Join(err, dev.Close()))
	}
	export, err := fuse.New(ctx, engine, fuse.Options{Name: o.Name, BlockSize: o.BlockSize})
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", path, errors.Join(err, engine.Close()))
	}
	return &Mapping{Engine: engine, export: export, path: path}, nil
}

// Path is the path of the backing device.
func (m *Mapping) Path() string { return m.path }

// Device is the path of the mapped block device.
func (m *Mapping) Device() string { return m.export.Path() }

// Close takes the mapping away. It fails with export.ErrBusy, and everything goes
// on, while the mapped device is mounted or open. An open checkpoint stays on the
// backing device.
func (m *Mapping) Close(ctx context.Context) error {
	if err := m.export.Close(ctx); err != nil {
		return fmt.Errorf("detaching %s: %w", m.path, err)
	}
	if err := errors.Join(m.Engine.Flush(), m.Engine.Close()); err != nil {
		return fmt.Errorf("detaching %s: %w", m.path, err)
	}
	return nil
}
