package fuse

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export"
)

// maxTries is how often a free loop device is looked for: some seconds long.
const maxTries = 300

// loopDevice is the number of a loop device.
type loopDevice int

func (l loopDevice) path() string { return "/dev/loop" + strconv.Itoa(int(l)) }

// sysfs reads a file in the device's directory of sysfs.
func (l loopDevice) sysfs(name string) (string, error) {
	path := filepath.Join("/sys/block/loop"+strconv.Itoa(int(l)), name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return strings.TrimSuffix(string(buf[:n]), "\n"), nil
}

// configure puts a free loop device over the file that is open as backing and
// called file, and returns it open, and exclusively so. It is for use in aside.
func configure(ctx context.Context, backing int, file string, blockSize int) (loopDevice, int, error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, -1, fmt.Errorf("/dev/loop-control: %w", err)
	}
	defer unix.Close(control)
	for tries := 1; ; tries++ {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return 0, -1, fmt.Errorf("find a free loop device: %w", err)
		}
		l := loopDevice(n)
		fd, err := l.configure(backing, file, blockSize)
		if err == nil {
			return l, fd, nil
		}
		// Somebody else was faster, or the node has not been made yet.
		again := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)
		if !again || tries == maxTries {
			return 0, -1, err
		}
		if werr := pause(ctx); werr != nil {
			return 0, -1, errors.Join(werr, err)
		}
	}
}

func (l loopDevice) configure(backing int, file string, blockSize int) (int, error) {
	fd, err := unix.Open(l.path(), unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", l.path(), err)
	}
	config := unix.LoopConfig{Fd: uint32(backing), Size: uint32(blockSize)}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	if err := unix.IoctlLoopConfigure(fd, &config); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("configure %s: %w", l.path(), err)
	}
	return fd, nil
}

// provokeZeroing asks for the first n bytes of the device fd to be zeroed
// without being deallocated.
func provokeZeroing(fd int, n uint64) error {
	arg := [2]uint64{0, n}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// detach takes the loop device away from the file of the export name, if that is
// what it has. It fails with export.ErrBusy
// if somebody else uses the device until ctx is done. Many look at new devices
// and at closed ones for a moment, udev first of all, so being in use counts
// only when it lasts.
func (l loopDevice) detach(ctx context.Context, name string) error {
	for {
		err := aside(func() error { return l.tryDetach(name) })
		if !errors.Is(err, export.ErrBusy) {
			return err
		}
		if pause(ctx) != nil {
			return err
		}
	}
}

// tryDetach detaches the device unless somebody else uses it.
//
// The kernel has no such request: it would detach a device in use as soon as it
// is not in use any more. So that is begun and, if the device is still there
// afterwards, taken back. Nothing can happen in between, because the device is
// in use by us.
func (l loopDevice) tryDetach(name string) error {
	fd, err := unix.Open(l.path(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is mounted or held by another device: %w", l.path(), export.ErrBusy)
	case err != nil:
		return fmt.Errorf("open %s: %w", l.path(), err)
	}
	defer unix.Close(fd)
	// Nobody can give it another file while it is open.
	if file, err := l.sysfs("loop/backing_file"); err != nil || file != "/"+name {
		return nil
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil {
		if errors.Is(err, unix.ENXIO) {
			return nil // It has no file, which is what was wanted.
		}
		return fmt.Errorf("detach %s: %w", l.path(), err)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	switch {
	case errors.Is(err, unix.ENXIO):
		return nil // It goes when fd is closed.
	case err != nil:
		// The server is gone, so there is nothing to keep the device for.
		return fmt.Errorf("%s is open and will go when it is closed (%w): %w", l.path(), err, export.ErrBusy)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
		return fmt.Errorf("keep %s, which is in use: %w", l.path(), err)
	}
	return fmt.Errorf("%s is open: %w", l.path(), export.ErrBusy)
}

// setCapacity makes the device as long as its file has become. It is for use in
// aside.
func (l loopDevice) setCapacity() error {
	fd, err := unix.Open(l.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", l.path(), err)
	}
	defer unix.Close(fd)
	// Before Linux 6.17 the loop driver does not ask the file system for the
	// size of the file, but this makes the kernel ask.
	if _, err := unix.IoctlLoopGetStatus64(fd); err != nil {
		return fmt.Errorf("status of %s: %w", l.path(), err)
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("set capacity of %s: %w", l.path(), err)
	}
	return nil
}

// pause waits a little, or returns the error of ctx when it is done.
func pause(ctx context.Context) error {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
