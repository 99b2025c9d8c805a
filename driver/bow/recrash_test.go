package bow_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// TestCrashAgain cuts the power, carries on with the checkpoint, and cuts the power
// again, while it is being carried on with and in what is done then. What the first
// crash left on the disk, given-up log blocks above all, must not come back.
func TestCrashAgain(t *testing.T) {
	var total atomic.Int64
	t.Run("histories", func(t *testing.T) {
		for _, c := range []struct{ bs, unit int }{{512, 512}, {1024, 512}, {4096, 512}, {4096, 4096}} {
			seeds := 3 * histories()
			if testing.Short() {
				seeds = 1
			}
			for range seeds {
				seed := rand.Uint64()
				t.Run(fmt.Sprintf("%d/%d/seed=%d", c.bs, c.unit, seed), func(t *testing.T) {
					t.Parallel()
					r := newCrashRun(t, seed, c.bs, 32, c.unit, 10)
					rng := rand.New(rand.NewPCG(seed, 2))
					for state, dev := range r.recorded.Explore(seed, 12) {
						if state.Cut >= r.opened && state.Cut < min(r.closing, r.asking) && rng.IntN(4) == 0 {
							total.Add(r.crashAgain(state, dev, rng.Uint64()))
						}
					}
				})
			}
		}
	})
	t.Logf("%d states after the second crash", total.Load())
}

// TestDeathThenCrash: the process dies, its successor carries on with what is in the
// cache of the disk, and then the power is cut, so that what neither has flushed may
// be lost.
func TestDeathThenCrash(t *testing.T) {
	var total atomic.Int64
	t.Run("histories", func(t *testing.T) {
		for _, c := range []struct{ bs, unit int }{{512, 512}, {1024, 512}, {4096, 512}, {4096, 4096}} {
			seeds := 40 * histories()
			if testing.Short() {
				seeds = 4
			}
			for range seeds {
				seed := rand.Uint64()
				t.Run(fmt.Sprintf("%d/%d/seed=%d", c.bs, c.unit, seed), func(t *testing.T) {
					t.Parallel()
					total.Add(deathThenCrash(t, seed, c.bs, c.unit))
				})
			}
		}
	})
	t.Logf("%d states after a death and a crash", total.Load())
}

func deathThenCrash(t *testing.T, seed uint64, bs, unit int) (states int64) {
	const blocks = 32
	m := newModel(t, seed, bs, blocks, unit)
	tap := newTap(m.dev)
	e, err := bow.Open(tap, bs)
	if err != nil {
		t.Fatal(err)
	}
	m.engine = e
	m.checkpoint(0.5)
	if e.Stats().State != bow.Checkpoint {
		t.Skip("nothing is free with this seed")
	}
	recorded := m.dev.Record()
	left := m.rng.IntN(40)
	tap.intercept(func(o op) error {
		if left--; left < 0 {
			return errBroken
		}
		return nil
	})
	for i := 0; left > 0 && i < 50; i++ {
		start, end := m.someRange()
		p := bytes.Repeat([]byte{byte(i)}, (end-start)*bs)
		buf := blockdev.Buffer(len(p))
		copy(buf, p)
		_, err := e.WriteAt(buf, int64(start*bs))
		m.note("write [%d, %d): %v", start, end, err)
	}
	died := recorded.Len()
	m.note("the process dies after operation %d", died)
	e, err = bow.Open(m.dev, bs)
	if err != nil {
		m.fatal("carrying on: %v", err)
	}
	m.engine = e
	m.now = m.read(e)
	for i, inUse := range m.inUse {
		m.undefined[i] = !inUse
	}
	for range 3 {
		m.undemanding()
	}
	for state, dev := range recorded.Explore(seed, 6) {
		if state.Cut < died {
			continue
		}
		states++
		again, err := bow.Open(dev.Clone(), bs)
		if err != nil {
			m.fatal("%s: carrying on: %v", state, err)
		}
		if err := again.Check(); err != nil {
			m.fatal("%s: %v", state, err)
		}
		if _, err := restore.Restore(t.Context(), dev, restore.Options{}); err != nil {
			m.fatal("%s: restore: %v", state, err)
		}
		m.wantKept(m.read(dev), state)
	}
	return states
}

// crashAgain carries on with dev, does something, and cuts the power at every
// operation of that. It returns the number of states tried.
func (r *crashRun) crashAgain(state memdev.State, dev *memdev.Device, seed uint64) (states int64) {
	r.t.Helper()
	recorded := dev.Record()
	e, err := bow.Open(dev, r.bs)
	if err != nil {
		r.fatal("%s: %v", state, err)
	}
	m := &model{
		t: r.t, rng: rand.New(rand.NewPCG(seed, 3)),
		dev: dev, engine: e, bs: r.bs, blocks: r.blocks, next: r.next,
		now: make([]byte, len(r.now)), undefined: make([]bool, r.blocks), kept: r.kept, inUse: r.inUse,
		history: append(slices.Clone(r.history), note{"%s; carried on", []any{state}}),
	}
	if _, err := e.ReadAt(m.now, 0); err != nil {
		m.fatal("reading: %v", err)
	}
	for i, inUse := range r.inUse {
		m.undefined[i] = !inUse // until it is written
	}
	for range 4 {
		m.undemanding()
	}
	if err := e.Flush(); err != nil {
		m.fatal("flush: %v", err)
	}
	flushed, now, undefined := recorded.Len(), slices.Clone(m.now), slices.Clone(m.undefined)
	written := make([]bool, r.blocks)
	for range 3 {
		start, end := m.someRange()
		m.fill(start, end)
		for i := start; i < end; i++ {
			written[i] = true
		}
	}
	for again, dev := range recorded.Explore(seed, 8) {
		states++
		m := *m
		m.history = append(slices.Clone(m.history), note{"%s", []any{again}})
		if _, err := bowlog.Load(dev); err != nil {
			m.fatal("the checkpoint is gone: %v", err)
		}
		restored := dev.Clone()
		if _, err := restore.Restore(context.Background(), restored, restore.Options{}); err != nil {
			m.fatal("restore: %v", err)
		}
		m.wantKept(m.read(restored), "restore")
		e, err := bow.Open(dev, r.bs)
		if err != nil {
			m.fatal("carrying on for the second time: %v", err)
		}
		m.dev, m.engine = dev, e
		m.checkInvariants()
		got := m.read(e)
		for i := range r.blocks {
			a, b := i*r.bs, (i+1)*r.bs
			if again.Cut >= flushed && !written[i] && !undefined[i] && string(got[a:b]) != string(now[a:b]) {
				m.fatal("block %d lost what was flushed", i)
			}
		}
		m.now, m.undefined = got, slices.Clone(undefined)
		for range 3 {
			m.undemanding()
		}
		m.checkInvariants()
		m.checkRollback()
	}
	return states
}
