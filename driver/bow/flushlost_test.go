package bow_test

import (
	"errors"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow"
)

// TestFailedFlushOutlivesProcess: a flush has failed, the process dies before the
// user can have heard of it, and the successor says so, once.
func TestFailedFlushOutlivesProcess(t *testing.T) {
	failed := errors.New("injected")
	// fail makes the next flush fail.
	fail := func(f *fixture) {
		once := true
		f.tap.intercept(func(o op) error {
			if o.kind == 'f' && once {
				once = false
				return failed
			}
			return nil
		})
	}
	for name, c := range map[string]struct {
		do   func(*fixture)
		lost bool
	}{
		"none": {do: func(f *fixture) { f.must(f.engine.Flush()) }},
		"of the log": {lost: true, do: func(f *fixture) {
			fail(f)
			if err := f.write(3, 99); err == nil {
				t.Error("written")
			}
		}},
		"of the log, then a commit": {lost: true, do: func(f *fixture) {
			fail(f)
			if err := f.write(3, 99); err == nil {
				t.Error("written")
			}
			f.must(f.engine.Commit())
		}},
		"of the log, and the user heard": {do: func(f *fixture) {
			fail(f)
			if err := f.write(3, 99); err == nil {
				t.Error("written")
			}
			if err := f.engine.Flush(); err == nil {
				t.Error("flushed")
			}
			f.must(f.engine.Flush())
		}},
		"of the user": {lost: true, do: func(f *fixture) {
			fail(f)
			if err := f.engine.Flush(); err == nil {
				t.Error("flushed")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, 512, 64, 16)
			mem := make([]byte, bow.MemorySize(64))
			f.engine.Remember(mem)
			f.checkpoint()
			c.do(f)
			for i := range 3 { // one successor after the other
				e, err := bow.TakeOver(f.mem.Clone(), 512, mem)
				f.must(err)
				lost := c.lost && i < 2
				if lost {
					if err := e.Flush(); err == nil {
						t.Errorf("successor %d does not tell", i)
					}
				}
				if i == 0 {
					continue // and it dies as well
				}
				if err := e.Flush(); err != nil {
					t.Errorf("successor %d: %v", i, err)
				}
			}
		})
	}
}
