package bow

import (
	"sync"
	"sync/atomic"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// flusher is the device below an engine, with one flush at a time.
//
// A flush that fails may have dropped anything that was written before it, and only one
// of several at the same time may be told so: the next one succeeds. So a failure is
// counted before another flush begins or any that waited for it returns, and whoever has
// written something and then sees that the count is as before knows that it was not
// dropped. Those who come while a flush is under way share the next one.
type flusher struct {
	blockdev.Device
	failures atomic.Int64
	failed   func() // called for each failure, after it was counted

	mu         sync.Mutex
	ready      sync.Cond // a flush has ended
	running    bool      // these are guarded by mu
	begun      int64     // flushes
	ended      int64
	lastFailed int64 // number of the last one that failed, from 1
	err        error // its error
}

func newFlusher(dev blockdev.Device, failed func()) *flusher {
	f := &flusher{Device: dev, failed: failed}
	f.ready.L = &f.mu
	return f
}

// Flush implements blockdev.Device.
func (f *flusher) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	mine := f.begun + 1
	for f.ended < mine {
		if f.running {
			f.ready.Wait()
			continue
		}
		f.running = true
		f.begun++
		f.mu.Unlock()
		err := f.Device.Flush()
		if err != nil {
			f.failures.Add(1)
			f.failed()
		}
		f.mu.Lock()
		f.running = false
		f.ended = f.begun
		if err != nil {
			f.lastFailed, f.err = f.ended, err
		}
		f.ready.Broadcast()
	}
	if f.lastFailed >= mine {
		return f.err
	}
	return nil
}

// failedSince tells whether a flush has failed since the number of failures was that
// given.
func (f *flusher) failedSince(failures int64) bool { return f.failures.Load() != failures }
