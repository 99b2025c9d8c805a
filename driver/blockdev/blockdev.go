// Package blockdev is the bottom of Bowline: a flat, byte-addressed store that
// is read, written, flushed and discarded in whole blocks.
//
// Everything that holds a volume's bytes is a Device: a file or a block device
// of the kernel (Open), memory that can lose power (memdev), a layer that
// injects faults (faultdev), and the backup-on-write engine itself (package
// bow), which is a Device made of another one.
//
// The rules are those of a disk with a volatile write cache:
//
//   - A write that returned is visible to every later read, but it is durable
//     only after a Flush that began after it returned.
//   - Writes that are not separated by a Flush may reach the medium in any
//     order, and any subset of them may survive a power cut. One write of
//     BlockSize bytes at most is atomic; a longer one may be torn at any
//     multiple of BlockSize.
//   - Nothing is promised about the order of requests that overlap in time.
package blockdev

import (
	"errors"
	"fmt"
)

// Device is a store of Size bytes in blocks of BlockSize bytes. All methods may
// be called from any number of goroutines at once.
//
// Offsets and lengths are bytes and multiples of BlockSize; a request that is
// not aligned fails with ErrMisaligned and one that ends after Size fails with
// ErrOutOfRange, and neither changes anything. Requests of length 0 succeed.
type Device interface {
	// ReadAt fills p from offset off. It reads all of p or returns an error;
	// the content of p is undefined after an error.
	ReadAt(p []byte, off int64) (n int, err error)

	// WriteAt writes p at offset off. After an error the content of the range
	// is undefined, block by block: old, new, or unreadable.
	WriteAt(p []byte, off int64) (n int, err error)

	// Flush makes every write, discard and zeroing that has returned durable.
	// After an error nothing may be assumed of any of them.
	Flush() error

	// Discard says that the content of the range is of no interest any more.
	// What it reads as afterwards is undefined until it is written again.
	Discard(off, length int64) error

	// WriteZeroes makes the range read as zeros, without transferring them
	// where the device can.
	WriteZeroes(off, length int64) error

	// Size is the number of usable bytes, a multiple of BlockSize.
	Size() int64

	// BlockSize is the unit of I/O and of atomicity in bytes: a power of two
	// from 512 to 4096.
	BlockSize() int

	// Close releases the device without flushing it. Nothing may be called
	// after it or at the same time.
	Close() error
}

// SectorSize is the unit of the kernel's block layer and of addresses in the
// on-disk log, in bytes, whatever the block size of a device.
const SectorSize = 512

var (
	// ErrMisaligned is returned for an offset or a length that is not a
	// multiple of the device's block size.
	ErrMisaligned = errors.New("not aligned to the block size")

	// ErrOutOfRange is returned for a request that does not lie inside the
	// device.
	ErrOutOfRange = errors.New("outside the device")
)

// Extent is a range of bytes of a device.
type Extent struct {
	Offset, Length int64
}

// CheckRange returns nil if [off, off+length) is aligned to blockSize and lies
// inside [0, size), and otherwise an error that wraps ErrMisaligned or
// ErrOutOfRange and names the range.
func CheckRange(off, length, size int64, blockSize int) error {
	mask := int64(blockSize) - 1
	switch {
	case off < 0 || length < 0 || off > size || length > size-off:
		return fmt.Errorf("range [%d, +%d) of a device of %d bytes: %w", off, length, size, ErrOutOfRange)
	case off&mask != 0 || length&mask != 0:
		return fmt.Errorf("range [%d, +%d) with blocks of %d bytes: %w", off, length, blockSize, ErrMisaligned)
	}
	return nil
}

// ValidBlockSize tells whether n is a block size that devices and logs may
// have: 512, 1024, 2048 or 4096.
func ValidBlockSize(n int) bool {
	switch n {
	case 512, 1024, 2048, 4096:
		return true
	}
	return false
}
