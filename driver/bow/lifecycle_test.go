package bow_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"golang.org/x/sys/unix"
)

// wantRequested fails if the log on the device does not say whether a rollback was
// asked for as it should.
func (f *fixture) wantRequested(want bool) {
	f.t.Helper()
	head, err := bowlog.Load(f.mem)
	f.must(err)
	if head.Ext.RollbackRequested != want {
		f.t.Errorf("rollback requested: %t, want %t", !want, want)
	}
}

func TestRequestRollback(t *testing.T) {
	f := newFixture(t, 512, 64, 16)
	if err := f.engine.RequestRollback(); !errors.Is(err, bow.ErrState) {
		t.Errorf("without a checkpoint: %v", err)
	}
	f.checkpoint()
	f.must(f.write(3, 99))
	f.must(f.engine.RequestRollback())
	if !f.engine.Stats().RollbackRequested {
		t.Error("not in the statistics")
	}
	f.wantRequested(true)
	f.tap.reset()
	f.must(f.engine.RequestRollback())
	if n := f.tap.reset()['w']; n != 0 {
		t.Errorf("asked twice: %d writes", n)
	}
	if err := f.engine.Commit(); !errors.Is(err, bow.ErrState) {
		t.Errorf("commit: %v", err)
	}

	// The user goes on, and so many log blocks do not forget it.
	for i := range 30 {
		f.must(f.write(1+int64(i%15), byte(i)))
		f.must(f.engine.Discard(int64(16+i%8)*512, 512))
		f.must(f.write(16+int64(i%8), byte(i)))
	}
	f.wantRequested(true)
	f.wantRollback(16)
	if _, err := bow.Open(f.mem.Clone(), 512); !errors.Is(err, bow.ErrCheckpointOpen) {
		t.Errorf("open: %v", err)
	}
	e, err := bow.TakeOver(f.mem.Clone(), 512, nil)
	f.must(err)
	if s := e.Stats(); !s.RollbackRequested || s.Stale == 0 {
		t.Errorf("taken over: %+v", s)
	}
	f.must(e.RequestRollback())
}

// TestRequestRollbackUnderLoad asks while many requests make backups, and the race
// detector looks on.
func TestRequestRollbackUnderLoad(t *testing.T) {
	f := newFixture(t, 512, 1024, 256)
	f.checkpoint()
	var wg sync.WaitGroup
	half := make(chan struct{})
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range 100 {
				if w == 0 && i == 50 {
					close(half)
				}
				if err := f.write(rng.Int64N(320), byte(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			<-half
			if err := f.engine.RequestRollback(); err != nil {
				t.Error(err)
			}
			head, err := bowlog.Load(f.mem)
			if err != nil || !head.Ext.RollbackRequested {
				t.Errorf("acknowledged, and the log does not say so: %v", err)
			}
		})
	}
	wg.Wait()
	f.wantRequested(true)
	f.wantRollback(256)
}

// TestRequestRollbackFails lets each operation of it fail in turn. It can be tried
// again, and what was not acknowledged is not claimed.
func TestRequestRollbackFails(t *testing.T) {
	for fail := range 4 {
		f := newFixture(t, 4096, 64, 16)
		f.checkpoint()
		n := 0
		f.tap.intercept(func(o op) error {
			if n++; n-1 == fail {
				return unix.EIO
			}
			return nil
		})
		if err := f.engine.RequestRollback(); !errors.Is(err, unix.EIO) {
			t.Errorf("operation %d fails: %v", fail, err)
		}
		f.tap.intercept(nil)
		f.must(f.engine.RequestRollback())
		f.wantRequested(true)
		f.wantRollback(16)
	}
}

func TestCheckpointID(t *testing.T) {
	f := newFixture(t, 512, 64, 16)
	id, err := bowlog.ParseID("0B5E4F8A-9E2D-4c43-b3b6-5f1d3a6c7e01")
	f.must(err)
	o := bow.CheckpointOptions{ID: id}
	f.must(f.engine.Checkpoint(t.Context(), o))
	if s := f.engine.Stats(); s.ID != id || s.ID.String() != "0b5e4f8a-9e2d-4c43-b3b6-5f1d3a6c7e01" {
		t.Errorf("id %s", s.ID)
	}
	f.must(f.write(3, 99))
	f.must(f.engine.Checkpoint(t.Context(), o))
	if s := f.engine.Stats(); s.BackedUp != 512 {
		t.Errorf("opened again: %+v", s)
	}
	for _, o := range []bow.CheckpointOptions{{}, {ID: bowlog.NewID()}} {
		if err := f.engine.Checkpoint(t.Context(), o); !errors.Is(err, bow.ErrState) {
			t.Errorf("another checkpoint: %v", err)
		}
	}
	f.must(f.engine.Commit())
	if got := f.engine.Stats().Ended; got.ID != id || got.Reason != bow.Asked || got.At.IsZero() {
		t.Errorf("ended: %+v", got)
	}
}

func TestCommitWhenFull(t *testing.T) {
	f := newFixture(t, 512, 64, 56) // too little space for all of it
	f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{CommitWhenFull: true}))
	id := f.engine.Stats().ID

	// The policy is the checkpoint's, whoever carries on with it.
	e, err := bow.TakeOver(f.mem, 512, nil)
	f.must(err)
	f.engine = e
	if !e.Stats().CommitWhenFull {
		t.Error("the policy is gone")
	}
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			for b := 1 + w; b < 56; b += 4 {
				var err error
				if b%2 == 0 {
					err = e.WriteZeroes(b*512, 512)
				} else {
					err = f.write(b, 0)
				}
				if err != nil {
					t.Errorf("block %d: %v", b, err)
				}
			}
		})
	}
	wg.Wait()
	if s := e.Stats(); s.State != bow.Committed || s.Ended.ID != id || s.Ended.Reason != bow.OutOfSpace {
		t.Errorf("%+v", s)
	}
	f.want(e, 0, 1)
	for b := int64(1); b < 56; b++ {
		f.want(e, b, 0)
	}
	f.must(e.Check())
}

// TestEndOutlivesProcess: why a checkpoint is gone is not forgotten when the process
// that has ended it dies, whatever comes after.
func TestEndOutlivesProcess(t *testing.T) {
	f := newFixture(t, 512, 64, 56)
	mem := make([]byte, bow.MemorySize(64))
	f.engine.Remember(mem)
	takeOver := func() bow.Ended {
		t.Helper()
		mem := slices.Clone(mem)                        // the first engine lives on
		_, err := bow.TakeOver(f.mem.Clone(), 512, mem) // and dies, too
		f.must(err)
		e, err := bow.TakeOver(f.mem.Clone(), 512, mem)
		f.must(err)
		return e.Stats().Ended
	}
	fill := func() bow.Ended {
		t.Helper()
		f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{CommitWhenFull: true}))
		if got := takeOver(); got.Reason == bow.OutOfSpace && got.ID == f.engine.Stats().ID {
			t.Errorf("it is open, and yet: %+v", got)
		}
		for b := int64(1); b < 56; b++ {
			f.must(f.write(b, 0))
		}
		return f.engine.Stats().Ended
	}
	if got := takeOver(); got != (bow.Ended{}) {
		t.Errorf("nothing has ended, and yet: %+v", got)
	}
	for range 2 {
		want := fill()
		if got := takeOver(); want.Reason != bow.OutOfSpace || got.ID != want.ID || got.Reason != want.Reason || !got.At.Equal(want.At) {
			t.Errorf("%+v, expected %+v", got, want)
		}
		f.must(f.engine.StartTrim())
	}
}

// TestCommitWhenFullFails makes the commit fail: the write does not happen, and the
// checkpoint is as good as before.
func TestCommitWhenFullFails(t *testing.T) {
	f := newFixture(t, 512, 32, 25)
	f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{CommitWhenFull: true}))
	for b := int64(1); f.engine.Stats().Free > 0; b++ {
		f.must(f.write(b, 99))
	}
	f.tap.intercept(func(o op) error {
		if o.kind == 'w' && o.off == 0 {
			return unix.EIO
		}
		return nil
	})
	if err := f.write(20, 99); !errors.Is(err, unix.EIO) {
		t.Errorf("a commit that fails: %v", err)
	}
	f.tap.intercept(nil)
	f.want(f.engine, 20, 21)
	f.must(f.write(20, 99))
	if s := f.engine.Stats(); s.State != bow.Committed {
		t.Errorf("%+v", s)
	}
	// Who asks for a flush is told of the one that may have been lost.
	if err := f.engine.Flush(); err == nil {
		t.Error("nobody is told that a flush failed")
	}
	f.must(f.engine.Flush())
}

// TestFullWithRollbackRequested: who wants to go back is not to be robbed of it.
func TestFullWithRollbackRequested(t *testing.T) {
	f := newFixture(t, 512, 32, 25)
	f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{CommitWhenFull: true}))
	f.must(f.engine.RequestRollback())
	for b := int64(1); f.engine.Stats().Free > 0; b++ {
		f.must(f.write(b, 99))
	}
	if err := f.write(20, 99); !errors.Is(err, bow.ErrNoSpace) {
		t.Errorf("a write without space: %v", err)
	}
	f.wantRollback(25)
}
