package bow_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

const fuzzBlocks = 96 // of 512 bytes

// fuzzImages are devices with an open checkpoint: one just opened, one with some
// copies, one with a full log block, moves, and a log that was carried on with.
var fuzzImages = sync.OnceValue(func() [][]byte {
	var images [][]byte
	dev := memdev.New(fuzzBlocks*512, 512)
	keep := func() {
		p := make([]byte, dev.Size())
		if _, err := dev.ReadAt(p, 0); err != nil {
			panic(err)
		}
		images = append(images, p)
	}
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	e, err := bow.Open(dev, 512)
	must(err)
	write := func(blocks ...int64) {
		for _, b := range blocks {
			p := blockdev.Buffer(512)
			copy(p, bytes.Repeat([]byte{byte(b)}, 512))
			_, err := e.WriteAt(p, b*512)
			must(err)
		}
	}
	must(e.StartTrim())
	must(e.MarkFree(50*512, 46*512))
	id, err := bowlog.ParseID("0b5e4f8a-9e2d-4c43-b3b6-5f1d3a6c7e01")
	must(err)
	must(e.Checkpoint(context.Background(), bow.CheckpointOptions{ID: id}))
	keep()
	write(3, 9, 10, 11, 20)
	keep()
	write(1, 5, 7, 0, 13, 15, 17, 19, 30, 32, 34, 36, 38, 40, 42, 44, 50, 51, 52, 56, 60)
	keep()
	e, err = bow.Open(dev, 512)
	must(err)
	write(46, 48, 80)
	keep()
	return images
})

// mutateLog changes the log block b as ops say, three bytes each: what, and how.
func mutateLog(b *bowlog.Block, ops []byte) {
	for ; len(ops) >= 3; ops = ops[3:] {
		n := uint64(ops[1])
		entry := &b.Entries[int(ops[2])%len(b.Entries)]
		switch ops[0] % 16 {
		case 0:
			b.Sector0 = n
		case 1:
			b.Ext.Shadows[ops[2]%2] = n
		case 2:
			b.Ext.Generation += n - 128
		case 3:
			b.Ext.FreeMap = n
		case 4:
			b.Ext.Reserve[ops[2]%4].Start = n
		case 5:
			b.Ext.Reserve[ops[2]%4].Sectors = n
		case 6:
			b.Ext.DeviceSize = int64(n) * 512
		case 7:
			b.Ext.Unproven = !b.Ext.Unproven
		case 8:
			b.Ext.RollbackRequested = !b.Ext.RollbackRequested
		case 9:
			b.Sequence = uint32(n)
		case 10:
			entry.Source = n
		case 11:
			entry.Dest = n
		case 12:
			entry.Size = uint32(n) * 512
		case 13:
			entry.Checksum = uint32(n)
		case 14:
			if !b.Full() {
				b.Entries = append(b.Entries, bowlog.Entry{Source: n, Dest: uint64(ops[2]), Size: 512, Checksum: 1})
			}
		case 15:
			b.Ext.Phase = bowlog.Phase(n % 3)
		}
	}
}

// FuzzResume carries on with a checkpoint whose log somebody made who knows the format
// and its checksums. What is not a log is refused; with what is one, nothing that is
// done then may panic or hang, or read and write anywhere else than on the device.
func FuzzResume(f *testing.F) {
	for i := range byte(4) {
		f.Add(i, []byte{}, []byte{}, []byte{1, 5, 50, 70})
		f.Add(i, []byte{7, 0, 0}, []byte{0, 64, 0, 1}, []byte{0, 60, 61})
		f.Add(i, []byte{4, 10, 0, 5, 9, 0}, []byte{}, []byte{10, 11, 12})
	}
	f.Fuzz(func(t *testing.T, which byte, ops, patches, writes []byte) {
		images := fuzzImages()
		image := bytes.Clone(images[int(which)%len(images)])
		b, err := bowlog.Unmarshal(image)
		if err != nil {
			t.Fatal(err)
		}
		shadow := b.Ext.Shadows[b.Ext.Generation%2]
		mutateLog(b, ops)
		if b.Marshal(image[:512]) != nil {
			return
		}
		if which >= 128 { // its shadow as well
			copy(image[shadow*512:][:512], image[:512])
		}
		for ; len(patches) >= 4; patches = patches[4:] {
			at := int(binary.LittleEndian.Uint16(patches)) % len(image)
			image[at] ^= patches[3]
		}
		dev := memdev.New(int64(len(image)), 512)
		if _, err := dev.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		if e, err := bow.Open(dev.Clone(), 512); err == nil {
			p := blockdev.Buffer(512)
			for _, w := range writes[:min(len(writes), 64)] {
				switch block := int64(w) % fuzzBlocks; {
				case w >= 192:
					_ = e.Discard(block*512, 512)
				default:
					_, _ = e.WriteAt(p, block*512)
				}
			}
			_ = e.MarkFree(50*512, 46*512)
			_ = e.Flush()
			if err := e.Commit(); err != nil && !errors.Is(err, bow.ErrState) {
				t.Fatalf("commit: %v", err)
			}
		}
		_, _ = restore.Restore(t.Context(), dev, restore.Options{})
	})
}
