package bow

import "github.com/bowline-csi/bowline/driver/blockdev"

// BeginShortcut implements blockdev.Shortcutter: for reads and writes that are passed
// through, and writes for which nothing has to be saved. It follows ReadAt and
// WriteAt, but where those wait it refuses.
func (e *Engine) BeginShortcut(s *blockdev.Shortcut) bool {
	below, ok := e.dev.Device.(blockdev.Shortcutter)
	if !ok || blockdev.CheckRange(s.Offset, s.Length, e.Size(), int(e.blockSize)) != nil || !below.BeginShortcut(s) {
		return false
	}
	if e.beginShortcut(s) {
		return true
	}
	below.EndShortcut(s)
	return false
}

func (e *Engine) beginShortcut(s *blockdev.Shortcut) bool {
	s.Held = nil
	if !s.Write {
		return s.Offset != 0 // which is at another place perhaps
	}
	// What changes the state waits for all writes under way. Whoever waited for it
	// here could be the one to end them.
	if !e.transition.TryRLock() {
		return false
	}
	if e.state != Checkpoint {
		e.noteWrite(s.Offset, s.Length)
		return true
	}
	l := e.tryLockWritten(s.Offset/e.blockSize, (s.Offset+s.Length)/e.blockSize)
	if l == nil {
		e.transition.RUnlock()
		return false
	}
	s.Held = l
	return true
}

// tryLockWritten locks [start, end) if it has been written since the checkpoint, so
// that it can be overwritten again, and nobody else holds anything of it. Otherwise it
// returns nil. Block 0 it leaves to others.
func (e *Engine) tryLockWritten(start, end int64) *rangeLock {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.mu.types.Get(start)
	if start == 0 || x.End < end || x.Value != Changed && x.Value != Written {
		return nil
	}
	l := &rangeLock{start: start, end: end}
	if !e.mu.locks.tryAcquire(l) {
		return nil
	}
	return l
}

// EndShortcut implements blockdev.Shortcutter.
func (e *Engine) EndShortcut(s *blockdev.Shortcut) {
	e.dev.Device.(blockdev.Shortcutter).EndShortcut(s)
	if !s.Write {
		return
	}
	if l, ok := s.Held.(*rangeLock); ok {
		e.unlock(l)
	}
	e.transition.RUnlock()
}
