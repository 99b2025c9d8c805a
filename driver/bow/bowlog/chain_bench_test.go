package bowlog_test

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// sparse is a device of any size whose log blocks alone are in memory.
type sparse struct {
	disk
	size int64
	logs map[int64][]byte
}

func (s *sparse) Size() int64 { return s.size }

func (s *sparse) ReadAt(p []byte, off int64) (int, error) { return copy(p, s.logs[off]), nil }

// BenchmarkWalk reads a log of a million entries, one block each, in random
// order, of a device of 1 TiB. The metric is what stays in memory for each.
func BenchmarkWalk(b *testing.B) {
	const (
		bs      = 4096
		blocks  = 1 << 40 / bs
		entries = 1 << 20
	)
	dev := &sparse{size: blocks * bs, logs: map[int64][]byte{}}
	sector := func(block int) uint64 { return uint64(block) * bs / blockdev.SectorSize }
	rng := rand.New(rand.NewPCG(1, 1))
	next := blocks / 2
	take := func() uint64 { next++; return sector(next) }
	log := &bowlog.Block{BlockSize: bs, Sector0: take(), Entries: []bowlog.Entry{{Dest: take(), Size: bs}}}
	for range entries {
		if len(log.Entries) == 169 {
			buf := make([]byte, bs)
			if err := log.Marshal(buf); err != nil {
				b.Fatal(err)
			}
			at := take()
			dev.logs[int64(at)*blockdev.SectorSize] = buf
			log.Sequence++
			log.Entries = append(log.Entries[:0], bowlog.Entry{Dest: at, Size: bs, Checksum: bowlog.Checksum(0, buf)})
		}
		log.Entries = append(log.Entries, bowlog.Entry{Source: sector(1 + rng.IntN(blocks/2-1)), Dest: take(), Size: bs})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var chain *bowlog.Chain
	for b.Loop() {
		var err error
		if chain, err = bowlog.Walk(dev, log, func(bowlog.Step) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/entries, "B/entry")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/entries, "ns/entry")
	runtime.KeepAlive(chain)
}
