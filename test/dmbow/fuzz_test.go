package dmbow_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/test/dmbow"
)

const forgedBlocks = 64

// forge makes a hostile image: three bytes of ops are one copy, or scribbling,
// from and to anywhere.
func forge(noChecksums bool, ops []byte) []byte {
	image := make([]byte, forgedBlocks*512)
	for i := range image {
		image[i] = byte(i/512*31 + i%253)
	}
	f := dmbow.NewForge(image, 512, 32, 33)
	f.NoChecksums = noChecksums
	for ; len(ops) >= 3; ops = ops[3:] {
		n := 1 + int(ops[2]>>4)%4
		source, dest := 1+int(ops[0])%(forgedBlocks-n), 1+int(ops[1])%(forgedBlocks-n)
		switch ops[2] & 15 {
		case 0:
			f.TurnOver(dest)
		case 1:
			f.Live(dest)
		case 2:
			for i := range 512 * n {
				image[source*512+i] += byte(i) + 17
			}
		case 3:
			f.Mark()
		default:
			f.Copy(source, dest, n)
		}
	}
	return image
}

// FuzzAgainstTool restores forged images with both implementations: what the
// first one agrees to restore, the other one restores to the same.
func FuzzAgainstTool(f *testing.F) {
	f.Add(false, []byte{3, 39, 0x34, 3, 39, 0x32, 0, 45, 0, 40, 49, 0x14, 12, 55, 0x14, 0, 52, 1, 10, 32, 4})
	f.Add(true, []byte{4, 40, 4, 4, 40, 4, 40, 4, 4, 0, 50, 0, 4, 50, 4})
	f.Add(false, []byte{4, 40, 4, 4, 0, 2, 40, 50, 4, 40, 0, 2, 5, 40, 4, 0, 0, 3})
	f.Fuzz(func(t *testing.T, noChecksums bool, ops []byte) {
		image := forge(noChecksums, ops)
		ours := newDisk(image, 512)
		wrote := [][2]int64{{0, 512}}
		ours.before = func(off, end int64) { wrote = append(wrote, [2]int64{off, end}) }
		if _, err := restore.Restore(context.Background(), ours, restore.Options{}); err != nil {
			if !bytes.Equal(ours.now, image) {
				t.Fatalf("changed in spite of %v", err)
			}
			return
		}
		theirs := newDisk(image, 512)
		if err := (&dmbow.Tool{Dev: theirs, MaxWrites: -1}).Restore(); err != nil {
			t.Fatalf("the other tool refuses: %v", err)
		}
		for _, w := range wrote {
			if !bytes.Equal(ours.now[w[0]:w[1]], theirs.now[w[0]:w[1]]) {
				t.Fatalf("[%d, %d) differs", w[0], w[1])
			}
		}
	})
}
