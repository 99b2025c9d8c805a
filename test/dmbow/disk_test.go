package dmbow_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

var errPowerCut = errors.New("power cut")

// disk is a device in memory with a volatile cache. It loses power before the
// write number cutAt: that one and all that follow fail.
type disk struct {
	unit  int
	cutAt int // -1 = never

	// Called before and after each write; may be nil.
	before  func(off, end int64)
	written func(image []byte)

	mu      sync.Mutex
	now     []byte  // what reads see
	durable []byte  // what was flushed
	pending []write // since then
	writes  int
}

type write struct {
	off  int64
	data []byte
}

func newDisk(image []byte, unit int) *disk {
	return &disk{unit: unit, cutAt: -1, now: bytes.Clone(image), durable: bytes.Clone(image)}
}

func (d *disk) check(off, length int64) error {
	return blockdev.CheckRange(off, length, d.Size(), d.unit)
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.now[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.before != nil {
		d.before(off, off+int64(len(p)))
	}
	// The write during which the power fails may arrive in part.
	if d.cutAt < 0 || d.writes <= d.cutAt {
		d.pending = append(d.pending, write{off, bytes.Clone(p)})
	}
	if d.cutAt >= 0 && d.writes >= d.cutAt {
		d.writes++
		return 0, errPowerCut
	}
	d.writes++
	n := copy(d.now[off:], p)
	if d.written != nil {
		d.written(d.now)
	}
	return n, nil
}

func (d *disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutAt >= 0 && d.writes > d.cutAt {
		return errPowerCut
	}
	copy(d.durable, d.now)
	d.pending = nil
	return nil
}

// afterPowerCut is what is on the disk then: of what was not flushed, each unit
// by chance.
func (d *disk) afterPowerCut(rng *rand.Rand) []byte {
	image := bytes.Clone(d.durable)
	for _, w := range d.pending {
		for i := 0; i < len(w.data); i += d.unit {
			if rng.IntN(2) == 0 {
				copy(image[w.off+int64(i):], w.data[i:i+d.unit])
			}
		}
	}
	return image
}

func (d *disk) Discard(off, length int64) error     { return errors.ErrUnsupported }
func (d *disk) WriteZeroes(off, length int64) error { return errors.ErrUnsupported }
func (d *disk) Size() int64                         { return int64(len(d.now)) }
func (d *disk) BlockSize() int                      { return d.unit }
func (d *disk) Close() error                        { return nil }
