package filesystem

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// trimStep is how much of the device is trimmed between two looks at the
// context. A power of two, so that it seldom cuts a block group of ext4 in two.
const trimStep = 16 << 30

// Trim makes the file system at mountpoint discard its free space and returns
// how many bytes it says were discarded.
//
// What is discarded is not all that is free, for which there is FreeSpace. ext4
// leaves out the groups that it has trimmed before in the same mount and not
// freed anything in since. XFS leaves out what it is still discarding. And XFS
// (seen on Linux 6.18) only sends the discards: they reach the device while Trim
// runs or after it has returned, and the number is the size of the file system.
func Trim(ctx context.Context, mountpoint string) (int64, error) {
	f, err := openMount(mountpoint)
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", mountpoint, err)
	}
	defer f.Close()
	total, err := trim(ctx, f, trimStep)
	if err != nil {
		return total, fmt.Errorf("trim %s: %w", mountpoint, err)
	}
	return total, nil
}

func trim(ctx context.Context, f *os.File, step uint64) (total int64, err error) {
	size, err := sizeOfDevice(f)
	if err != nil {
		return 0, err
	}
	for start := uint64(0); start < size; start += step {
		if ctx.Err() != nil {
			return total, context.Cause(ctx)
		}
		r := linuxabi.FSTrimRange{Start: start, Length: step}
		if start+step >= size {
			r.Length = math.MaxUint64
		}
		err := ioctl(f, linuxabi.FSTrim, unsafe.Pointer(&r))
		if errors.Is(err, unix.EINVAL) && start > 0 {
			break // the file system ends before the device does
		}
		if err != nil {
			return total, notSupported(err)
		}
		total += int64(r.Length)
	}
	return total, nil
}

// sizeOfDevice returns the size in bytes of the block device of the file system
// that f is on.
func sizeOfDevice(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join(sysDir(st.Dev), "size"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w: it is not on a block device", ErrNotSupported)
	}
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 54)
	return sectors << 9, err
}

func ioctl(f *os.File, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}
