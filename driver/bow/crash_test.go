package bow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// flushed is what the device must hold, block by block, after a crash when so
// many operations were recorded: the content of the last acknowledged flush, and
// what was written since, which may be there or not.
type flushed struct {
	at  int // length of the history when the flush was acknowledged
	now []byte
}

// crashRun is a life of a volume with one checkpoint, recorded.
type crashRun struct {
	*model
	history *memdev.History

	opening, opened    int // length of the history before and after Checkpoint
	closing, committed int // before and after Commit; 0 if there was none
	flushes            []flushed
	touched            []bool // by block: written or discarded while recording
	discarded          []bool // by block: discarded while the checkpoint was open
}

// newCrashRun does steps random operations under a checkpoint and commits.
func newCrashRun(t *testing.T, seed uint64, bs, blocks, unit, steps int) *crashRun {
	r := &crashRun{model: newModel(t, seed, bs, blocks, unit)}
	free := blocks / 2
	if err := r.engine.StartTrim(); err != nil {
		r.fatal("start trim: %v", err)
	}
	if err := r.engine.MarkFree(int64(free*bs), int64((blocks-free)*bs)); err != nil {
		r.fatal("mark free: %v", err)
	}
	for i := free; i < blocks; i++ {
		r.undefined[i] = true
	}
	if err := r.engine.Flush(); err != nil {
		r.fatal("flush: %v", err)
	}
	r.history = r.dev.Record()
	r.touched, r.discarded = make([]bool, blocks), make([]bool, blocks)
	r.acknowledge()
	r.opening = r.history.Len()
	if err := r.engine.Checkpoint(context.Background()); err != nil {
		r.fatal("checkpoint: %v", err)
	}
	r.opened = r.history.Len()
	r.kept = bytes.Clone(r.now)
	r.inUse = make([]bool, blocks)
	for i, u := range r.undefined {
		r.inUse[i] = !u
	}
	for range steps {
		start, end := r.someRange()
		switch r.rng.IntN(10) {
		case 0, 1:
			if err := r.engine.Flush(); err != nil {
				r.fatal("flush: %v", err)
			}
			r.acknowledge()
			continue
		case 2:
			r.discard(start, end)
			for i := start; i < end; i++ {
				r.discarded[i] = true
			}
		case 3:
			r.zero(start, end)
		default:
			r.fill(start, end)
		}
		for i := start; i < end; i++ {
			r.touched[i] = true
		}
	}
	r.closing = r.history.Len()
	r.commit()
	r.committed = r.history.Len()
	r.acknowledge()
	return r
}

func (r *crashRun) acknowledge() {
	r.flushes = append(r.flushes, flushed{at: r.history.Len(), now: bytes.Clone(r.now)})
}

// check fails if dev, which is the device after a crash when n operations had
// been issued, cannot be brought to where it must.
func (r *crashRun) check(state memdev.State, dev *memdev.Device) {
	r.t.Helper()
	n := state.Cut
	_, err := bowlog.Load(dev)
	switch {
	case errors.Is(err, bowlog.ErrNoLog):
		if n >= r.opened && n < r.closing {
			r.fatal("%s: the checkpoint is gone", state)
		}
	case err != nil:
		r.fatal("%s: %v", state, err)
	}
	result, err := restore.Restore(context.Background(), dev, restore.Options{})
	if err != nil && !errors.Is(err, bowlog.ErrNoLog) {
		r.fatal("%s: restore: %v", state, err)
	}
	got := make([]byte, dev.Size())
	if _, err := dev.ReadAt(got, 0); err != nil {
		r.fatal("%s: %v", state, err)
	}
	if err == nil && result.Phase == bowlog.PhaseOpen {
		// A rollback, which is right until the commit is acknowledged.
		if n >= r.committed {
			r.fatal("%s: the checkpoint is there after the commit", state)
		}
		r.wantKept(got, state.String())
		return
	}
	// No checkpoint: it is not open yet, or it is committed. Then what was
	// flushed is there.
	if n >= r.opened && n < r.closing {
		r.fatal("%s: the checkpoint is %s", state, result.Phase)
	}
	var last flushed
	for _, f := range r.flushes {
		if f.at <= n {
			last = f
		}
	}
	if n >= r.closing {
		// The commit flushes before it gives block 0 back.
		last = r.flushes[len(r.flushes)-1]
	}
	for i := range r.blocks {
		a, b := i*r.bs, (i+1)*r.bs
		if n >= r.closing && r.undefined[i] || n < r.opened && !r.inUse[i] {
			continue
		}
		if !bytes.Equal(got[a:b], last.now[a:b]) {
			r.fatal("%s: block %d lost what was flushed", state, i)
		}
	}
}

// TestCrash cuts the power at every operation of many short histories, loses or
// tears what was not flushed, all combinations of it where there are few, and
// looks whether the checkpoint can be restored, or the commit has all that was
// flushed.
func TestCrash(t *testing.T) {
	total := 0
	for _, c := range []struct {
		bs, unit, blocks, steps int
		limit                   int // states for each cut
	}{
		{512, 512, 32, 12, 40},
		{1024, 512, 32, 12, 40},
		{4096, 512, 32, 12, 40},
		{4096, 4096, 32, 12, 40},
		// Log blocks that are more than their first sector, and become full.
		{512, 512, 256, 120, 6},
		{1024, 512, 256, 120, 6},
		{4096, 512, 256, 120, 6},
	} {
		if testing.Short() {
			c.limit = max(c.limit/8, 3)
		}
		for _, seed := range []uint64{1, 2, rand.Uint64()} {
			t.Run(fmt.Sprintf("%d/%d/%d/seed=%d", c.bs, c.unit, c.blocks, seed), func(t *testing.T) {
				r := newCrashRun(t, seed, c.bs, c.blocks, c.unit, c.steps)
				for state, dev := range r.history.Explore(seed, c.limit) {
					r.check(state, dev)
					total++
				}
			})
		}
	}
	t.Logf("%d crash states", total)
}
