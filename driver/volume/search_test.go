package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSearch: a search that was ended is gone on with where it was, and one in a
// large file that is only allocated takes no time.
func TestSearch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	const size = 3 * searchStep
	content := make([]byte, size)
	content[size-1] = 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m := &Manager{ctx: ended}
	j := m.startSearch(path, 0)
	<-j.done
	if !errors.Is(j.err, context.Canceled) || !j.failed() || j.looked.Load() != 0 {
		t.Errorf("%v, %d", j.err, j.looked.Load())
	}
	m = &Manager{ctx: t.Context()}
	for range 2 {
		j = m.startSearch(path, j.looked.Load())
		<-j.done
		if !errors.Is(j.err, ErrDamaged) || j.looked.Load() != 2*searchStep || j.size.Load() != size {
			t.Errorf("%v, %d of %d", j.err, j.looked.Load(), j.size.Load())
		}
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	j = m.startSearch(path, 0)
	<-j.done
	if took := time.Since(began); j.err != nil || took > time.Second {
		t.Errorf("%v, %v", j.err, took)
	}
	m.closed = true
	if j = m.startSearch(path, 0); !errors.Is(j.err, ErrBusy) || !j.failed() {
		t.Error(j.err)
	}
	m.work.Wait()
}
