package fuse

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// mount makes a FUSE file system that is served through the descriptor dev of
// /dev/fuse and returns a descriptor of its root. It is mounted nowhere: it is
// there as long as the descriptor, or a file in it, is open, so nothing of it
// is left when the processes that hold those are gone.
func mount(dev int, file string) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, opt := range [...]struct{ key, value string }{
		{"source", file},
		{"fd", strconv.Itoa(dev)},
		{"rootmode", strconv.FormatUint(unix.S_IFDIR|0o500, 8)},
		{"user_id", "0"},
		{"group_id", "0"},
	} {
		if err := unix.FsconfigSetString(fs, opt.key, opt.value); err != nil {
			return -1, fmt.Errorf("fsconfig %s=%s: %w", opt.key, opt.value, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig create: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}
