package pool

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// allocateStep is how much is allocated between two looks at the context.
	allocateStep = 4 << 30
	// copyStep is how much is read and written at a time.
	copyStep = 1 << 20
	// dirtyMax is how much may be written and not yet on the disk: what is
	// waiting there slows down everybody else on the node.
	dirtyMax = 64 << 20
)

// allocate takes the space of [from, to), where nothing is yet. It does not change
// the size of the file, but file systems that cannot do that have zeros written,
// which does.
func allocate(ctx context.Context, f *os.File, from, to int64) error {
	err := fallocate(ctx, f, 0, from, to)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return writeZeros(ctx, f, from, to)
	}
	return err
}

// zero makes [0, size) read as zeros again: as a hole if thin, or else allocated.
func zero(ctx context.Context, f *os.File, size int64, thin bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if thin {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := fallocate(ctx, f, mode, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return writeZeros(ctx, f, 0, size)
	}
	return err
}

// fallocate does to [from, to) what mode says, and never changes the size.
func fallocate(ctx context.Context, f *os.File, mode uint32, from, to int64) error {
	for off := from; off < to; off += allocateStep {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := retry(func() error {
			return unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, min(allocateStep, to-off))
		})
		if err != nil {
			return os.NewSyscallError("fallocate", err)
		}
	}
	return nil
}

// share makes dst, an empty file, a copy of src that has all extents in common with
// it. It tells whether the file system can do that.
func share(dst, src *os.File) (bool, error) {
	err := retry(func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) })
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.ENOSYS, unix.EXDEV} {
		if errors.Is(err, e) {
			return false, nil
		}
	}
	return err == nil, os.NewSyscallError("FICLONE", err)
}

// copyData writes to dst whatever src has that is not a hole.
func copyData(ctx context.Context, dst, src *os.File, progress func(done, total int64)) error {
	// What is in the memory of unwritten extents counts as data. So nothing may be,
	// and nothing be read ahead.
	forget(src)
	_ = unix.Fadvise(int(src.Fd()), 0, 0, unix.FADV_RANDOM)
	var total, done int64
	err := eachData(src, func(from, to int64) error {
		total += to - from
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	progress(0, total)
	w := writer{ctx: ctx, f: dst}
	p := make([]byte, copyStep)
	err = eachData(src, func(from, to int64) error {
		for from < to {
			p := p[:min(copyStep, to-from)]
			if _, err := src.ReadAt(p, from); err != nil {
				return err
			}
			if err := w.write(p, from); err != nil {
				return err
			}
			if w.dirty == 0 {
				forget(src)
			}
			from += int64(len(p))
			done += int64(len(p))
			progress(min(done, total), total)
		}
		return nil
	})
	forget(src)
	if err != nil {
		return err
	}
	progress(total, total)
	return w.flush()
}

// eachData calls f for each range of the file that is not a hole.
func eachData(file *os.File, f func(from, to int64) error) error {
	for at := int64(0); ; {
		from, err := file.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = file.Seek(from, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := f(from, at); err != nil {
			return err
		}
	}
}

func writeZeros(ctx context.Context, f *os.File, from, to int64) error {
	w := writer{ctx: ctx, f: f}
	p := make([]byte, copyStep)
	for ; from < to; from += copyStep {
		if err := w.write(p[:min(copyStep, to-from)], from); err != nil {
			return err
		}
	}
	return w.flush()
}

// writer writes much without filling the memory with it.
type writer struct {
	ctx   context.Context
	f     *os.File
	dirty int
}

func (w *writer) write(p []byte, off int64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if n, err := w.f.WriteAt(p, off); err != nil {
		return err
	} else if n < len(p) {
		return io.ErrShortWrite
	}
	if w.dirty += len(p); w.dirty < dirtyMax {
		return nil
	}
	return w.flush()
}

func (w *writer) flush() error {
	w.dirty = 0
	if err := retry(func() error { return unix.Fdatasync(int(w.f.Fd())) }); err != nil {
		return os.NewSyscallError("fdatasync", err)
	}
	forget(w.f)
	return nil
}

// forget drops what the memory has of the file and the disk has too. Others have
// more use for it than one who reads or writes everything once.
func forget(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
