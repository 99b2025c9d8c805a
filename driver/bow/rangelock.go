package bow

// rangeLocks makes requests that overlap wait for each other, and no others. A
// request locks one range of blocks, and block 0 besides if it may move the live
// content of that; it gets all of it at once or waits, and waits for nothing
// else while it holds it but the log writer and blocks that are Reserved, whose
// owners wait for no lock. So there is no deadlock.
//
// Locks are granted in the order of their requests as far as they overlap. All
// fields are guarded by Engine.mu.
type rangeLocks struct {
	held    []*rangeLock
	waiting []*rangeLock
}

type rangeLock struct {
	start, end int64 // blocks
	zero       bool  // block 0 as well
	granted    chan struct{}
}

func (a *rangeLock) conflicts(b *rangeLock) bool {
	if a.start < b.end && b.start < a.end {
		return true
	}
	return a.zero && (b.zero || b.start == 0) || b.zero && a.start == 0
}

func conflictsAny(l *rangeLock, others []*rangeLock) bool {
	for _, o := range others {
		if l.conflicts(o) {
			return true
		}
	}
	return false
}

// acquire grants l or puts it in the queue, and tells which.
func (r *rangeLocks) acquire(l *rangeLock) bool {
	if r.tryAcquire(l) {
		return true
	}
	l.granted = make(chan struct{})
	r.waiting = append(r.waiting, l)
	return false
}

// tryAcquire grants l if that can be done at once, and tells whether it has.
func (r *rangeLocks) tryAcquire(l *rangeLock) bool {
	if conflictsAny(l, r.held) || conflictsAny(l, r.waiting) {
		return false
	}
	r.held = append(r.held, l)
	return true
}

// release gives l back and grants what waited for it.
func (r *rangeLocks) release(l *rangeLock) {
	for i, h := range r.held {
		if h == l {
			last := len(r.held) - 1
			r.held[i], r.held[last] = r.held[last], nil
			r.held = r.held[:last]
			break
		}
	}
	if len(r.waiting) == 0 {
		return
	}
	still := r.waiting[:0]
	for _, w := range r.waiting {
		if conflictsAny(w, r.held) || conflictsAny(w, still) {
			still = append(still, w)
			continue
		}
		r.held = append(r.held, w)
		close(w.granted)
	}
	clear(r.waiting[len(still):])
	r.waiting = still
}
