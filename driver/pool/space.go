package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
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
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(p.lock.Fd()), &st) }); err != nil {
		return Capacity{}, err
	}
	owed, err := p.owed()
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{
		Total:     int64(st.Blocks) * st.Bsize,
		Available: max(0, int64(st.Bavail)*st.Bsize-owed),
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

// owed returns how many bytes volumes that are not thin may still ask of the file
// system: for holes, and for extents that a clone has in common with others. If n
// files have an extent in common, n-1 of them may need another, and n-1 of them at
// least are clones.
func (p *Pool) owed() (sum int64, err error) {
	p.promises.Lock()
	sum = p.promises.bytes
	p.promises.Unlock()
	err = p.each(func(id string, r *record, err error) {
		if err != nil || r.Thin {
			return
		}
		image := filepath.Join(p.volumeDir(id), imageFile)
		var st unix.Stat_t
		if err := retry(func() error { return unix.Stat(image, &st) }); err == nil {
			sum += max(0, r.Size-st.Blocks*512)
		}
		if r.Shares {
			sum += sharedBytes(image, r.Size)
		}
	})
	return sum, err
}

// sharedBytes returns how much of the image other files have in common with it; all
// if that cannot be found out.
func sharedBytes(image string, size int64) (sum int64) {
	f, err := os.Open(image)
	if err != nil {
		return size
	}
	defer f.Close()
	var m struct {
		linuxabi.ExtentMap
		extents [256]linuxabi.FileExtent
	}
	for at := uint64(0); at < uint64(size); {
		m.ExtentMap = linuxabi.ExtentMap{Start: at, Length: uint64(size) - at, Count: uint32(len(m.extents))}
		err := retry(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), linuxabi.FSExtentMap, uintptr(unsafe.Pointer(&m)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if err != nil {
			return size
		}
		if m.Mapped == 0 {
			break
		}
		for _, e := range m.extents[:m.Mapped] {
			if e.Flags&linuxabi.ExtentShared != 0 {
				sum += int64(e.Length)
			}
			at = e.Logical + e.Length
		}
	}
	return min(sum, size)
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
