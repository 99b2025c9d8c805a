package bow_test

import (
	"errors"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// TestTakeOverGrown takes over on a device that became larger before the predecessor
// died, without its knowing. Users of the device must not lose it for that.
func TestTakeOverGrown(t *testing.T) {
	const blocks = 64
	f := newFixture(t, 512, blocks, 16)
	mem := make([]byte, bow.MemorySize(4*blocks))
	f.engine.Remember(mem)
	f.checkpoint()
	f.must(f.write(3, 99))
	f.must(f.write(20, 98))

	grown := memdev.New(2*blocks*512, 512)
	content := make([]byte, blocks*512)
	_, err := f.mem.ReadAt(content, 0)
	f.must(err)
	_, err = grown.WriteAt(content, 0)
	f.must(err)
	if _, err := bow.Open(grown.Clone(), 512); !errors.Is(err, bow.ErrCheckpointOpen) {
		t.Errorf("opened: %v", err)
	}

	e, err := bow.TakeOver(grown, 512, mem)
	f.must(err)
	if s := e.Stats(); s.State != bow.Checkpoint || s.Size != blocks*512 || s.Stale != 0 {
		t.Errorf("taken over: %+v", s)
	}
	f.must(e.Check())
	f.want(e, 3, 99)
	f.want(e, 20, 98)
	for i := range int64(blocks) {
		if _, err := e.WriteAt(f.block(97), i*512); err != nil && !errors.Is(err, bow.ErrNoSpace) {
			t.Fatal(err)
		}
	}
	f.must(e.Check())
	old := *f
	old.mem = grown
	old.wantRollback(16)

	f.must(e.Commit())
	f.must(e.Grow())
	if got := e.Size(); got != 2*blocks*512 {
		t.Errorf("grown to %d bytes", got)
	}
	f.must(e.Check())
}
