package pool

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Capacity says how much room there is, in bytes.
type Capacity struct {
	// Total is the size of the file system of the pool.
	Total int64
	// Available is what is free of it and not promised to volumes.
	Available int64
	// MaxVolume is the size of the largest volume, not thin, that can be made now;
	// 0 if none can.
	MaxVolume int64
}

// A file system needs more for a file than the content: at most four bytes for
// each block of 4096, and something for the directory and the record.
// What was promised by Capacity fits even if a little has gone since.
const (
	overheadShare = 1024
	overheadFixed = 1 << 20
	overheadGone  = overheadFixed / 2
)

// allocating is the name of the lock of those who take space, so that they do not
// take what another has been promised a moment before.
const allocating = ".allocating"

// Capacity tells how much room there is.
func (p *Pool) Capacity() (Capacity, error) {
	c, err := p.capacity()
	if err != nil {
		return Capacity{}, fmt.Errorf("capacity of the pool: %w", err)
	}
	return c, nil
}

func (p *Pool) capacity() (Capacity, error) {
	if err := p.Available(); err != nil {
		return Capacity{}, err
	}
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(p.lock.Fd()), &st) }); err != nil {
		return Capacity{}, err
	}
	owed, err := p.owed()
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{
		Total:     int64(st.Blocks) * st.Frsize,
		Available: max(0, int64(st.Bavail)*st.Frsize-owed),
	}
	if n := room(c.Available); n >= MinSize {
		c.MaxVolume = n
	}
	return c, nil
}

// room returns how much content fits into so many bytes of the file system.
func room(available int64) int64 {
	return (available - overheadFixed) / (overheadShare + 1) * overheadShare &^ (Alignment - 1)
}

// take calls f, which takes size bytes of the file system, if there is room.
func (p *Pool) take(ctx context.Context, size int64, f func() error) error {
	unlock, err := p.locks.lock(ctx, allocating, "")
	if err != nil {
		return err
	}
	defer unlock()
	c, err := p.capacity()
	if err != nil {
		return err
	}
	if size > room(c.Available+overheadGone) {
		return fmt.Errorf("%w: %d bytes are wanted and %d available", ErrFull, size, c.Available)
	}
	return f()
}

// promise adds to what is owed, for a clone that is not yet in its place.
func (p *Pool) promise(size int64) {
	p.promises.Lock()
	defer p.promises.Unlock()
	p.promises.bytes += size
}

// fullIfNoSpace makes ErrFull of what file systems say when there is no room.
func fullIfNoSpace(err error) error {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, e) && !errors.Is(err, ErrFull) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	return err
}
