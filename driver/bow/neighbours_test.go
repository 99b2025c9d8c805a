package bow_test

import (
	"errors"
	"testing"
)

// TestNeighbours: with the second write to 64 KiB all of it is backed up, and more if
// enough of that has a backup; what is written there later costs no more than the write.
func TestNeighbours(t *testing.T) {
	const bs, inUse = 4096, 512 // 16 blocks are a neighbourhood
	f := newFixture(t, bs, 2048, inUse)
	f.checkpoint()
	f.tap.reset()
	backedUp := func(block int64, content byte, want int64) {
		t.Helper()
		f.must(f.write(block, content))
		if got := f.engine.Stats().BackedUp / bs; got != want {
			t.Fatalf("%d blocks are backed up after a write to block %d, want %d", got, block, want)
		}
	}
	backedUp(40, 'a', 1)
	backedUp(24, 'a', 2) // another one
	backedUp(35, 'b', 17)
	f.tap.reset()
	for b := int64(32); b < 48; b++ {
		backedUp(b, 'c', 17)
	}
	if n := f.tap.reset(); n['r'] != 0 || n['f'] != 0 || n['w'] != 16 {
		t.Errorf("writes to what is backed up: %v", n)
	}
	backedUp(300, 'd', 18)
	backedUp(5, 'd', 1+255) // 1 MiB, without block 0: more than a sixteenth had a backup
	f.tap.reset()
	backedUp(250, 'd', 1+255)
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
	f.checkpoint()
	f.must(f.write(40, 'a'))
	f.tap.intercept(func(o op) error {
		if o.kind == 'r' && o.off <= 38*bs && 38*bs < o.off+o.length {
			return errBroken
		}
		return nil
	})
	f.must(f.write(39, 'b'))
	f.must(f.write(37, 'b'))
	if got := f.engine.Stats().BackedUp; got != 3*bs {
		t.Errorf("%d bytes are backed up", got)
	}
	if err := f.write(38, 'b'); !errors.Is(err, errBroken) {
		t.Errorf("overwriting what cannot be read: %v", err)
	}
	f.must(f.engine.Check())
	f.tap.intercept(nil)
	f.wantRollback(inUse)
}

// TestNoRoomForNeighbours: where more is in use than is free, nothing is backed up
// that need not be.
func TestNoRoomForNeighbours(t *testing.T) {
	const bs, inUse = 4096, 512
	f := newFixture(t, bs, 1000, inUse)
	f.checkpoint()
	for b := int64(32); b < 48; b += 2 {
		f.must(f.write(b, 'a'))
	}
	if got := f.engine.Stats().BackedUp; got != 8*bs {
		t.Errorf("%d bytes are backed up", got)
	}
	f.wantRollback(inUse)
}
