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
	l, ok := e.nothingToSave(s.Offset/e.blockSize, (s.Offset+s.Length)/e.blockSize)
	if !ok {
		e.transition.RUnlock()
		return false
	}
	if l != nil {
		s.Held = l
	}
	return true
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
