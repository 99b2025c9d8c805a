package blockdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// alignment is what requests to a File have to be multiples of, in bytes.
type alignment struct {
	offset int // offsets and lengths in the file; the block size
	memory int // addresses in memory
}

// buffered is the alignment of I/O through the page cache: the least that a
// Device can have.
var buffered = alignment{offset: SectorSize, memory: 1}

// findAlignment finds out how requests have to be aligned. It takes the
// descriptor fd out of direct mode if direct I/O is not possible, or only in
// blocks that no Device may have.
func findAlignment(fd int, device, direct bool) (alignment, error) {
	logical := SectorSize
	if device {
		size, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET)
		if err != nil {
			return alignment{}, fmt.Errorf("finding out the logical block size: %w", err)
		}
		if logical = int(size); !ValidBlockSize(logical) {
			return alignment{}, fmt.Errorf("logical blocks of %d bytes are not supported", logical)
		}
	}
	a := buffered
	if direct {
		var err error
		if a, err = directAlignment(fd, logical); err != nil {
			return alignment{}, err
		}
		if !ValidBlockSize(a.offset) {
			a = buffered
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
				return alignment{}, fmt.Errorf("turning off direct I/O: %w", err)
			}
		}
	}
	a.offset = max(a.offset, logical)
	return a, nil
}

// directAlignment returns the alignment of direct I/O, and one with offset 0 if
// there is none.
func directAlignment(fd, logical int) (alignment, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return alignment{}, fmt.Errorf("finding out the alignment of direct I/O: %w", err)
	}
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		// Both are 0 for a file without direct I/O on a file system that has it.
		if st.Dio_offset_align == 0 {
			return alignment{}, nil
		}
		return alignment{max(int(st.Dio_offset_align), SectorSize), int(st.Dio_mem_align)}, nil
	}
	// Neither kernels before 6.1 nor all file systems tell: try.
	p := Buffer(pageSize)
	for n := logical; n < pageSize; n *= 2 {
		if m, err := unix.Pread(fd, p[:n], 0); err == nil && m == n {
			return alignment{offset: n, memory: pageSize}, nil
		}
	}
	return alignment{offset: pageSize, memory: pageSize}, nil
}
