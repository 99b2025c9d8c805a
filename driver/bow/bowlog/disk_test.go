package bowlog_test

import (
	"bytes"
	"errors"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

var errCut = errors.New("power cut")

// disk is a device in memory. Of the write with number cutAt only the units in
// the mask arrive; it and everything after it fail.
type disk struct {
	data  []byte
	unit  int
	cutAt int // -1 = never
	mask  int // bit i = unit i of the write

	writes int
}

func newDisk(size, unit int) *disk {
	return &disk{data: bytes.Clone(pattern[:size]), unit: unit, cutAt: -1}
}

// pattern is what a new disk holds.
var pattern = func() []byte {
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i/512*7 + i%251)
	}
	return p
}()

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size(), d.unit); err != nil {
		return 0, err
	}
	return copy(p, d.data[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size(), d.unit); err != nil {
		return 0, err
	}
	n := d.writes
	d.writes++
	switch {
	case d.cutAt < 0 || n < d.cutAt:
		return copy(d.data[off:], p), nil
	case n == d.cutAt:
		for i := 0; i < len(p); i += d.unit {
			if d.mask>>(i/d.unit)&1 == 1 {
				copy(d.data[off+int64(i):], p[i:i+d.unit])
			}
		}
	}
	return 0, errCut
}

func (d *disk) Flush() error {
	if d.cutAt >= 0 && d.writes > d.cutAt {
		return errCut
	}
	return nil
}

func (d *disk) Discard(off, length int64) error     { return errors.ErrUnsupported }
func (d *disk) WriteZeroes(off, length int64) error { return errors.ErrUnsupported }
func (d *disk) Size() int64                         { return int64(len(d.data)) }
func (d *disk) BlockSize() int                      { return d.unit }
func (d *disk) Close() error                        { return nil }
