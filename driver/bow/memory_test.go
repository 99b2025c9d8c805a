package bow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// moment is what is so when a number of operations have reached the device: the
// memory of the engine, and what its user knows.
type moment struct {
	at        int // operations before
	mem       []byte
	now       []byte // content, of what was acknowledged
	undefined []bool
	redo      func(*model) // the request under way
	kept      bool         // the checkpoint is open, as far as its user knows
	asked     bool         // a rollback was asked for
	committed bool
}

// deathRun is a life of a volume whose process may die at any operation.
type deathRun struct {
	*model
	mem     []byte
	history *memdev.History
	moments []moment
	current moment
}

// newDeathRun does steps random operations, the control operations of a checkpoint
// among them.
func newDeathRun(t *testing.T, seed uint64, bs, blocks, steps int) *deathRun {
	r := &deathRun{model: newModel(t, seed, bs, blocks, 512), mem: make([]byte, bow.MemorySize(int64(blocks)))}
	if err := r.dev.Flush(); err != nil {
		r.fatal("flush: %v", err)
	}
	r.history = r.dev.Record()
	tap := newTap(r.dev)
	e, err := bow.Open(tap, bs)
	if err != nil {
		r.fatal("open: %v", err)
	}
	tap.intercept(func(o op) error {
		if o.kind != 'r' {
			r.remember()
		}
		return nil
	})
	e.Remember(r.mem)
	r.engine = e
	r.step(func(m *model) {
		must := func(err error) {
			if err != nil {
				m.fatal("%v", err)
			}
		}
		must(e.StartTrim())
		free := blocks / 2
		must(e.MarkFree(int64(free*bs), int64((blocks-free)*bs)))
		for i := free; i < blocks; i++ {
			m.undefined[i] = true
		}
	}, nil)
	r.some(steps / 4)
	r.step(func(m *model) {
		err := e.Checkpoint(context.Background(), bow.CheckpointOptions{})
		if errors.Is(err, bow.ErrNoSpace) {
			m.t.Skip("nothing is free with this seed")
		}
		if err != nil {
			m.fatal("checkpoint: %v", err)
		}
		m.kept = bytes.Clone(m.now)
		m.inUse = make([]bool, blocks)
		for i, u := range m.undefined {
			m.inUse[i] = !u
		}
		r.current.kept = true
	}, nil)
	r.some(steps)
	if r.rng.IntN(2) == 0 {
		r.step(func(m *model) {
			if err := e.RequestRollback(); err != nil {
				m.fatal("asking for a rollback: %v", err)
			}
			r.current.asked = true
		}, nil)
		r.some(steps / 2)
	} else {
		r.step(func(m *model) { m.commit(); r.current.committed = true }, nil)
		r.some(steps / 4)
	}
	r.remember()
	return r
}

// remember notes this moment.
func (r *deathRun) remember() {
	m := r.current
	m.at, m.mem = r.history.Len(), bytes.Clone(r.mem)
	r.moments = append(r.moments, m)
}

// step does an operation that its user would do again, by redo, if the process died
// in the middle of it.
func (r *deathRun) step(do, redo func(*model)) {
	r.current.now, r.current.undefined = bytes.Clone(r.now), slices.Clone(r.undefined)
	r.current.redo = redo
	do(r.model)
	r.current.now, r.current.undefined = bytes.Clone(r.now), slices.Clone(r.undefined)
	r.current.redo = nil
}

// some does n random operations.
func (r *deathRun) some(n int) {
	for range n {
		start, end := r.someRange()
		var do func(*model)
		switch r.rng.IntN(8) {
		case 0:
			do = func(m *model) {
				if err := m.engine.Flush(); err != nil {
					m.fatal("flush: %v", err)
				}
			}
		case 1, 2:
			do = func(m *model) { m.discard(start, end) }
		case 3:
			do = func(m *model) { m.orUndefined(m.zero(start, end), start, end) }
		default:
			do = func(m *model) { m.orUndefined(m.fill(start, end), start, end) }
		}
		r.step(do, do)
	}
}

// orUndefined notes that a request failed for want of space; one that is done again
// may have been done before.
func (m *model) orUndefined(ok bool, start, end int) {
	m.t.Helper()
	if ok || m.redone == nil {
		return
	}
	got := make([]byte, (end-start)*m.bs)
	if _, err := m.engine.ReadAt(got, int64(start*m.bs)); err != nil {
		m.fatal("reading: %v", err)
	}
	copy(m.now[start*m.bs:], got)
}

// check takes the device over as it is at a moment.
func (r *deathRun) check(at moment) {
	r.t.Helper()
	n := at.at
	dev := r.history.Cut(n).Everything()
	e, err := bow.TakeOver(dev, r.bs, at.mem)
	if err != nil {
		r.fatal("after %d operations: %v", n, err)
	}
	m := &model{
		t: r.t, rng: rand.New(rand.NewPCG(uint64(n), 3)),
		dev: dev, engine: e, bs: r.bs, blocks: r.blocks, next: r.next,
		now: bytes.Clone(at.now), undefined: slices.Clone(at.undefined), kept: r.kept, inUse: r.inUse,
		history: append(slices.Clone(r.model.history), note{"died after %d operations", []any{n}}),
		redone:  at.redo,
	}
	m.checkInvariants()
	s := e.Stats()
	switch {
	case s.Stale != 0:
		m.fatal("of %d bytes nobody knows whether they are free", s.Stale)
	case at.asked && !s.RollbackRequested:
		m.fatal("the rollback is forgotten")
	case at.kept && !at.committed && s.State != bow.Checkpoint && at.redo != nil:
		m.fatal("the checkpoint is gone")
	}
	if at.redo != nil {
		at.redo(m)
	}
	m.check()
	for range 8 {
		m.undemanding()
	}
	// A report from before the death must not be believed for what was written.
	for i, u := range at.undefined {
		if u && i > 0 && s.State == bow.Checkpoint {
			if err := e.MarkFree(int64(i*r.bs), int64(r.bs)); err != nil {
				m.fatal("mark free: %v", err)
			}
		}
	}
	for range 8 {
		m.undemanding()
	}
	m.checkInvariants()
	m.check()
	if s.State != bow.Checkpoint {
		return
	}
	m.checkRollback()
	if err := e.Commit(); err != nil && !(s.RollbackRequested && errors.Is(err, bow.ErrState)) {
		m.fatal("commit: %v", err)
	}
	m.check()
}

// TestDeath kills the process at every operation that reaches the device, many
// times, and takes over.
func TestDeath(t *testing.T) {
	total := 0
	for _, c := range []struct{ bs, blocks, steps int }{
		{512, 32, 20}, {4096, 32, 20}, {512, 256, 200}, {4096, 256, 300},
	} {
		for _, seed := range []uint64{1, 2, rand.Uint64(), rand.Uint64()} {
			t.Run(fmt.Sprintf("%d/%d/seed=%d", c.bs, c.blocks, seed), func(t *testing.T) {
				r := newDeathRun(t, seed, c.bs, c.blocks, c.steps)
				step := 1
				if testing.Short() {
					step = 1 + c.blocks/16 // 3, 17
				}
				for n := 0; n < len(r.moments); n += step {
					r.check(r.moments[n])
					total++
				}
			})
		}
	}
	t.Logf("%d deaths", total)
}
