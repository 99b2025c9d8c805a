package blockdev

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Discard gives the range back: as a hole in a regular file, with BLKDISCARD on
// a block device. With KeepAllocated, a regular file has unwritten extents there
// instead. Where that is not supported it does nothing.
func (f *File) Discard(off, length int64) error {
	if err := f.checkChange("discarding", off, length); err != nil || length == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE)
	if f.keep && !f.device {
		if !f.inPlace {
			return nil
		}
		mode = unix.FALLOC_FL_ZERO_RANGE
	}
	err := f.deallocate(unix.BLKDISCARD, mode, off, length)
	if err != nil && !f.unable(err) {
		return f.wrap("discarding", off, length, err)
	}
	return nil
}

// WriteZeroes makes the range read as zeros. It stays allocated: a regular file
// has unwritten extents there afterwards, and a block device is not asked to
// unmap. Where that is not supported zeros are written, and with KeepAllocated
// also where the file system would let go of the space for a moment.
func (f *File) WriteZeroes(off, length int64) error {
	if err := f.checkChange("zeroing", off, length); err != nil || length == 0 {
		return err
	}
	var err error = unix.EOPNOTSUPP
	if f.device || f.inPlace || !f.keep {
		err = f.deallocate(unix.BLKZEROOUT, unix.FALLOC_FL_ZERO_RANGE, off, length)
	}
	if err != nil && f.unable(err) {
		err = f.writeZeros(off, length)
	}
	if err != nil {
		return f.wrap("zeroing", off, length, err)
	}
	return nil
}

// unable tells whether err of deallocate says that the file system cannot do it.
// Splitting extents may need a block for them, which a full disk does not have;
// what is allocated can be written all the same.
func (f *File) unable(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || f.keep && errors.Is(err, unix.ENOSPC)
}

// zeroesInPlace tells whether FALLOC_FL_ZERO_RANGE only marks what is allocated
// as unwritten. ext4 does. XFS frees the range and allocates it anew: on a full
// disk others take the space in between, and the file is left with a hole. Of
// other file systems nothing is known.
func zeroesInPlace(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false, fmt.Errorf("finding out the file system: %w", err)
	}
	return st.Type == unix.EXT4_SUPER_MAGIC, nil
}

// deallocate does what a block device calls request and a file system mode.
func (f *File) deallocate(request uintptr, mode uint32, off, length int64) error {
	if !f.device {
		return retry(func() error {
			return unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, length)
		})
	}
	extent := [2]uint64{uint64(off), uint64(length)}
	return retry(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), request, uintptr(unsafe.Pointer(&extent)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

func (f *File) writeZeros(off, length int64) error {
	p := zeros()
	for end := off + length; off < end; off += int64(len(p)) {
		p = p[:min(int64(len(p)), end-off)]
		if _, err := f.writeFull(p, off); err != nil {
			return err
		}
	}
	return nil
}
