package bow_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/bow"
)

// TestHostFull: ENOSPC of the device below, a thin image on a full disk, is not taken
// for want of space for backups: the checkpoint is not ended for it.
func TestHostFull(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 256, 128)
		f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{CommitWhenFull: true}))
		id := f.engine.Stats().ID
		// The n-th operation of a first overwrite fails, for all n.
		for n := int32(1); ; n++ {
			var seen atomic.Int32
			f.tap.intercept(func(o op) error {
				if o.kind == 'w' && seen.Add(1) == n {
					return unix.ENOSPC
				}
				return nil
			})
			err := f.write(int64(n), 99)
			f.tap.intercept(nil)
			s := f.engine.Stats()
			if s.State != bow.Checkpoint || s.ID != id || s.OutOfSpace != 0 {
				t.Fatalf("write %d: %+v", n, s)
			}
			f.wantRollback(128)
			if err == nil {
				if seen.Load() >= n {
					t.Errorf("write %d: nobody is told", n)
				}
				if n < 3 {
					t.Fatalf("a first overwrite is only %d writes", n-1)
				}
				break
			}
			if !errors.Is(err, unix.ENOSPC) || errors.Is(err, bow.ErrNoSpace) {
				t.Errorf("write %d: %v", n, err)
			}
			f.must(f.write(int64(n), 98))
			f.wantRollback(128)
		}
		if err := f.engine.Flush(); err != nil {
			f.must(f.engine.Flush()) // a flush of the log had failed
		}
	})
}
