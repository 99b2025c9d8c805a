package bow

import (
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// ReadAt implements blockdev.Device. Only block 0 can be elsewhere than at its
// own place.
func (e *Engine) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), e.Size(), int(e.blockSize)); err != nil || len(p) == 0 {
		return 0, err
	}
	if off != 0 {
		return e.dev.ReadAt(p, off)
	}
	e.transition.RLock()
	defer e.transition.RUnlock()
	if e.state != Checkpoint {
		return e.dev.ReadAt(p, off)
	}
	l := e.lock(0, 1)
	defer e.unlock(l)
	if n, err := e.dev.ReadAt(p[:e.blockSize], e.sector0()); err != nil {
		return n, err
	}
	n, err := e.dev.ReadAt(p[e.blockSize:], e.blockSize)
	return n + int(e.blockSize), err
}

// WriteAt implements blockdev.Device. With ErrNoSpace, and when a backup or its
// log entry could not be written, nothing of p has been written.
func (e *Engine) WriteAt(p []byte, off int64) (n int, err error) {
	if err := blockdev.CheckRange(off, int64(len(p)), e.Size(), int(e.blockSize)); err != nil || len(p) == 0 {
		return 0, err
	}
	for {
		if n, err = e.writeAt(p, off); err == nil || !e.again(&err) {
			return n, err
		}
	}
}

// again tells whether a request that failed with *err is to be tried again because
// the checkpoint was in its way and is gone. If that could not be ended, *err says
// why.
func (e *Engine) again(err *error) bool {
	if !errors.Is(*err, ErrNoSpace) {
		return false
	}
	again, cerr := e.commitWhenFull()
	if cerr != nil {
		*err = fmt.Errorf("ending the checkpoint for want of space: %w", cerr)
		return false
	}
	if again {
		e.rememberEnd()
	}
	return again
}

func (e *Engine) writeAt(p []byte, off int64) (int, error) {
	e.transition.RLock()
	defer e.transition.RUnlock()
	if e.state != Checkpoint {
		e.noteWrite(off, int64(len(p)))
		return e.dev.WriteAt(p, off)
	}
	var n int
	err := e.overwrite(off, int64(len(p)), func() (err error) {
		if off == 0 {
			if err := e.log.settleBlock0(); err != nil {
				return err
			}
			if n, err = e.dev.WriteAt(p[:e.blockSize], e.sector0()); err != nil || n == len(p) {
				return err
			}
		}
		m, err := e.dev.WriteAt(p[n:], off+int64(n))
		n += m
		return err
	})
	return n, err
}

// WriteZeroes implements blockdev.Device. It is a write in every respect.
func (e *Engine) WriteZeroes(off, length int64) error {
	if err := blockdev.CheckRange(off, length, e.Size(), int(e.blockSize)); err != nil || length == 0 {
		return err
	}
	for {
		err := e.writeZeroes(off, length)
		if err == nil || !e.again(&err) {
			return err
		}
	}
}

func (e *Engine) writeZeroes(off, length int64) error {
	e.transition.RLock()
	defer e.transition.RUnlock()
	if e.state != Checkpoint {
		e.noteWrite(off, length)
		return e.dev.WriteZeroes(off, length)
	}
	return e.overwrite(off, length, func() error {
		rest := off
		if off == 0 {
			if err := e.log.settleBlock0(); err != nil {
				return err
			}
			if err := e.dev.WriteZeroes(e.sector0(), e.blockSize); err != nil {
				return err
			}
			rest = e.blockSize
		}
		return e.dev.WriteZeroes(rest, off+length-rest)
	})
}

// Discard implements blockdev.Device. In Trim it makes the range free and is not
// passed down. In Checkpoint it copies nothing: what was in use at the checkpoint
// stays where it is until it is overwritten, what was free and has been written
// is free again. In Committed it is passed down.
func (e *Engine) Discard(off, length int64) error {
	if err := blockdev.CheckRange(off, length, e.Size(), int(e.blockSize)); err != nil || length == 0 {
		return err
	}
	e.transition.RLock()
	defer e.transition.RUnlock()
	start, end := off/e.blockSize, (off+length)/e.blockSize
	if e.state == Checkpoint {
		// A write under way may still land; its block must not get a backup.
		l := e.lock(start, end)
		defer e.unlock(l)
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, t := range []Type{Written, Stale} {
			e.setAllLocked(e.extentsLocked(start, end, t), Free)
		}
		return nil
	}
	e.mu.Lock()
	// Block 0 is never free: it will hold the log.
	e.mu.types.Set(max(start, 1), max(end, 1), Free)
	e.mu.Unlock()
	if e.state == Committed {
		return e.dev.Discard(off, length)
	}
	return nil
}

// Flush implements blockdev.Device.
func (e *Engine) Flush() error {
	// What the user wrote to a place that only the log leads to is durable
	// when the log is.
	if err := e.log.settle(); err != nil {
		return err
	}
	return e.flushForUser()
}

// flushForUser flushes the device below for those who wrote to this one.
func (e *Engine) flushForUser() error {
	// Not while the state changes, which is sure of what it has written itself.
	e.transition.RLock()
	defer e.transition.RUnlock()
	failures := e.dev.failures.Load()
	err := e.dev.Flush()
	now := e.dev.failures.Load()
	if told := e.told.Swap(now); err == nil && told != now {
		err = errLostFlush
	}
	if err != nil {
		return err
	}
	e.forgetFailure(failures)
	return nil
}

// noteWrite takes a range that is about to be written off the free ones, in Trim
// and Committed.
func (e *Engine) noteWrite(off, length int64) {
	start, end := off/e.blockSize, (off+length)/e.blockSize
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.mu.scanning:
		e.mu.types.Set(start, end, Written)
	case e.mu.types.Total(Free.Class()) == 0:
	default:
		if x := e.mu.types.Get(start); x.Value != Free && x.End >= end {
			return
		}
		e.setAllLocked(e.extentsLocked(start, end, Free), Unchanged)
	}
}

// extentsLocked returns what has type t in [start, end).
func (e *Engine) extentsLocked(start, end int64, t Type) []extent {
	var list []extent
	for x := range e.mu.types.Extents(start, end) {
		if x.Value == t {
			list = append(list, extent{start: x.Start, end: x.End})
		}
	}
	return list
}

// lock waits until no other request holds what overlaps with [start, end), and
// holds that. If the live content of block 0 is in there, block 0 is held too,
// so that it can be moved.
func (e *Engine) lock(start, end int64) *rangeLock {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := &rangeLock{start: start, end: end}
	for {
		l.zero = start <= e.mu.sector0 && e.mu.sector0 < end
		if !e.mu.locks.acquire(l) {
			e.mu.Unlock()
			<-l.granted
			e.mu.Lock()
		}
		// It may have moved in here while we waited.
		if moved := start <= e.mu.sector0 && e.mu.sector0 < end; !moved || l.zero {
			return l
		}
		e.mu.locks.release(l)
	}
}

func (e *Engine) unlock(l *rangeLock) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.locks.release(l)
}

// sector0 returns the offset of the live content of block 0, in Checkpoint. The
// caller holds a lock on block 0.
func (e *Engine) sector0() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.sector0 * e.blockSize
}
