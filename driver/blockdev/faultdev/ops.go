package faultdev

import (
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Requests that the inner device would refuse are refused before they meet any
// rule: only what could have been done fails for another reason.

// ReadAt reads from the inner device.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	return d.transfer(Read, p, off, d.inner.ReadAt)
}

// WriteAt writes to the inner device.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	return d.transfer(Write, p, off, d.inner.WriteAt)
}

func (d *Device) transfer(kind Kind, p []byte, off int64, do func([]byte, int64) (int, error)) (int, error) {
	length := int64(len(p))
	if err := d.check(kind, off, length); err != nil {
		return 0, err
	}
	reach, fault := d.meet(kind, off, length)
	n, err := do(p[:reach], off)
	return n, errors.Join(err, wrap(kind, off, length, fault))
}

// Discard discards on the inner device.
func (d *Device) Discard(off, length int64) error {
	return d.change(Discard, off, length, d.inner.Discard)
}

// WriteZeroes zeroes on the inner device.
func (d *Device) WriteZeroes(off, length int64) error {
	return d.change(Zero, off, length, d.inner.WriteZeroes)
}

func (d *Device) change(kind Kind, off, length int64, do func(off, length int64) error) error {
	if err := d.check(kind, off, length); err != nil {
		return err
	}
	reach, fault := d.meet(kind, off, length)
	return errors.Join(do(off, reach), wrap(kind, off, length, fault))
}

// Flush flushes the inner device.
func (d *Device) Flush() error {
	_, fault := d.meet(Flush, 0, 0)
	if fault != nil {
		return wrap(Flush, 0, 0, fault)
	}
	return d.inner.Flush()
}

// Size returns the size of the inner device in bytes.
func (d *Device) Size() int64 { return d.inner.Size() }

// BlockSize returns the block size of the inner device in bytes.
func (d *Device) BlockSize() int { return d.inner.BlockSize() }

// Close closes the inner device.
func (d *Device) Close() error { return d.inner.Close() }

func (d *Device) check(kind Kind, off, length int64) error {
	if err := blockdev.CheckRange(off, length, d.Size(), d.BlockSize()); err != nil {
		return fmt.Errorf("%v: %w", kind, err)
	}
	return nil
}

var names = [kinds]string{Read: "reading", Write: "writing", Discard: "discarding", Zero: "zeroing", Flush: "flushing"}

func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func wrap(kind Kind, off, length int64, fault error) error {
	if fault == nil {
		return nil
	}
	return fmt.Errorf("injected fault: %v %d bytes at offset %d: %w", kind, length, off, fault)
}
