package pool

import (
	"context"
	"sync"
)

// locks are locks by name, each for one writer or several readers.
type locks struct {
	mu      sync.Mutex
	held    map[string]int // -1: by a writer; n > 0: by n readers
	changed chan struct{}  // closed when one is released, if somebody waits
}

// lock waits for the lock of write as its writer, and of read as a reader if that
// is not empty. It takes both at once or none, so that nobody waits for another
// who waits for him. They must not be the same.
func (l *locks) lock(ctx context.Context, write, read string) (unlock func(), err error) {
	for {
		changed, ok := l.try(write, read)
		if ok {
			return func() { l.unlock(write, read) }, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (l *locks) try(write, read string) (changed <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[write] != 0 || read != "" && l.held[read] < 0 {
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		return l.changed, false
	}
	if l.held == nil {
		l.held = make(map[string]int)
	}
	l.held[write] = -1
	if read != "" {
		l.held[read]++
	}
	return nil, true
}

func (l *locks) unlock(write, read string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, write)
	if read != "" {
		if l.held[read]--; l.held[read] == 0 {
			delete(l.held, read)
		}
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
