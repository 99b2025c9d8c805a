package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// exportPrefix begins what sysfs shows as the file below a mapped device. Asking
// the kernel about that file means asking the process that serves it, which may
// be hung or dead, and it is never the file of a user.
const exportPrefix = "/bowline:"

// refuseLoop returns an error if a loop device other than a mapped one stands on
// the file or block device at path. The kernel takes no lock on what is below a
// loop device, so opening path exclusively does not find that out.
func refuseLoop(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	attributes, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, attribute := range attributes {
		below, err := os.ReadFile(attribute)
		if err != nil || strings.HasPrefix(string(below), exportPrefix) {
			continue // detached in the meantime, or a mapped device
		}
		loop := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(attribute)))
		if on, err := standsOn(loop, &st); err != nil {
			return fmt.Errorf("finding out whether %s is in use: %w", path, err)
		} else if on {
			return stateError(fmt.Sprintf("%s is in use: %s stands on it; unmount what is mounted there and run 'losetup --detach %s' first", path, loop, loop))
		}
	}
	return nil
}

// standsOn tells whether the file or block device st is below a loop device.
func standsOn(loop string, st *unix.Stat_t) (bool, error) {
	f, err := os.Open(loop)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return false, nil // detached in the meantime
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("status of %s: %w", loop, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return info.Rdevice == st.Rdev, nil
	}
	return info.Device == st.Dev && info.Inode == st.Ino, nil
}
