package bow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// flushed is what the device must hold, block by block, after a crash when so
// many operations were recorded: the content of the last acknowledged flush, and
// what was written since, which may be there or not.
type flushed struct {
	at        int // length of the history when the flush was acknowledged
	now       []byte
	undefined []bool
}

// crashRun is a life of a volume with one checkpoint, recorded.
type crashRun struct {
	*model
	recorded *memdev.History

	opening, opened    int // length of the history before and after Checkpoint
	closing, committed int // before and after Commit; the end if there was none
	asking, asked      int // before and after RequestRollback; the end if there was none
	flushes            []flushed
	changes            []change
}

// change is a request that changed blocks [start, end).
type change struct {
	at, done   int // length of the history when it was made and when it had ended
	start, end int
	discard    bool
	failed     bool // for want of space
}

// newCrashRun does steps random operations under a checkpoint, and commits; or one
// of the operations is to ask for a rollback, and then there is no commit.
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
	r.recorded = r.dev.Record()
	r.acknowledge()
	r.opening = r.recorded.Len()
	if err := r.engine.Checkpoint(context.Background(), bow.CheckpointOptions{}); err != nil {
		r.fatal("checkpoint: %v", err)
	}
	r.opened = r.recorded.Len()
	r.kept = bytes.Clone(r.now)
	r.inUse = make([]bool, blocks)
	for i, u := range r.undefined {
		r.inUse[i] = !u
	}
	never := math.MaxInt
	r.asking, r.asked = never, never
	ask := never
	if r.rng.IntN(2) == 0 {
		ask = r.rng.IntN(steps)
	}
	for i := range steps {
		if i == ask {
			r.ask()
		}
		start, end := r.someRange()
		c := change{at: r.recorded.Len(), start: start, end: end}
		switch r.rng.IntN(10) {
		case 0, 1:
			if err := r.engine.Flush(); err != nil {
				r.fatal("flush: %v", err)
			}
			r.acknowledge()
			continue
		case 2:
			r.discard(start, end)
			c.discard = true
		case 3:
			c.failed = !r.zero(start, end)
		default:
			c.failed = !r.fill(start, end)
		}
		c.done = r.recorded.Len()
		if !c.failed {
			r.changes = append(r.changes, c)
		}
	}
	if ask != never {
		r.closing, r.committed = never, never
		return r
	}
	r.closing = r.recorded.Len()
	r.commit()
	r.committed = r.recorded.Len()
	r.acknowledge()
	return r
}

// ask asks for a rollback.
func (r *crashRun) ask() {
	r.t.Helper()
	r.note("ask for a rollback")
	r.asking = r.recorded.Len()
	if err := r.engine.RequestRollback(); err != nil {
		r.fatal("asking for a rollback: %v", err)
	}
	r.asked = r.recorded.Len()
	if err := r.engine.RequestRollback(); err != nil || r.recorded.Len() != r.asked {
		r.fatal("asking for a rollback again: %v", err)
	}
	if err := r.engine.Commit(); !errors.Is(err, bow.ErrState) {
		r.fatal("commit after a rollback was asked for: %v", err)
	}
}

func (r *crashRun) acknowledge() {
	r.flushes = append(r.flushes, flushed{at: r.recorded.Len(), now: bytes.Clone(r.now), undefined: slices.Clone(r.undefined)})
}

// check fails if dev, which is the device after a crash when n operations had
// been issued, cannot be brought to where it must.
func (r *crashRun) check(state memdev.State, dev *memdev.Device) {
	r.t.Helper()
	n := state.Cut
	head, err := bowlog.Load(dev)
	switch {
	case errors.Is(err, bowlog.ErrNoLog):
		if n >= r.opened && n < r.closing {
			r.fatal("%s: the checkpoint is gone", state)
		}
	case err != nil:
		r.fatal("%s: %v", state, err)
	}
	if err == nil && n < r.closing {
		asked := head.Ext.RollbackRequested
		if asked && n <= r.asking || !asked && n >= r.asked {
			r.fatal("%s: rollback requested: %t", state, asked)
		}
		r.checkResume(state, dev.Clone(), asked)
	}
	result, err := restore.Restore(context.Background(), dev, restore.Options{})
	if err != nil && !errors.Is(err, bowlog.ErrNoLog) {
		r.fatal("%s: restore: %v", state, err)
	}
	got := r.read(dev)
	if err == nil && result.Phase == bowlog.PhaseOpen {
		// A rollback, which is right until the commit is acknowledged.
		if n >= r.committed {
			r.fatal("%s: the checkpoint is there after the commit", state)
		}
		r.wantKept(got, state)
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

// checkResume carries on with the checkpoint on dev: what was flushed is there,
// and whatever is done then, it can be rolled back or committed. If a rollback was
// asked for, that is refused at first.
func (r *crashRun) checkResume(state memdev.State, dev *memdev.Device, asked bool) {
	r.t.Helper()
	e, err := bow.Open(dev, r.bs)
	if asked != errors.Is(err, bow.ErrCheckpointOpen) {
		r.fatal("%s: opening with a rollback requested %t: %v", state, asked, err)
	}
	if asked {
		e, err = bow.TakeOver(dev, r.bs, nil)
	}
	if err != nil {
		r.fatal("%s: resume: %v", state, err)
	}
	if e.Stats().State != bow.Checkpoint {
		return // it had not begun
	}
	m := &model{
		t: r.t, rng: rand.New(rand.NewPCG(uint64(state.Cut), uint64(state.Index))),
		dev: dev, engine: e, bs: r.bs, blocks: r.blocks, next: r.next,
		now: make([]byte, len(r.now)), undefined: make([]bool, r.blocks), kept: r.kept, inUse: r.inUse,
		scratch: r.scratch,
		history: append(slices.Clone(r.history), note{"%s: resume", []any{state}}),
	}
	m.checkInvariants()
	if _, err := e.ReadAt(m.now, 0); err != nil {
		m.fatal("reading: %v", err)
	}
	last := r.flushes[0]
	for _, f := range r.flushes {
		if f.at <= state.Cut {
			last = f
		}
	}
	changed, free := make([]bool, r.blocks), slices.Clone(last.undefined)
	for _, c := range r.changes {
		if c.at < last.at || c.at >= state.Cut {
			continue
		}
		for i := c.start; i < c.end; i++ {
			changed[i] = true
			// A write that had not ended is one that never was.
			if c.discard || c.done <= state.Cut {
				free[i] = c.discard
			}
		}
	}
	for i := range r.blocks {
		a, b := i*r.bs, (i+1)*r.bs
		if !changed[i] && !last.undefined[i] && !bytes.Equal(m.now[a:b], last.now[a:b]) {
			m.fatal("block %d lost what was flushed", i)
		}
	}
	// What the file system uses now is what it used at the checkpoint and what
	// it wrote since. The rest is free, and it says so later.
	for i := range r.blocks {
		m.undefined[i] = !r.inUse[i] && free[i]
	}
	for range 6 {
		m.undemanding()
	}
	m.checkInvariants()
	m.checkRollback()
	for i, u := range m.undefined {
		if u && i > 0 {
			if err := e.MarkFree(int64(i*r.bs), int64(r.bs)); err != nil {
				m.fatal("mark free: %v", err)
			}
		}
	}
	for range 6 {
		m.undemanding()
	}
	m.checkInvariants()
	m.check()
	m.checkRollback()
	if e.Stats().RollbackRequested {
		head, err := bowlog.Load(dev)
		if err != nil || !head.Ext.RollbackRequested {
			m.fatal("the log has forgotten the rollback: %v", err)
		}
		return
	}
	m.commit()
	m.check()
}

// undemanding does a random operation that needs no checkpoint to end.
func (m *model) undemanding() {
	m.t.Helper()
	start, end := m.someRange()
	switch m.rng.IntN(6) {
	case 0:
		m.discard(start, end)
	case 1:
		m.zero(start, end)
	default:
		m.fill(start, end)
	}
}

// histories is by how much more histories TestCrash tries than it does by itself,
// $BOWLINE_TEST_HISTORIES.
func histories() int {
	n, err := strconv.Atoi(os.Getenv("BOWLINE_TEST_HISTORIES"))
	if err != nil {
		return 1
	}
	return n
}

// fewestStates is what TestCrash promises to try when it is not to be short. No two
// of them are the same state of the same moment.
const fewestStates = 100_000

// TestCrash cuts the power at every operation of many short histories, loses or
// tears what was not flushed, all combinations of it where there are few, and
// looks whether the checkpoint can be restored, or the commit has all that was
// flushed. It fails if these are fewer than fewestStates.
func TestCrash(t *testing.T) {
	// Nearly all memory is garbage soon, and there is little besides.
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	var total, ran atomic.Int64
	planned := 0
	t.Run("histories", func(t *testing.T) {
		for _, c := range []struct {
			bs, unit, blocks, steps int
			limit                   int // states for each cut
			seeds                   int // histories
		}{
			{512, 512, 32, 12, 64, 24},
			{1024, 512, 32, 12, 64, 40},
			{4096, 512, 32, 12, 64, 48},
			{4096, 4096, 32, 12, 64, 24},
			// Log blocks that are more than their first sector, and become full.
			{512, 512, 256, 120, 8, 8},
			{1024, 512, 256, 120, 8, 8},
			{4096, 512, 256, 120, 8, 6},
		} {
			c.seeds *= histories()
			if testing.Short() {
				c.limit, c.seeds = max(c.limit/12, 3), 3
			}
			planned += c.seeds
			for i := range c.seeds {
				seed := uint64(i + 1)
				if i >= 2 {
					seed = rand.Uint64()
				}
				t.Run(fmt.Sprintf("%d/%d/%d/seed=%d", c.bs, c.unit, c.blocks, seed), func(t *testing.T) {
					t.Parallel()
					ran.Add(1)
					r := newCrashRun(t, seed, c.bs, c.blocks, c.unit, c.steps)
					for state, dev := range r.recorded.Explore(seed, c.limit) {
						r.check(state, dev)
						total.Add(1)
					}
				})
			}
		}
	})
	t.Logf("%d crash states of %d histories", total.Load(), ran.Load())
	all := !testing.Short() && ran.Load() == int64(planned) // not if -run chose some
	if least := int64(fewestStates * histories()); all && total.Load() < least {
		t.Errorf("%d crash states, which should be at least %d", total.Load(), least)
	}
}
