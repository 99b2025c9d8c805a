package pool_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/pool"
)

// newSource makes a volume with an ext4 of 8 MiB in name only: content at the
// beginning and the end. The rest is holes, if it is thin, or unwritten.
func newSource(t testing.TB, p *pool.Pool, thin bool) (pool.Volume, []byte) {
	t.Helper()
	ctx := context.Background()
	v, err := p.Create(ctx, pool.CreateOptions{Name: "source", Size: 8 * MiB, Thin: thin})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, v.Size)
	random := rand.NewChaCha8([32]byte{})
	for _, part := range [][]byte{content[:MiB+4096], content[7*MiB-512:]} {
		if _, err := random.Read(part); err != nil {
			t.Fatal(err)
		}
	}
	writeAt(t, v.Path, content[:MiB+4096], 0)
	writeAt(t, v.Path, content[7*MiB-512:], 7*MiB-512)
	if err := p.MarkUsed(ctx, v.ID, "ext4"); err != nil {
		t.Fatal(err)
	}
	v.Used, v.FSType = true, "ext4"
	return v, content
}

// TestClone clones thin and other volumes, as both, on every file system.
func TestClone(t *testing.T) {
	ctx := context.Background()
	for _, l := range append(layouts, layout{name: "tmpfs"}) {
		t.Run(l.name, func(t *testing.T) {
			var dir string
			if l.mkfs != nil {
				dir = newDisk(t, l).dir
			} else {
				dir = memoryDir(t)
			}
			p := newPool(t, dir)
			if p.CanReflink() != l.reflinks {
				t.Errorf("CanReflink: %v", !l.reflinks)
			}
			for _, thin := range []bool{false, true} {
				source, content := newSource(t, p, thin)
				for _, o := range []pool.CreateOptions{
					{Name: "same", Size: 8 * MiB},
					{Name: "larger", Size: 12 * MiB},
					{Name: "thin", Size: 8 * MiB, Thin: true},
				} {
					testClone(t, p, l, source, content, o)
				}
				_, err := p.Clone(ctx, source.ID, pool.CreateOptions{Name: "smaller", Size: 4 * MiB}, nil)
				expectError(t, "a clone smaller than its source", err, pool.ErrInvalid)
				_, err = p.Clone(ctx, source.ID, pool.CreateOptions{Name: "source", Size: 8 * MiB}, nil)
				expectError(t, "a clone of itself", err, pool.ErrInvalid)
				if err := p.Delete(ctx, source.ID); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func testClone(t *testing.T, p *pool.Pool, l layout, source pool.Volume, content []byte, o pool.CreateOptions) {
	t.Helper()
	ctx := context.Background()
	calls, last, all := 0, int64(0), int64(0)
	v, err := p.Clone(ctx, source.ID, o, func(done, total int64) {
		if done < last || done > total || all != 0 && total != all {
			t.Errorf("progress: %d of %d after %d of %d", done, total, last, all)
		}
		calls, last, all = calls+1, done, total
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != all || all == 0 || !l.reflinks && calls < 3 {
		t.Errorf("progress: %d of %d in the end, after %d calls", last, all, calls)
	}
	expect := pool.Volume{
		ID: pool.ID(o.Name, node), Path: v.Path, Name: o.Name, Size: o.Size, Thin: o.Thin,
		Used: true, FSType: "ext4", Source: source.ID, Created: v.Created,
	}
	if got, err := p.Get(v.ID); err != nil || got != expect || v != expect {
		t.Errorf("%+v, %+v, %v; expected %+v", v, got, err, expect)
	}
	again, err := p.Clone(ctx, source.ID, o, nil)
	if err != nil || again != v {
		t.Errorf("cloned again: %+v, %v", again, err)
	}
	cloned := append(bytes.Clone(content), make([]byte, o.Size-source.Size)...)
	if !bytes.Equal(readFile(t, v.Path), cloned) {
		t.Error("the content of the clone differs")
	}
	size, allocated := fileSize(t, v.Path)
	if hasHoles := allocated < size; hasHoles != o.Thin && !(l.reflinks && o.Thin) && l.name != "ext4-no-extents" {
		t.Errorf("%d bytes are allocated for %d", allocated, size)
	}

	// Each is changed without the other.
	writeAt(t, v.Path, []byte("clone"), 0)
	writeAt(t, source.Path, []byte("source"), 4096)
	copy(cloned, "clone")
	copy(content[4096:], "source")
	if !bytes.Equal(readFile(t, v.Path), cloned) || !bytes.Equal(readFile(t, source.Path), content) {
		t.Error("clone and source are not independent")
	}
	if err := p.Delete(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, source.Path), content) {
		t.Error("the source has changed with the end of the clone")
	}
}

// TestCloneOfUnused: rubbish is not cloned.
func TestCloneOfUnused(t *testing.T) {
	p := newPool(t, t.TempDir())
	source := create(t, p, "source", MiB)
	writeAt(t, source.Path, []byte("rubbish"), 0)
	v, err := p.Clone(context.Background(), source.ID, pool.CreateOptions{Name: "clone", Size: MiB}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.Used || v.Source != source.ID || !bytes.Equal(readFile(t, v.Path), make([]byte, MiB)) {
		t.Errorf("it has content: %+v", v)
	}
}

// TestCloneOutlivesSource: a clone is still found when its source is gone.
func TestCloneOutlivesSource(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir())
	source, content := newSource(t, p, false)
	o := pool.CreateOptions{Name: "clone", Size: source.Size}
	v, err := p.Clone(ctx, source.ID, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(ctx, source.ID); err != nil {
		t.Fatal(err)
	}
	if again, err := p.Clone(ctx, source.ID, o, nil); err != nil || again != v {
		t.Errorf("cloned again: %+v, %v", again, err)
	}
	if !bytes.Equal(readFile(t, v.Path), content) {
		t.Error("the content of the clone differs")
	}
	_, err = p.Clone(ctx, source.ID, pool.CreateOptions{Name: "another", Size: source.Size}, nil)
	expectError(t, "cloning a deleted volume", err, pool.ErrNotFound)
}

// cancelled is cancelled when it has been asked a number of times whether it is.
type cancelled struct {
	context.Context
	after int
}

func (c *cancelled) Err() error {
	if c.after--; c.after < 0 {
		return context.Canceled
	}
	return nil
}

// TestCancel: what is cancelled leaves nothing.
func TestCancel(t *testing.T) {
	d := newDisk(t, noExtents) // all that takes long takes long here
	p := newPool(t, d.dir)
	source, _ := newSource(t, p, false)
	before := capacity(t, p).Available

	ctx, cancel := context.WithCancel(context.Background())
	_, err := p.Clone(ctx, source.ID, pool.CreateOptions{Name: "clone", Size: source.Size}, func(done, total int64) {
		if done > total/2 {
			cancel()
		}
	})
	expectError(t, "a clone", err, context.Canceled)
	_, err = p.Create(ctx, pool.CreateOptions{Name: "new", Size: MiB})
	expectError(t, "a new volume", err, context.Canceled)
	_, err = p.Grow(ctx, source.ID, 2*source.Size)
	expectError(t, "growing", err, context.Canceled)
	_, err = p.Grow(&cancelled{Context: context.Background(), after: 4}, source.ID, 2*source.Size)
	expectError(t, "growing, half-way", err, context.Canceled)
	if v, err := p.Get(source.ID); err != nil || v.Size < source.Size || v.Size >= 2*source.Size {
		t.Errorf("growing was cancelled: %+v, %v", v, err)
	}
	if _, err = p.Grow(context.Background(), source.ID, 2*source.Size); err != nil {
		t.Error(err)
	}
	if after := capacity(t, p).Available; after < before-source.Size-MiB/4 {
		t.Errorf("%d bytes were available, and now %d", before, after)
	}
	if list, err := p.List(); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestWaiting: who waits for a volume that another is busy with can give up.
func TestWaiting(t *testing.T) {
	p := newPool(t, t.TempDir())
	source, _ := newSource(t, p, false)
	waiting, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := p.Clone(context.Background(), source.ID, pool.CreateOptions{Name: "clone", Size: source.Size},
		func(done, total int64) {
			expectError(t, "deleting the source", p.Delete(waiting, source.ID), context.Canceled)
			expectError(t, "deleting the clone", p.Delete(waiting, pool.ID("clone", node)), context.Canceled)
			// Two clones of one volume do not wait for each other.
			if done == total {
				_, err := p.Clone(context.Background(), source.ID,
					pool.CreateOptions{Name: "second", Size: source.Size, Thin: true}, nil)
				if err != nil {
					t.Error(err)
				}
			}
		})
	if err != nil {
		t.Error(err)
	}
}
