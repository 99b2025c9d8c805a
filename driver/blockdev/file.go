package blockdev

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned by an exclusive Open of something that is in use.
var ErrInUse = errors.New("in use")

// Flag changes what Open does.
type Flag int

const (
	// ReadOnly opens without the right to write. Everything that would change
	// the content fails with EROFS.
	ReadOnly Flag = 1 << iota

	// Exclusive makes Open fail with ErrInUse if there is another exclusive
	// user, and keeps others from becoming one. For a block device those are
	// all of the kernel's (file systems, loop devices, device mapper, swap, who
	// opens it with O_EXCL); for a regular file those who open it with this
	// flag or hold any flock on it.
	Exclusive

	// Buffered does I/O through the page cache, in blocks of 512 bytes
	// whatever direct I/O would need. It is for content in blocks smaller than
	// that.
	Buffered

	// KeepAllocated is for regular files that were allocated beforehand: neither
	// Discard nor WriteZeroes gives space back, not even for a moment, so
	// writing the range again cannot run out of space. Discard does nothing
	// where the file system cannot do that; where it can, holes are filled.
	KeepAllocated
)

// File is a regular file or a block device of the kernel as a Device. Its size
// is rounded down to whole blocks, and a regular file never grows or shrinks by
// what is done to it here.
//
// I/O is direct, past the page cache, wherever the file system can do that. The
// block size then is the alignment that direct I/O needs and otherwise 512
// bytes. Memory may have any alignment, but only with that of Buffer it is sure
// not to be copied.
//
// Each request but a Shortcut occupies a thread of the process until the kernel has
// done it.
type File struct {
	path     string
	fd       int
	device   bool // a block device, not a regular file
	readOnly bool
	keep     bool // KeepAllocated
	inPlace  bool // the file system zeroes ranges without giving up their space
	locked   bool // holds the flock
	align    alignment
	size     atomic.Int64
}

// Open opens the regular file or block device at path.
func Open(path string, flags ...Flag) (*File, error) {
	var all Flag
	for _, flag := range flags {
		all |= flag
	}
	f, err := open(path, all)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return f, nil
}

// Cached opens f, whatever has become of its path, once more for reading through the
// page cache. What is read there must not be written through f in the meantime.
func (f *File) Cached() (*File, error) {
	c, err := open(fmt.Sprintf("/proc/self/fd/%d", f.fd), ReadOnly|Buffered)
	if err != nil {
		return nil, fmt.Errorf("opening %s again: %w", f.path, err)
	}
	c.path = f.path
	// What is cached from before has not been used by anybody since.
	if err := unix.Fadvise(c.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: emptying the cache: %w", f.path, err), c.Close())
	}
	return c, nil
}

func open(path string, flags Flag) (_ *File, err error) {
	// What is neither a file nor a block device is not even opened: for some
	// things that alone has an effect, or takes forever.
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, err
	}
	f := &File{path: path, readOnly: flags&ReadOnly != 0, keep: flags&KeepAllocated != 0}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		f.device = true
	default:
		return nil, errors.New("neither a regular file nor a block device")
	}
	exclusive := flags&Exclusive != 0
	direct, err := f.openDescriptor(flags)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(f.fd))
		}
	}()
	// O_EXCL is all that a block device needs. A flock would only collide with
	// udev, which holds one for a moment whenever a device has changed.
	if exclusive && !f.device {
		err := retry(func() error { return unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		if err != nil {
			return nil, fmt.Errorf("locking: %w", err)
		}
		f.locked = true
	}
	if f.align, err = findAlignment(f.fd, f.device, direct); err != nil {
		return nil, err
	}
	if err := f.readSize(); err != nil {
		return nil, err
	}
	f.inPlace, err = zeroesInPlace(f.fd)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openDescriptor sets f.fd. It tells whether it was opened for direct I/O.
func (f *File) openDescriptor(flags Flag) (direct bool, err error) {
	exclusive := flags&Exclusive != 0
	mode := unix.O_RDWR | unix.O_CLOEXEC
	if f.readOnly {
		mode = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if exclusive && f.device {
		mode |= unix.O_EXCL
	}
	open := func(mode int) error {
		return retry(func() (err error) {
			f.fd, err = unix.Open(f.path, mode, 0)
			return err
		})
	}
	direct = flags&Buffered == 0
	if direct {
		err = open(mode | unix.O_DIRECT)
	}
	if !direct || errors.Is(err, unix.EINVAL) {
		direct = false
		err = open(mode)
	}
	if exclusive && errors.Is(err, unix.EBUSY) {
		err = ErrInUse
	}
	return direct, err
}

// Size returns the size in bytes that the file had when it was opened or last
// refreshed, rounded down to whole blocks.
func (f *File) Size() int64 { return f.size.Load() }

// Refresh reads the size again, for a file or device that has been grown.
func (f *File) Refresh() error {
	if err := f.readSize(); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return nil
}

func (f *File) readSize() error {
	// The end is where the size is for files and block devices alike, and
	// nothing here uses the file position.
	size, err := unix.Seek(f.fd, 0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("finding out the size: %w", err)
	}
	f.size.Store(size &^ int64(f.align.offset-1))
	return nil
}

// BlockSize returns the unit of I/O in bytes.
func (f *File) BlockSize() int { return f.align.offset }

// ReadAt reads len(p) bytes at offset off. A file that ends before is an error.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.checkRange("reading", off, int64(len(p))); err != nil {
		return 0, err
	}
	var n int
	var err error
	if aligned(p, f.align.memory) {
		n, err = f.readFull(p, off)
	} else {
		n, err = f.readBounced(p, off)
	}
	if err != nil {
		return n, f.wrap("reading", off, int64(len(p)), err)
	}
	return n, nil
}

func (f *File) readBounced(p []byte, off int64) (n int, err error) {
	b := bounceBuffers.Get().(*bounceBuffer)
	defer bounceBuffers.Put(b)
	for n < len(p) {
		part := b.data[:min(len(p)-n, len(b.data))]
		m, err := f.readFull(part, off+int64(n))
		n += copy(p[n:], part[:m])
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *File) readFull(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case f.whole(m) == 0:
			return n, io.ErrUnexpectedEOF
		default:
			n += f.whole(m)
		}
	}
	return n, nil
}

// whole returns what counts of n bytes that the kernel has transferred. What
// goes on after a short transfer has to begin at a block again.
func (f *File) whole(n int) int { return n &^ (f.align.offset - 1) }

// WriteAt writes p at offset off.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.checkChange("writing", off, int64(len(p))); err != nil {
		return 0, err
	}
	var n int
	var err error
	if aligned(p, f.align.memory) {
		n, err = f.writeFull(p, off)
	} else {
		n, err = f.writeBounced(p, off)
	}
	if err != nil {
		return n, f.wrap("writing", off, int64(len(p)), err)
	}
	return n, nil
}

func (f *File) writeBounced(p []byte, off int64) (n int, err error) {
	b := bounceBuffers.Get().(*bounceBuffer)
	defer bounceBuffers.Put(b)
	for n < len(p) {
		m, err := f.writeFull(b.data[:copy(b.data, p[n:])], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *File) writeFull(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case f.whole(m) == 0:
			return n, io.ErrShortWrite
		default:
			n += f.whole(m)
		}
	}
	return n, nil
}

// Flush makes durable what has been done. It is fdatasync: on a regular file it
// includes what is needed to find the data again, allocations above all.
func (f *File) Flush() error {
	if err := retry(func() error { return unix.Fdatasync(f.fd) }); err != nil {
		return fmt.Errorf("%s: flushing: %w", f.path, err)
	}
	return nil
}

// Close closes the file and ends exclusive use.
func (f *File) Close() error {
	fd := f.fd
	f.fd = -1 // never another's
	var err error
	if f.locked {
		// A child process between fork and exec may have the file open too, and
		// with it the lock.
		err = unix.Flock(fd, unix.LOCK_UN)
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("closing %s: %w", f.path, err)
	}
	return nil
}

func (f *File) checkRange(doing string, off, length int64) error {
	if err := CheckRange(off, length, f.Size(), f.align.offset); err != nil {
		return fmt.Errorf("%s: %s: %w", f.path, doing, err)
	}
	return nil
}

// checkChange is checkRange for requests that change the content.
func (f *File) checkChange(doing string, off, length int64) error {
	if err := f.checkRange(doing, off, length); err != nil {
		return err
	}
	if f.readOnly {
		return f.wrap(doing, off, length, unix.EROFS)
	}
	return nil
}

func (f *File) wrap(doing string, off, length int64, err error) error {
	return fmt.Errorf("%s: %s %d bytes at offset %d: %w", f.path, doing, length, off, err)
}

// retry calls a system call until no signal interrupts it. The runtime sends
// itself signals all the time.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
