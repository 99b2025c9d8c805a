package bow_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// failLog makes every write of the log fail before it reaches the device.
func (f *fixture) failLog() {
	failed := errors.New("injected")
	f.tap.intercept(func(o op) error {
		if o.kind == 'w' && o.off == 0 {
			return failed
		}
		return nil
	})
}

// wantTakenOver fails if a successor does not read block 0 as full of b.
func (f *fixture) wantTakenOver(mem []byte, b byte) {
	f.t.Helper()
	e, err := bow.TakeOver(f.mem.Clone(), int(f.bs), bytes.Clone(mem))
	f.must(err)
	f.want(e, 0, b)
}

// TestBlock0WhileUnsettled writes block 0 when the log on disk may lead to where it
// was before. What was acknowledged must not be lost with the process.
func TestBlock0WhileUnsettled(t *testing.T) {
	write := func(f *fixture, b byte) error { return f.write(0, b) }
	zero := func(f *fixture, b byte) error {
		if err := f.engine.WriteZeroes(0, f.bs); err != nil {
			return err
		}
		return f.write(0, b)
	}
	for name, write := range map[string]func(*fixture, byte) error{"write": write, "zero": zero} {
		for _, bs := range []int{512, 4096} {
			t.Run(name, func(t *testing.T) {
				f := newFixture(t, bs, 64, 16)
				mem := make([]byte, bow.MemorySize(64))
				f.engine.Remember(mem)
				f.checkpoint()
				head, err := bowlog.Load(f.mem)
				f.must(err)
				f.failLog()
				// The place of the live block 0, which therefore moves.
				if err := f.write(int64(head.Sector0)*512/f.bs, 99); err == nil {
					t.Fatal("written without a log")
				}
				is := byte(1)
				if err := write(f, 77); err == nil {
					is = 77
				}
				f.wantTakenOver(mem, is)

				f.tap.intercept(nil)
				f.must(write(f, 78))
				f.wantTakenOver(mem, 78)
			})
		}
	}
}

// TestBlock0OfHalfOpened does so when a checkpoint could neither be opened nor be
// given up.
func TestBlock0OfHalfOpened(t *testing.T) {
	f := newFixture(t, 512, 64, 16)
	mem := make([]byte, bow.MemorySize(64))
	f.engine.Remember(mem)
	f.failLog()
	if err := f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{}); err == nil {
		t.Fatal("opened without a log")
	}
	is := byte(1)
	if err := f.write(0, 77); err == nil {
		is = 77
	}
	f.wantTakenOver(mem, is)
	f.tap.intercept(nil)
	f.must(f.write(0, 78))
	f.wantTakenOver(mem, 78)
}
