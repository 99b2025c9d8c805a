package bowlog_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

const (
	diskSize = 256 << 10
	live     = 64 // sectors, for all block sizes
	original = 72
	shadow0  = 80
	shadow1  = 88
)

// sampleBlock is the first log block of a checkpoint on a disk of diskSize.
func sampleBlock(blockSize int) *bowlog.Block {
	return &bowlog.Block{
		BlockSize: blockSize,
		Sector0:   live,
		Ext: &bowlog.Extension{
			Shadows:    [2]uint64{shadow0, shadow1},
			Opened:     time.Unix(1, 2),
			Checkpoint: bowlog.ID{1, 2, 3},
			Generation: 1,
			DeviceSize: diskSize,
		},
		Entries: []bowlog.Entry{{Dest: original, Size: uint32(blockSize), Checksum: 1}},
	}
}

func put(t *testing.T, d *disk, b *bowlog.Block, sector int) {
	t.Helper()
	if err := b.Marshal(d.data[sector*512:][:b.BlockSize]); err != nil {
		t.Fatal(err)
	}
}

// cuts calls f with a disk for every way in which the power can fail during a
// write: before it, and with any part of it.
func cuts(t *testing.T, blockSize int, f func(d *disk) (done bool)) {
	t.Helper()
	for cut := 0; ; cut++ {
		for mask := range 1 << (blockSize / 512) {
			d := newDisk(diskSize, 512)
			d.cutAt, d.mask = cut, mask
			if f(d) {
				return
			}
		}
	}
}

// TestTakeCut: after a power cut in Take, block 0 can be put back, or the log is
// there as a whole.
func TestTakeCut(t *testing.T) {
	for _, bs := range []int{512, 1024, 4096} {
		old := newDisk(diskSize, 512).data[:bs]
		cuts(t, bs, func(d *disk) bool {
			b := sampleBlock(bs)
			put(t, d, b, shadow1)
			copy(d.data[live*512:], old)
			err := bowlog.Take(d, b)
			where := [2]int{d.cutAt, d.mask}
			d.cutAt = -1
			if _, err := bowlog.Recover(d); err != nil {
				t.Fatalf("block size %d, cut %v: %v", bs, where, err)
			}
			loaded, loadErr := bowlog.Load(d)
			switch {
			case loadErr == nil && len(loaded.Entries) == 1:
			case errors.Is(loadErr, bowlog.ErrNoLog) && err != nil && bytes.Equal(d.data[:bs], old):
			default:
				t.Fatalf("block size %d, cut %v: neither old nor new: %v", bs, where, loadErr)
			}
			return err == nil
		})
	}
}

// TestGiveBackCut: after a power cut in GiveBack, the checkpoint is there as
// before, or Recover brings the content of block 0 in its place.
func TestGiveBackCut(t *testing.T) {
	for _, bs := range []int{512, 1024, 4096} {
		for _, ext := range []bool{true, false} {
			cuts(t, bs, func(d *disk) bool {
				b := sampleBlock(bs)
				put(t, d, b, shadow1)
				if !ext {
					b.Ext = nil
				}
				put(t, d, b, 0)
				content := bytes.Clone(d.data[original*512:][:bs])
				err := bowlog.GiveBack(d, b, original)
				where := [2]int{d.cutAt, d.mask}
				d.cutAt = -1
				recovered, recErr := bowlog.Recover(d)
				if recErr != nil {
					t.Fatalf("block size %d, cut %v: %v", bs, where, recErr)
				}
				if bytes.Equal(d.data[:bs], content) {
					return err == nil
				}
				if loaded, loadErr := bowlog.Load(d); loadErr != nil || len(loaded.Entries) != 1 || recovered || err == nil {
					t.Fatalf("block size %d, cut %v: neither old nor new: %v", bs, where, loadErr)
				}
				return false
			})
		}
	}
}

// TestTornBlock writes the next generation to block 0 with every part of it
// missing.
func TestTornBlock(t *testing.T) {
	const bs = 4096
	next := sampleBlock(bs)
	next.Ext.Generation = 2
	for i := range uint64(100) {
		next.Entries = append(next.Entries, bowlog.Entry{Source: 8 + 8*i, Dest: 8 * (101 + i), Size: bs, Checksum: uint32(i)})
	}
	next.Entries = next.Entries[:50]
	for mask := range 1 << (bs / 512) {
		d := newDisk(1<<20, 512)
		first := sampleBlock(bs)
		put(t, d, first, 0)
		put(t, d, first, shadow1)
		put(t, d, next, shadow0)
		d.cutAt, d.mask = 0, mask
		if err := bowlog.Write(d, next); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		b, err := bowlog.Load(d)
		if err != nil {
			t.Fatalf("units %08b: %v", mask, err)
		}
		if n := len(b.Entries); n != 1 && n != 50 {
			t.Fatalf("units %08b: %d entries", mask, n)
		}
	}
}

func TestShadowsThatDoNotFit(t *testing.T) {
	const bs = 1024
	for _, test := range []struct {
		name   string
		change func(b *bowlog.Block)
		loads  bool
	}{
		{"of the same generation", func(b *bowlog.Block) {}, true},
		{"of the next", func(b *bowlog.Block) { b.Ext.Generation++ }, false},
		{"of the one before", func(b *bowlog.Block) { b.Ext.Generation-- }, false},
		{"too old", func(b *bowlog.Block) { b.Ext.Generation -= 2 }, false},
		{"too new", func(b *bowlog.Block) { b.Ext.Generation += 2 }, false},
		{"of another checkpoint", func(b *bowlog.Block) { b.Ext.Checkpoint[0]++ }, false},
		{"outside the device", func(b *bowlog.Block) { b.Entries[0].Dest = diskSize }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDisk(diskSize, 512)
			b := sampleBlock(bs)
			b.Ext.Generation = 10
			put(t, d, b, 0)
			d.data[int(d.data[6])+6] ^= 1 // in the entry
			test.change(b)
			put(t, d, b, shadow0)
			put(t, d, b, shadow1)
			got, err := bowlog.Load(d)
			switch {
			case test.loads && (err != nil || len(got.Entries) != 1):
				t.Fatalf("%v", err)
			case !test.loads && !errors.Is(err, bowlog.ErrTorn):
				t.Fatalf("%v, expected ErrTorn", err)
			}
		})
	}
}

func TestRecoverLeavesAlone(t *testing.T) {
	d := newDisk(diskSize, 512)
	before := bytes.Clone(d.data)
	if did, err := bowlog.Recover(d); did || err != nil || !bytes.Equal(d.data, before) {
		t.Errorf("no log: %v, %v", did, err)
	}
	b := sampleBlock(1024)
	put(t, d, b, 0)
	before = bytes.Clone(d.data)
	if did, err := bowlog.Recover(d); did || err != nil || !bytes.Equal(d.data, before) {
		t.Errorf("open: %v, %v", did, err)
	}
}
