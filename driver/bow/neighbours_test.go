package bow_test

import (
	"errors"
	"testing"
)

// TestNeighbours: with a block the 64 KiB around it are backed up, and more if enough of
// that has a backup; what is written there later costs no more than the write.
func TestNeighbours(t *testing.T) {
	const bs, inUse = 4096, 512 // 16 blocks are a neighbourhood
	f := newFixture(t, bs, 2048, inUse)
	f.engine.BackUpNeighbours()
	f.checkpoint()
	f.tap.reset()
	backedUp := func(block int64, content byte, want int64) {
		t.Helper()
		f.must(f.write(block, content))
		if got := f.engine.Stats().BackedUp / bs; got != want {
			t.Fatalf("%d blocks are backed up after a write to block %d, want %d", got, block, want)
		}
	}
	backedUp(40, 'a', 16)
	f.tap.reset()
	for b := int64(32); b < 48; b++ {
		backedUp(b, 'c', 16)
	}
	if n := f.tap.reset(); n['r'] != 0 || n['f'] != 0 || n['w'] != 16 {
		t.Errorf("writes to what is backed up: %v", n)
	}
	backedUp(300, 'd', 32)   // elsewhere
	backedUp(5, 'd', 16+255) // 1 MiB, without block 0: a sixteenth had a backup
	f.tap.reset()
	backedUp(250, 'd', 16+255)
	if n := f.tap.reset(); n['r'] != 0 {
		t.Errorf("copied again: %v", n)
	}
	f.wantRollback(inUse)
}

// TestNeighbourCannotBeRead: a write does not fail because of a block that it does
// not write.
func TestNeighbourCannotBeRead(t *testing.T) {
	const bs, inUse = 4096, 512
	f := newFixture(t, bs, 2048, inUse)
	f.engine.BackUpNeighbours()
	f.checkpoint()
	f.tap.intercept(func(o op) error {
		if o.kind == 'r' && o.off <= 38*bs && 38*bs < o.off+o.length {
			return errBroken
		}
		return nil
	})
	f.must(f.write(39, 'b'))
	f.must(f.write(37, 'b'))
	if got := f.engine.Stats().BackedUp; got != 2*bs {
		t.Errorf("%d bytes are backed up", got)
	}
	if err := f.write(38, 'b'); !errors.Is(err, errBroken) {
		t.Errorf("overwriting what cannot be read: %v", err)
	}
	f.must(f.engine.Check())
	f.tap.intercept(nil)
	f.wantRollback(inUse)
}

// TestNoRoomForNeighbours: when a quarter of what was free is used, nothing is backed up
// any more that need not be.
func TestNoRoomForNeighbours(t *testing.T) {
	const bs, inUse, free = 4096, 4096, 512
	f := newFixture(t, bs, inUse+free, inUse)
	f.engine.BackUpNeighbours()
	f.checkpoint()
	written, before := int64(0), int64(0)
	for b := int64(64); b < inUse; b += 17 {
		f.must(f.write(b, 'a'))
		written++
		kept := f.engine.Stats().BackedUp / bs
		if f.engine.Stats().Free/bs < free*3/4-16 && kept > before+1 {
			t.Fatalf("%d blocks more are backed up after write %d, with %d free of %d", kept-before, written, f.engine.Stats().Free/bs, free)
		}
		before = kept
		if f.engine.Stats().Free < 32*bs {
			break
		}
	}
	if before < written+10 {
		t.Errorf("%d blocks are backed up after %d writes", before, written)
	}
	f.wantRollback(inUse)
}
