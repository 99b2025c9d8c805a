package mapping

import (
	"sync"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Failures are the operations of a backing device that failed.
type Failures struct {
	Count uint64    // since the mapping began in this process
	Last  error     // what the last one failed with; nil if none has
	At    time.Time // when that was
}

// watched is a backing device whose failures are counted: those of requests and
// those of backups and the log, which no request need fail for. What only the engine
// refuses, for want of space for backups above all, never comes here.
type watched struct {
	*blockdev.File
	mu       sync.Mutex
	failures Failures // guarded by mu
}

// note counts err, if it is one, and returns it.
func (w *watched) note(err error) error {
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failures = Failures{Count: w.failures.Count + 1, Last: err, At: time.Now()}
	}
	return err
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.File.ReadAt(p, off)
	return n, w.note(err)
}

func (w *watched) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.File.WriteAt(p, off)
	return n, w.note(err)
}

func (w *watched) Flush() error { return w.note(w.File.Flush()) }

func (w *watched) Discard(off, length int64) error { return w.note(w.File.Discard(off, length)) }

func (w *watched) WriteZeroes(off, length int64) error {
	return w.note(w.File.WriteZeroes(off, length))
}

// Failures are the operations of the backing device that failed.
func (m *Mapping) Failures() Failures {
	m.dev.mu.Lock()
	defer m.dev.mu.Unlock()
	return m.dev.failures
}
