package restore_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// BenchmarkRestore restores 256 MiB on a file, backed up in long runs or block by
// block in random order. The metric "of-copy" is its speed relative to copying
// as many bytes, sequentially and directly, on the same file.
func BenchmarkRestore(b *testing.B) {
	for _, run := range []int{256, 1} {
		b.Run(fmt.Sprintf("blocks=%d", run), func(b *testing.B) {
			const blocks = 256 << 20 / 4096
			dev := benchDevice(b, (3*blocks+4096)*4096)
			b.SetBytes(blocks * 4096)
			var ours, copying time.Duration
			for b.Loop() {
				b.StopTimer()
				openCheckpoint(b, dev, blocks, run)
				start := time.Now()
				copySequentially(b, dev, (blocks+4096)*4096, 4096*4096, blocks*4096)
				copying += time.Since(start)
				b.StartTimer()
				start = time.Now()
				if _, err := restore.Restore(ctx, dev, restore.Options{}); err != nil {
					b.Fatal(err)
				}
				ours += time.Since(start)
			}
			b.ReportMetric(copying.Seconds()/ours.Seconds(), "of-copy")
		})
	}
}

func benchDevice(b *testing.B, size int64) *blockdev.File {
	path := filepath.Join(b.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	// Written once, so that no block is allocated while time is taken.
	p := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(p)) {
		if _, err := f.WriteAt(p[:min(size-off, int64(len(p)))], off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	dev, err := blockdev.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := dev.Close(); err != nil {
			b.Error(err)
		}
	})
	return dev
}

// openCheckpoint writes a log that says that blocks from 4096 on were backed up,
// in runs of the given length and random order, one after the other from
// 4096+blocks on. Log blocks are between.
func openCheckpoint(b *testing.B, dev blockdev.Device, blocks, run int) {
	const bs = 4096
	write := func(p []byte, block int) {
		if _, err := dev.WriteAt(p, int64(block)*bs); err != nil {
			b.Fatal(err)
		}
	}
	sector := func(block int) uint64 { return uint64(block) * bs / blockdev.SectorSize }
	data := blockdev.Buffer(run * bs)
	buf := blockdev.Buffer(bs)
	next := 4096 + blocks
	log := bowlog.Block{
		BlockSize: bs,
		Sector0:   sector(1),
		Ext:       &bowlog.Extension{Opened: time.Unix(0, 0), DeviceSize: dev.Size()},
		Entries:   []bowlog.Entry{{Dest: sector(next), Size: bs}},
	}
	next++
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(blocks / run) {
		if log.Full() {
			if err := log.Marshal(buf); err != nil {
				b.Fatal(err)
			}
			write(buf, next)
			log.Sequence++
			log.Entries = append(log.Entries[:0], bowlog.Entry{Dest: sector(next), Size: bs, Checksum: bowlog.Checksum(0, buf)})
			next++
		}
		source := 4096 + i*run
		data[0], data[1] = byte(i), byte(i>>8)
		log.Entries = append(log.Entries, bowlog.Entry{
			Source:   sector(source),
			Dest:     sector(next),
			Size:     uint32(len(data)),
			Checksum: bowlog.Checksum(uint32(source), data),
		})
		write(data, next)
		next += run
	}
	if err := bowlog.Write(dev, &log); err != nil {
		b.Fatal(err)
	}
}

func copySequentially(b *testing.B, dev blockdev.Device, from, to, length int64) {
	p := blockdev.Buffer(1 << 20)
	for ; length > 0; length -= int64(len(p)) {
		if _, err := dev.ReadAt(p, from); err != nil {
			b.Fatal(err)
		}
		if _, err := dev.WriteAt(p, to); err != nil {
			b.Fatal(err)
		}
		from, to = from+int64(len(p)), to+int64(len(p))
	}
	if err := dev.Flush(); err != nil {
		b.Fatal(err)
	}
}
