package exporttest

import (
	"bytes"
	"sync"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Kind is a kind of request to a Device.
type Kind string

// The kinds of requests.
const (
	Read        Kind = "read"
	Write       Kind = "write"
	Flush       Kind = "flush"
	Discard     Kind = "discard"
	WriteZeroes Kind = "write zeroes"
)

// poison is what blocks read as that were never written or were discarded, so
// that nobody can take them for zeros.
const poison = 0xdb

// Device is a blockdev.Device in memory for tests of exports. Its blocks read
// as poison until they are written and after they were discarded.
type Device struct {
	blockSize int

	// Hook, if not nil, is called before each request and may delay it or make
	// it fail. It must be set before the device is used.
	Hook func(kind Kind, off, length int64) error

	mu struct {
		sync.Mutex
		mem    []byte
		counts map[Kind]int
	}
}

// NewDevice makes a device of size bytes.
func NewDevice(size int64, blockSize int) *Device {
	d := &Device{blockSize: blockSize}
	d.mu.counts = make(map[Kind]int)
	d.Grow(size)
	return d
}

// Grow makes the device n bytes larger.
func (d *Device) Grow(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mem := make([]byte, int64(len(d.mu.mem))+n)
	discard(mem[copy(mem, d.mu.mem):])
	d.mu.mem = mem
}

// Count is the number of requests of a kind that were done.
func (d *Device) Count(kind Kind) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.counts[kind]
}

// request does f with the memory of the range.
func (d *Device) request(kind Kind, off, length int64, f func(mem []byte)) error {
	if d.Hook != nil {
		if err := d.Hook(kind, off, length); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := blockdev.CheckRange(off, length, int64(len(d.mu.mem)), d.blockSize); err != nil {
		return err
	}
	d.mu.counts[kind]++
	f(d.mu.mem[off : off+length])
	return nil
}

// ReadAt implements blockdev.Device.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.request(Read, off, int64(len(p)), func(mem []byte) { n = copy(p, mem) })
	return n, err
}

// WriteAt implements blockdev.Device.
func (d *Device) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.request(Write, off, int64(len(p)), func(mem []byte) { n = copy(mem, p) })
	return n, err
}

// Flush implements blockdev.Device.
func (d *Device) Flush() error { return d.request(Flush, 0, 0, func([]byte) {}) }

// Discard implements blockdev.Device.
func (d *Device) Discard(off, length int64) error {
	return d.request(Discard, off, length, discard)
}

func discard(mem []byte) {
	for len(mem) > 0 {
		mem = mem[copy(mem, poisonBlock):]
	}
}

var poisonBlock = bytes.Repeat([]byte{poison}, 64<<10)

// WriteZeroes implements blockdev.Device.
func (d *Device) WriteZeroes(off, length int64) error {
	return d.request(WriteZeroes, off, length, func(mem []byte) { clear(mem) })
}

// Size implements blockdev.Device.
func (d *Device) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.mu.mem))
}

// BlockSize implements blockdev.Device.
func (d *Device) BlockSize() int { return d.blockSize }

// Close implements blockdev.Device.
func (d *Device) Close() error { return nil }
