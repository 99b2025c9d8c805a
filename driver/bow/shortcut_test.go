package bow_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// shortDevice is a device that allows all shortcuts and counts those under way.
type shortDevice struct {
	*memdev.Device
	open atomic.Int64
}

func (d *shortDevice) BeginShortcut(s *blockdev.Shortcut) bool {
	s.FD = 7
	d.open.Add(1)
	return true
}

func (d *shortDevice) EndShortcut(*blockdev.Shortcut) { d.open.Add(-1) }

// TestShortcuts checks in every state which requests may pass by the engine, and that
// what must wait for them does.
func TestShortcuts(t *testing.T) {
	const bs, blocks = 4096, 64
	dev := &shortDevice{Device: memdev.New(bs*blocks, bs)}
	e, err := bow.Open(dev, bs)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(write bool, block, n int64) *blockdev.Shortcut {
		s := &blockdev.Shortcut{Write: write, Offset: block * bs, Length: n * bs}
		if !e.BeginShortcut(s) {
			return nil
		}
		if s.FD != 7 {
			t.Errorf("descriptor %d", s.FD)
		}
		return s
	}
	may := func(what string, want, write bool, block, n int64) {
		t.Helper()
		s := begin(write, block, n)
		if (s != nil) != want {
			t.Errorf("%s: %t, want %t", what, s != nil, want)
		}
		if s != nil {
			e.EndShortcut(s)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, bs)

	may("a read beyond the end", false, false, blocks-1, 2)
	may("a write beyond the end", false, true, blocks, 1)
	if e.BeginShortcut(&blockdev.Shortcut{Offset: bs, Length: 512}) {
		t.Error("a part of a block may be read")
	}
	may("a read", true, false, 1, 3)
	may("a write to block 0 without a checkpoint", true, true, 0, 1)

	must(e.StartTrim())
	must(e.MarkFree(32*bs, 32*bs))
	may("a write while free space is looked for", true, true, 40, 2)
	must(e.MarkFree(32*bs, 32*bs))
	must(e.Checkpoint(t.Context(), bow.CheckpointOptions{}))
	free := e.Stats().Free
	may("a read", true, false, 1, 3)
	may("a read of block 0, which is elsewhere", false, false, 0, 2)
	may("a first overwrite", false, true, 3, 1)
	may("a write of what was written while free space was looked for", false, true, 40, 2)
	may("a write to a free block and one that is not", false, true, 39, 2)
	if now := e.Stats().Free; now != free {
		t.Errorf("%d bytes free, %d before anything was written", now, free)
	}
	may("a write to a free block", true, true, 50, 1)
	if now := e.Stats().Free; now != free-bs {
		t.Errorf("%d bytes free, %d before a block of them was written", now, free)
	}
	if _, err := e.WriteAt(p, 3*bs); err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{3, 50} {
		may("a second overwrite", true, true, block, 1)
		may("a second overwrite, and a first one", false, true, block, 2)
	}

	// What may become free, and be given to a copy, while it is written is locked.
	held := begin(true, 50, 1)
	if held == nil {
		t.Fatal("no second overwrite")
	}
	may("the same at the same time", false, true, 50, 1)
	may("a second overwrite of what was in use", true, true, 3, 1)
	committed := make(chan error, 1)
	go func() { committed <- e.Commit() }()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		// As soon as somebody waits to change the state, new ones are refused.
		s := &blockdev.Shortcut{Write: true, Offset: 3 * bs, Length: bs}
		if !e.BeginShortcut(s) {
			break
		}
		e.EndShortcut(s)
		if time.Since(begin) > 10*time.Second {
			t.Fatal("nobody waits for a write under way")
		}
	}
	select {
	case err := <-committed:
		t.Errorf("committed during a write: %v", err)
	default:
	}
	e.EndShortcut(held)
	must(<-committed)
	may("a write after the checkpoint", true, true, 3, 1)
	if n := dev.open.Load(); n != 0 {
		t.Errorf("%d shortcuts have not ended", n)
	}
	must(e.Check())
}
