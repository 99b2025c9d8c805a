package fuse

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// ramDevice is a Device in memory that keeps discarded blocks from looking
// harmless: they read as poison until they are written.
type ramDevice struct {
	mu        sync.Mutex
	mem       []byte
	blockSize int
	log       func(op string, off, length int64)
	noPoison  bool
}

func (d *ramDevice) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	return copy(p, d.mem[off:]), nil
}

func (d *ramDevice) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return copy(d.mem[off:], p), nil
}

func (d *ramDevice) check(op string, off, length int64) error {
	if d.log != nil {
		d.log(op, off, length)
	}
	return blockdev.CheckRange(off, length, int64(len(d.mem)), d.blockSize)
}

func (d *ramDevice) Flush() error { return d.check("flush", 0, 0) }

func (d *ramDevice) Discard(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("discard", off, length); err != nil {
		return err
	}
	if !d.noPoison {
		p := d.mem[off : off+length]
		for i := range p {
			p[i] = 0xdb
		}
	}
	return nil
}

func (d *ramDevice) WriteZeroes(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("zero", off, length); err != nil {
		return err
	}
	clear(d.mem[off : off+length])
	return nil
}

func (d *ramDevice) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.mem))
}

func (d *ramDevice) grow(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mem = append(d.mem, bytes.Repeat([]byte{0xa5}, n)...)
}

func (d *ramDevice) BlockSize() int { return d.blockSize }
func (d *ramDevice) Close() error   { return nil }

func newRAM(size int64, blockSize int) *ramDevice {
	return &ramDevice{mem: make([]byte, size), blockSize: blockSize}
}

func attachTest(t *testing.T, dev blockdev.Device, blockSize int) *Export {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	e, err := New(t.Context(), dev, Options{Name: fmt.Sprintf("test-%d-%d", os.Getpid(), rand.Uint32()), BlockSize: blockSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

func TestFirst(t *testing.T) {
	d := newRAM(64<<20, 512)
	d.log = func(op string, off, n int64) { t.Logf("%s %d+%d", op, off, n) }
	e := attachTest(t, d, 4096)
	t.Log(e.Path(), e.DiscardsAmbiguous())
	for _, f := range []string{"loop/backing_file", "loop/dio", "queue/write_zeroes_max_bytes", "queue/discard_max_bytes", "queue/discard_granularity", "queue/logical_block_size", "queue/max_sectors_kb", "queue/max_segments", "queue/max_segment_size", "queue/dma_alignment", "size"} {
		b, _ := os.ReadFile("/sys/block/" + e.Path()[5:] + "/" + f)
		t.Logf("%s %s", f, bytes.TrimSpace(b))
	}
	fd, err := unix.Open(e.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m, _ := unix.Mmap(-1, 0, 4<<20, 3, unix.MAP_PRIVATE|unix.MAP_ANON)
	t.Log(unix.Pwrite(fd, m[:2<<20], 4096))
	t.Log("ragged")
	t.Log(unix.Pwrite(fd, m[512:512+2<<20], 4096))
	t.Log(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|1, 0, 8192))
	t.Log(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|1, 0, 8192))
}
