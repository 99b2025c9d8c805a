package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bowline-csi/bowline/driver/pool"
)

func capacity(t testing.TB, p *pool.Pool) pool.Capacity {
	t.Helper()
	c, err := p.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxVolume < 0 || c.MaxVolume > c.Available || c.Available > c.Total || c.MaxVolume%pool.Alignment != 0 {
		t.Errorf("%+v", c)
	}
	return c
}

// TestFull makes the largest volume there can be, and then tries to make more.
func TestFull(t *testing.T) {
	ctx := context.Background()
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			d := newDisk(t, l)
			p := newPool(t, d.dir)
			small := create(t, p, "small", MiB)
			before := capacity(t, p)
			if before.Total > l.size || before.Total < l.size*3/4-64*MiB || before.MaxVolume < before.Available*9/10 {
				t.Errorf("%+v on a disk of %d bytes", before, l.size)
			}
			_, err := p.Create(ctx, pool.CreateOptions{Name: "too-large", Size: before.MaxVolume + MiB})
			expectError(t, "more than the most", err, pool.ErrFull)
			_, err = p.Grow(ctx, small.ID, small.Size+before.MaxVolume+MiB)
			expectError(t, "growing by more than the most", err, pool.ErrFull)
			if after := capacity(t, p); after.Available < before.Available-MiB/4 {
				t.Errorf("failures have changed the capacity from %+v to %+v", before, after)
			}

			large := create(t, p, "large", before.MaxVolume)
			full := capacity(t, p)
			if full.Available > 4*MiB || full.MaxVolume > 3*MiB {
				t.Errorf("full, and yet %+v", full)
			}
			_, err = p.Create(ctx, pool.CreateOptions{Name: "more", Size: 5 * MiB})
			expectError(t, "one more", err, pool.ErrFull)
			_, err = p.Clone(ctx, small.ID, pool.CreateOptions{Name: "more", Size: 5 * MiB}, nil)
			expectError(t, "a clone", err, pool.ErrFull)
			if err := p.MarkUsed(ctx, small.ID, "ext4"); err != nil {
				t.Errorf("on a full disk: %v", err)
			}
			// All of it can be written.
			content := bytes.Repeat([]byte{1}, 32*MiB)
			for off := int64(0); off < large.Size; off += 32 * MiB {
				writeAt(t, large.Path, content[:min(32*MiB, large.Size-off)], off)
			}
			if err := p.Delete(ctx, large.ID); err != nil {
				t.Fatal(err)
			}
			if after := capacity(t, p).Available; after < before.Available-MiB/2 {
				t.Errorf("%d bytes were available, and after deleting everything %d", before.Available, after)
			}
		})
	}
}

// TestFullConcurrently: of many who want space, as many get it as there is for.
func TestFullConcurrently(t *testing.T) {
	d := newDisk(t, ext4)
	p := newPool(t, d.dir)
	size := capacity(t, p).MaxVolume / 5 * 2
	var wg sync.WaitGroup
	var got atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			_, err := p.Create(context.Background(), pool.CreateOptions{Name: fmt.Sprint("pvc-", i), Size: size})
			switch {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, pool.ErrFull):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 2 {
		t.Errorf("%d volumes of 2/5 of the space", got.Load())
	}
}

// TestFullBehindOurBack: a disk that others fill leaves nothing half-made.
func TestFullBehindOurBack(t *testing.T) {
	ctx := context.Background()
	ext4 := ext4
	ext4.mkfs = append(ext4.mkfs, "-m", "0") // no reserve for root
	for _, l := range []layout{ext4, plainXFS} {
		t.Run(l.name, func(t *testing.T) {
			d := newDisk(t, l)
			p := newPool(t, filepath.Join(d.dir, "dir"))
			source, _ := newSource(t, p, false)
			fill := create(t, p, "fill", capacity(t, p).MaxVolume-2*MiB)
			// Nothing is reserved for a thin clone, and then the copy does not fit.
			content := make([]byte, source.Size)
			content[0] = 1
			for off := range source.Size / 4096 {
				content[off*4096] = 1
			}
			writeAt(t, source.Path, content, 0)
			_, err := p.Clone(ctx, source.ID, pool.CreateOptions{Name: "clone", Size: source.Size, Thin: true}, nil)
			expectError(t, "a clone that does not fit", err, pool.ErrFull)
			if err := p.Delete(ctx, fill.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPromises: what a clone has in common with its source is not available to
// others until nobody may need it.
func TestPromises(t *testing.T) {
	ctx := context.Background()
	d := newDisk(t, xfs)
	p := newPool(t, d.dir)
	const size = 32 * MiB
	v := create(t, p, "source", size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i >> 12)
	}
	writeAt(t, v.Path, content, 0)
	if err := p.MarkUsed(ctx, v.ID, "ext4"); err != nil {
		t.Fatal(err)
	}
	start := capacity(t, p).Available
	near := func(what string, expect int64) {
		t.Helper()
		if got := capacity(t, p).Available; got < expect-MiB || got > expect+MiB {
			t.Errorf("%s: %d MiB are available, expected %d", what, got/MiB, expect/MiB)
		}
	}
	clone := func(name string, thin bool) pool.Volume {
		t.Helper()
		v, err := p.Clone(ctx, v.ID, pool.CreateOptions{Name: name, Size: size, Thin: thin}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first := clone("first", false)
	near("after a clone", start-size)
	second := clone("second", false)
	near("after two", start-2*size)
	clone("thin", true)
	near("after a thin one, which keeps what the others overwrite", start-3*size)
	writeAt(t, first.Path, content[:size/2], 0)
	near("after writing half of one", start-3*size)
	// No other fits, but these can be written.
	fill := create(t, p, "fill", capacity(t, p).MaxVolume-size/2)
	for _, thin := range []bool{false, true} {
		_, err := p.Clone(ctx, v.ID, pool.CreateOptions{Name: "more", Size: size, Thin: thin}, nil)
		expectError(t, "a clone with which not all could be written", err, pool.ErrFull)
	}
	for _, v := range []pool.Volume{v, first, second} {
		writeAt(t, v.Path, content, 0)
	}
	for _, id := range []string{fill.ID, pool.ID("thin", node), first.ID} {
		if err := p.Delete(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	near("with one left", start-size)
	if err := p.Delete(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	near("without the source", start)
}
