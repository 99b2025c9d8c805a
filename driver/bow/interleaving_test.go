package bow_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// settle is how long a request gets to come to where it waits. If it has not by
// then, the test shows less, and does not fail for it.
const settle = 50 * time.Millisecond

// TestLiveBlock0MovesIntoLockedRange: between locking a range and looking at it,
// the live block 0 comes to be in it. The write must not move it on without holding
// block 0, because another write to block 0 is on its way there.
func TestLiveBlock0MovesIntoLockedRange(t *testing.T) {
	f := newFixture(t, 512, 64, 32)
	f.checkpoint() // the live block 0 is at 32, the next copies go to 37, 38, ...
	hold := func(off int64) (reached, release chan bool) {
		reached, release = make(chan bool, 1), make(chan bool)
		f.tap.intercept(func(o op) error {
			if o.kind == 'w' && o.off == off && o.length == 512 {
				reached <- true
				<-release
			}
			return nil
		})
		return reached, release
	}
	copying, wide, zero := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	reached, releaseCopy := hold(37 * 512)
	go func() { copying <- f.write(5, 'a') }() // its copy to 37 takes long
	<-reached
	go func() { // has locked 37 to 43, and waits for 37
		p := blockdev.Buffer(7 * 512)
		copy(p, strings.Repeat("U", len(p)))
		_, err := f.engine.WriteAt(p, 37*512)
		wide <- err
	}()
	time.Sleep(settle)
	f.must(f.write(32, 'c')) // the live block 0 moves to 38
	reached, releaseZero := hold(38 * 512)
	go func() { zero <- f.write(0, 'Z') }() // is on its way to 38
	<-reached
	close(releaseCopy)
	f.must(<-copying)
	time.Sleep(settle)
	close(releaseZero)
	f.must(<-zero)
	f.must(<-wide)
	f.want(f.engine, 0, 'Z')
	f.want(f.engine, 38, 'U')
}

// TestFlushFailsForOthers: a flush fails and drops what was written before it. A
// request whose copy was among that, but which asks for its log entry later, must
// not believe in its copy.
func TestFlushFailsForOthers(t *testing.T) {
	f := newFixture(t, 4096, 256, 128)
	f.checkpoint()
	f.must(f.engine.Flush())
	// The first flush waits until the copy of the second request is written,
	// then it drops everything and fails.
	copied := make(chan bool)
	var once, onceCopied sync.Once
	f.tap.intercept(func(o op) error {
		switch {
		case o.kind == 'f':
			var err error
			once.Do(func() {
				<-copied
				*f.mem = *f.mem.Record().Cut(0).Nothing()
				err = errBroken
			})
			return err
		case o.kind == 'r' && o.off == 9*f.bs:
			// Its copy comes next; then it waits for the log.
			onceCopied.Do(func() { time.AfterFunc(settle, func() { close(copied) }) })
		}
		return nil
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- f.write(8, 90) }()
	go func() { second <- f.write(9, 91) }()
	if err := <-first; err == nil {
		t.Error("a request whose flush failed succeeded")
	}
	if err := <-second; err == nil {
		t.Error("a request whose copy was dropped succeeded")
	}
	f.tap.intercept(nil)
	if err := f.engine.Flush(); err == nil {
		t.Error("the user was not told that a flush had failed")
	}
	f.must(f.engine.Flush())
	f.must(f.write(9, 92))
	f.wantRollback(128)
}

// newLongLog is a fixture with a checkpoint open and so many entries in its log
// block that it is more than its first sector.
func newLongLog(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t, 1024, 256, 128)
	f.checkpoint()
	for i := range int64(34) {
		f.must(f.write(60-i, 'a'))
	}
	return f
}

// TestShadowThatWasGivenUp: the power goes twice. The first time, a log block had
// reached its shadow and not block 0; the checkpoint is carried on without it. The
// second time block 0 is torn, and that shadow, of the same generation as the write
// that tore it, is still where the header says. It must not be believed.
func TestShadowThatWasGivenUp(t *testing.T) {
	f := newLongLog(t)
	f.must(f.engine.Flush())
	// noPower fails writes of block 0, and keeps what was on dev before the first.
	noPower := func(tap *tap, dev *memdev.Device) (then **memdev.Device) {
		then = new(*memdev.Device)
		tap.intercept(func(o op) error {
			if o.kind != 'w' || o.off != 0 {
				return nil
			}
			if *then == nil {
				*then = dev.Clone()
			}
			return errBroken
		})
		return then
	}
	then := noPower(f.tap, f.mem)
	if err := f.write(100, 'x'); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	f.tap.intercept(nil)
	dev := *then
	tap := newTap(dev)
	e, err := bow.Open(tap, 1024)
	f.must(err)
	for i, letter := range e.Types() {
		if letter == 't' { // the given-up copies may be here
			if _, err := e.WriteAt(f.block('F'), int64(i)*1024); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.must(e.Flush())
	then = noPower(tap, dev)
	// Over the shadows, so that they move.
	if _, err := e.WriteAt(blockdev.Buffer(5*1024), 128*1024); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	// Of block 0 only the second half arrived.
	torn := *then
	old, err := bowlog.Load(torn)
	f.must(err)
	half := make([]byte, 512)
	for i := range half {
		half[i] = 0xee
	}
	if _, err := torn.WriteAt(half, 512); err != nil {
		t.Fatal(err)
	}
	got, err := bowlog.Load(torn)
	f.must(err)
	if got.Ext.Generation != old.Ext.Generation {
		t.Errorf("the log in force is of generation %d, the header of %d", got.Ext.Generation, old.Ext.Generation)
	}
	f.mem = torn
	f.wantRollback(128)
}

// TestBlock0CannotBeWritten: for a while writes of block 0 fail and tear it. What
// is on the disk can be restored at any time.
func TestBlock0CannotBeWritten(t *testing.T) {
	f := newLongLog(t)
	f.tap.intercept(func(o op) error {
		if o.kind == 'w' && o.off == 0 {
			if _, err := f.mem.WriteAt(make([]byte, 512), 512); err != nil {
				t.Error(err)
			}
			return errBroken
		}
		return nil
	})
	for i := range int64(5) {
		if err := f.write(100-2*i, 'x'); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
		f.wantRollback(128)
	}
	f.tap.intercept(nil)
	f.must(f.write(100, 'x'))
	f.wantRollback(128)
}

// TestReserveIsEnough: when the log block is full and the file system writes into
// the reserve, there is still a place for the log block.
func TestReserveIsEnough(t *testing.T) {
	f := newFixture(t, 512, 128, 64)
	f.checkpoint()
	for i := range int64(13) {
		f.must(f.write(60-i, 'a'))
	}
	e, err := bow.Open(f.mem, 512)
	f.must(err)
	first := strings.IndexByte(e.Types(), 's')
	if _, err := e.WriteAt(blockdev.Buffer(512*(first+1-72)), 72*512); err != nil {
		t.Error(err)
	}
	f.must(e.Check())
	f.wantRollback(64)
}

// TestImpossibleShadows: a log whose shadows cannot be is not carried on with.
func TestImpossibleShadows(t *testing.T) {
	f := newFixture(t, 1024, 64, 32)
	f.checkpoint()
	good, err := bowlog.Load(f.mem)
	f.must(err)
	for name, shadows := range map[string][2]uint64{
		"none":       {},
		"the same":   {good.Ext.Shadows[0], good.Ext.Shadows[0]},
		"block 0":    {good.Ext.Shadows[0], good.Sector0},
		"a copy":     {good.Ext.Shadows[0], good.Entries[0].Dest},
		"used block": {good.Ext.Shadows[0], 20},
	} {
		d, b := f.mem.Clone(), *good
		ext := *good.Ext
		b.Ext, ext.Shadows = &ext, shadows
		f.must(bowlog.Write(d, &b))
		if _, err := bow.Open(d, 1024); !errors.Is(err, bowlog.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
