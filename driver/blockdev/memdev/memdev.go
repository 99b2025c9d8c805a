// Package memdev is a blockdev.Device in memory that can lose power.
//
// # What a disk may show after a power cut
//
// The device is a medium with a volatile write cache in front. It knows what a
// Flush has made durable, and what has been done since. After a cut, the medium
// has what was durable, and of everything since then any part:
//
//   - Operations are cut into pieces as long as the atomic unit of the device.
//     Of each piece of its own it is undecided whether it reached the medium:
//     operations may be lost, torn, and overtaken by later ones, within one
//     request and between requests.
//   - Of several operations on the same piece the medium shows one that reached
//     it, and of those the latest: a cache may write back an old version, then
//     drop or keep newer ones, but never lets an old one follow a newer one. So a
//     piece shows the durable version or any version written since, whatever the
//     other pieces show.
//   - A piece itself is never torn and, having been written, always readable.
//   - A zeroing is a write of zeros.
//   - A discard that was not flushed leaves the old content, zeros or garbage.
//   - A Flush is no event of its own. While it is under way any part of what
//     came before may have reached the medium, and that is what a cut in front
//     of it shows.
//
// A discard shows the same variety without a cut: some blocks keep their
// content, some become zeros, some garbage. Which, depends on their position
// only. Where nothing has ever been written there are zeros before and after.
//
// # Two ways to use it
//
// Crash cuts the power here and now. Record keeps the history of what is done, so
// that a test does its work once and then looks at the device as it would be
// after a cut at any point of it (Cut), all states or some (History.Explore).
//
// All states of one history share their pages, and a state costs time and memory
// by what was not flushed, not by the size of the device. Only pages that have
// been written take memory.
package memdev

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// cacheSize is how many bytes the volatile cache holds. When it has more, all
// of it is written back.
const cacheSize = 64 << 20

// Device is a blockdev.Device in memory. It outlives Close: what is closed is the
// use of it, and the next user may go on with it.
type Device struct {
	geometry

	mu struct {
		sync.RWMutex
		live    image    // what is read
		durable snapshot // what is on the medium for sure
		pending []Op     // what led from durable to live
		cached  int64    // bytes of data in pending
		history *History // nil: not recorded
	}
}

type geometry struct {
	size      int64
	blockSize int
	unit      int64 // atomic unit, bytes
}

// New returns a device of zeros with size bytes, a multiple of blockSize, which
// is 512, 1024, 2048 or 4096. Single blocks are written atomically.
func New(size int64, blockSize int) *Device {
	if !blockdev.ValidBlockSize(blockSize) || size < 0 || size%int64(blockSize) != 0 {
		panic(fmt.Sprintf("memdev: %d bytes in blocks of %d bytes", size, blockSize))
	}
	m := newImage(size)
	return newDevice(geometry{size, blockSize, int64(blockSize)}, m)
}

func newDevice(g geometry, m image) *Device {
	d := &Device{geometry: g}
	d.mu.live = m
	d.mu.durable = d.mu.live.freeze()
	return d
}

// SetAtomicUnit makes the device one that tears blocks: only pieces of n bytes
// are written atomically. n is a power of two from 512 to the block size. It is
// to be called before the device is used.
func (d *Device) SetAtomicUnit(n int) {
	if !blockdev.ValidBlockSize(n) || n > d.blockSize {
		panic(fmt.Sprintf("memdev: atomic unit of %d bytes with blocks of %d bytes", n, d.blockSize))
	}
	d.unit = int64(n)
}

// Size returns the size in bytes.
func (d *Device) Size() int64 { return d.size }

// BlockSize returns the unit of I/O in bytes.
func (d *Device) BlockSize() int { return d.blockSize }

// Close does nothing.
func (d *Device) Close() error { return nil }

// ReadAt reads what was last written, durable or not.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check("reading", off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.mu.live.read(p, off)
	return len(p), nil
}

// WriteAt writes p into the cache.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if err := d.do(Op{Kind: Write, Off: off, Len: int64(len(p)), Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Discard makes the content of the range undefined; see the package comment.
func (d *Device) Discard(off, length int64) error {
	return d.do(Op{Kind: Discard, Off: off, Len: length})
}

// WriteZeroes writes zeros into the cache.
func (d *Device) WriteZeroes(off, length int64) error {
	return d.do(Op{Kind: Zero, Off: off, Len: length})
}

// Flush makes everything durable.
func (d *Device) Flush() error { return d.do(Op{Kind: Flush}) }

func (d *Device) check(doing any, off, length int64) error {
	if err := blockdev.CheckRange(off, length, d.size, d.blockSize); err != nil {
		return fmt.Errorf("memory device: %v: %w", doing, err)
	}
	return nil
}

// do does o, whose data is still the caller's.
func (d *Device) do(o Op) error {
	if err := d.check(o.Kind, o.Off, o.Len); err != nil {
		return err
	}
	if o.Kind != Flush && o.Len == 0 {
		return nil
	}
	o.Data = bytes.Clone(o.Data)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch o.Kind {
	case Flush:
		d.writeBackLocked()
	case Discard:
		o.pieces(&d.mu.live, d.unit, func(off int64) {
			o.apply(&d.mu.live, off, d.unit, discarded(off))
		})
	case Write, Zero:
		o.apply(&d.mu.live, o.Off, o.Len, Done)
	}
	if o.Kind != Flush {
		d.mu.pending = append(d.mu.pending, o)
		d.mu.cached += int64(len(o.Data))
	}
	if d.mu.history != nil {
		d.mu.history.add(o, d.mu.durable)
	}
	if d.mu.cached > cacheSize {
		d.writeBackLocked()
	}
	return nil
}

func (d *Device) writeBackLocked() {
	d.mu.durable = d.mu.live.freeze()
	d.mu.pending, d.mu.cached = nil, 0
}

// discarded returns what a discard does to the piece at off.
func discarded(off int64) Fate {
	h := uint64(off/blockdev.SectorSize+1) * 0x9e3779b97f4a7c15
	return Fate((h >> 32) % 3)
}

// Crash returns the device as it may be after a power cut now. The receiver goes
// on as if nothing had happened.
func (d *Device) Crash(rng *rand.Rand) *Device {
	d.mu.RLock()
	defer d.mu.RUnlock()
	cut := Cut{geometry: d.geometry, base: d.mu.durable, ops: d.mu.pending}
	return cut.Random(rng)
}

// Clone returns a device with the same content, all of it durable.
func (d *Device) Clone() *Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newDevice(d.geometry, d.mu.live.freeze().image())
}

// Record returns a history to which everything is added that is done from now
// on, until Record is called again. It begins with what has been done since the
// last Flush, as that can still be lost.
func (d *Device) Record() *History {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &History{geometry: d.geometry}
	h.mu.ops = append(h.mu.ops, d.mu.pending...)
	h.mu.flushes = []flushed{{0, d.mu.durable}}
	d.mu.history = h
	return h
}
