package bow

import (
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// TestMerge: entries that continue each other become one, with the checksum that
// the bytes have together; others do not.
func TestMerge(t *testing.T) {
	const bs = 1024 // 2 sectors
	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 200*bs)
	for i := range data {
		data[i] = byte(rng.Int())
	}
	// entry says that blocks [source, source+n) were copied; their content is
	// that of data there.
	entry := func(source, dest uint64, n int) bowlog.Entry {
		return bowlog.Entry{
			Source: source * 2, Dest: dest * 2, Size: uint32(n * bs),
			Checksum: bowlog.Checksum(bowlog.Seed(source*2, bs), data[source*bs:int(source)*bs+n*bs]),
		}
	}
	for name, c := range map[string]struct {
		a, b bowlog.Entry
		want bool
	}{
		"continues":                {entry(10, 100, 3), entry(13, 103, 70), true},
		"source elsewhere":         {entry(10, 100, 3), entry(14, 103, 1), false},
		"dest elsewhere":           {entry(10, 100, 3), entry(13, 104, 1), false},
		"backwards":                {entry(10, 100, 3), entry(9, 99, 1), false},
		"moves what was copied":    {entry(10, 12, 2), entry(12, 14, 2), false},
		"copies to what has moved": {entry(14, 12, 2), entry(16, 14, 2), false},
		"without checksum":         {entry(10, 100, 1), bowlog.Entry{Source: 22, Dest: 202, Size: bs}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := &bowlog.Block{BlockSize: bs, Entries: []bowlog.Entry{{Dest: 2, Size: bs, Checksum: 1}, c.a}}
			if got := merge(b, c.b); got != c.want {
				t.Fatalf("merged: %v, want %v", got, c.want)
			}
			want := c.a
			if c.want {
				want = entry(c.a.Source/2, c.a.Dest/2, int(c.a.Size+c.b.Size)/bs)
			}
			if got := b.Entries[1]; got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	first := &bowlog.Block{BlockSize: bs, Entries: []bowlog.Entry{entry(0, 100, 1)}}
	if merge(first, entry(1, 101, 1)) {
		t.Error("merged with the entry that leads to the log block before")
	}
}
