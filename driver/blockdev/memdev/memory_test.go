package memdev_test

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
)

// TestCacheIsBounded: who never flushes does not fill the memory.
func TestCacheIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 512 MiB")
	}
	d := memdev.New(1<<20, 4096)
	p := make([]byte, 1<<20)
	for range 512 {
		write(t, d, 0, p)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 200<<20 {
		t.Errorf("%d MiB in use", m.HeapAlloc>>20)
	}
	runtime.KeepAlive(d)
}

// TestSparse: what was never written costs nothing, whatever is done with it.
func TestSparse(t *testing.T) {
	const size = 1 << 40
	d := memdev.New(size, 4096)
	p := bytes.Repeat([]byte{1}, 4096)
	for i := range int64(64) {
		write(t, d, i*(size/64), p)
	}
	ok(t, d.Flush())
	h := d.Record()
	ok(t, d.Discard(0, size))
	ok(t, d.WriteZeroes(0, size/2))
	ok(t, d.Flush())
	got := make([]byte, 4096)
	for _, c := range []*memdev.Device{d, d.Clone(), h.Cut(2).Everything(), d.Crash(rand.New(rand.NewPCG(1, 1)))} {
		for i := range int64(32) {
			if _, err := c.ReadAt(got, i*(size/64)); err != nil || got[0] != 0 {
				t.Fatalf("%#x, %v", got[0], err)
			}
		}
	}
	n := 0
	for range h.Explore(1, 100) {
		n++
	}
	if n != 1+100+100+1 {
		t.Errorf("%d states", n)
	}
}

// BenchmarkStates is one crash state of a device of 1 MiB with some writes in
// flight, and reading it all.
func BenchmarkStates(b *testing.B) {
	d := memdev.New(1<<20, 4096)
	write(b, d, 0, bytes.Repeat([]byte{1}, 1<<20))
	ok(b, d.Flush())
	h := d.Record()
	for i := range int64(16) {
		write(b, d, i*8192, bytes.Repeat([]byte{2}, 8192))
	}
	cut := h.Cut(h.Len())
	rng := rand.New(rand.NewPCG(1, 1))
	b.Run("Random", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cut.Random(rng)
		}
	})
	b.Run("RandomAndRead", func(b *testing.B) {
		p := make([]byte, 1<<20)
		for b.Loop() {
			_, _ = cut.Random(rng).ReadAt(p, 0)
		}
	})
}

func BenchmarkDevice(b *testing.B) {
	d := memdev.New(1<<30, 4096)
	p := blockdev.Buffer(4096)
	b.Run("Write", func(b *testing.B) {
		b.ReportAllocs()
		for i := int64(0); b.Loop(); i++ {
			_, _ = d.WriteAt(p, i%1024*4096)
		}
	})
	b.Run("WriteFlush", func(b *testing.B) {
		b.ReportAllocs()
		for i := int64(0); b.Loop(); i++ {
			_, _ = d.WriteAt(p, i%1024*4096)
			_ = d.Flush()
		}
	})
	b.Run("Read", func(b *testing.B) {
		b.ReportAllocs()
		for i := int64(0); b.Loop(); i++ {
			_, _ = d.ReadAt(p, i%1024*4096)
		}
	})
}
