package filesystem

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

// Bind makes what is mounted at source, or the device node source, appear at
// target too, which must exist and be of the same kind. What is mounted below
// source does not come along. With readOnly it cannot be written through target;
// there is no moment at which it can.
func Bind(ctx context.Context, source, target string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, context.Cause(ctx))
	}
	if err := bindMount(source, target, readOnly); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	return nil
}

func bindMount(source, target string, readOnly bool) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// Binds returns the places in this mount namespace where the device node itself
// of a block device is bound to, in the order in which that was done. Mounts of
// the file system on it are not among them.
func Binds(device string) ([]MountPoint, error) {
	number, err := deviceNumber(device)
	if err != nil {
		return nil, fmt.Errorf("binds of %s: %w", device, err)
	}
	infos, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("binds of %s: %w", device, err)
	}
	var binds []MountPoint
	for _, info := range infos {
		root := unescape(info.Root)
		// The name of the node in its own file system; asking each mount
		// of the machine could hang.
		if filepath.Base(root) != filepath.Base(device) {
			continue
		}
		at := unescape(info.MountPoint)
		if n, err := deviceNumber(at); err != nil || n != number {
			continue
		}
		binds = append(binds, mountPoint(info))
	}
	return binds, nil
}

// MountedAt returns what was mounted last at path in this mount namespace, and
// the path of its block device if it has one; ErrNotMounted if nothing is. It
// asks the kernel's table only, so it works for file systems whose device is
// gone, which fail every other call.
func MountedAt(path string) (MountPoint, string, error) {
	clean := filepath.Clean(path)
	infos, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return MountPoint{}, "", fmt.Errorf("mounts at %s: %w", path, err)
	}
	for i := len(infos) - 1; i >= 0; i-- {
		if unescape(infos[i].MountPoint) != clean {
			continue
		}
		device, err := deviceName(unix.Mkdev(uint32(infos[i].Major), uint32(infos[i].Minor)))
		if err != nil {
			device = "" // tmpfs, devtmpfs and the like have none
		}
		return mountPoint(infos[i]), device, nil
	}
	return MountPoint{}, "", fmt.Errorf("mounts at %s: %w", path, ErrNotMounted)
}
