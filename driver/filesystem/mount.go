package filesystem

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

// MountPoint is one place where a file system is mounted.
type MountPoint struct {
	Path     string // absolute
	Root     string // the directory of the file system that is seen there, usually "/"
	Type     string
	ReadOnly bool // this mount or the whole file system
}

// Mount mounts the file system of type fsType on a block device at the
// existing directory target. Unless options contain "ro" it is mounted
// read-write or not at all.
//
// If ctx ends while the kernel mounts, the file system may be mounted although
// an error is returned; Mounts tells.
func Mount(ctx context.Context, device, target, fsType string, options []string) error {
	args := mount.MakeMountArgs(device, target, fsType, options)
	if !slices.Contains(options, "ro") {
		// Otherwise a device that refuses writes is quietly mounted read-only.
		args = append([]string{"--rw"}, args...)
	}
	if err := run(ctx, "mount", args...); err != nil {
		return fmt.Errorf("mount %s at %s: %w", device, target, err)
	}
	return nil
}

// Unmount unmounts what was mounted last at target: for real, not lazily. It
// returns ErrBusy if the mount is in use and ErrNotMounted if there is none.
// When the last mount of a file system goes, everything is on the device when
// Unmount returns. Copies of the mount in other mount namespaces count, so see
// InUse before the device is given to somebody else.
func Unmount(ctx context.Context, target string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("unmount %s: %w", target, context.Cause(ctx))
	}
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		err = ErrBusy
	case errors.Is(err, unix.EINVAL):
		err = ErrNotMounted
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// Mounts returns every mount of a block device in this mount namespace, bind
// mounts included, in the order in which they were made. It goes by the number
// of the device, so any path to it will do.
func Mounts(device string) ([]MountPoint, error) {
	number, err := deviceNumber(device)
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", device, err)
	}
	infos, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", device, err)
	}
	var mounts []MountPoint
	for _, info := range infos {
		if unix.Mkdev(uint32(info.Major), uint32(info.Minor)) != number {
			continue
		}
		mounts = append(mounts, mountPoint(info))
	}
	return mounts, nil
}

// MountOf returns where the file system of a block device is mounted, "" if it is not.
// Of several mounts it is the first that nothing else is mounted over: who looks there
// finds that file system and no other. It returns ErrHidden if there is none such.
func MountOf(device string) (string, error) {
	mounts, err := Mounts(device)
	if err != nil || len(mounts) == 0 {
		return "", err
	}
	number, err := deviceNumber(device)
	if err != nil {
		return "", fmt.Errorf("mounts of %s: %w", device, err)
	}
	for _, m := range mounts {
		_, top, err := MountedAt(m.Path)
		if err != nil || top == "" {
			continue // unmounted meanwhile, or under something without a device
		}
		if n, err := deviceNumber(top); err == nil && n == number {
			return m.Path, nil
		}
	}
	return "", fmt.Errorf("mounts of %s: %s: %w", device, mounts[0].Path, ErrHidden)
}

func mountPoint(info mount.MountInfo) MountPoint {
	return MountPoint{
		Path:     unescape(info.MountPoint),
		Root:     unescape(info.Root),
		Type:     info.FsType,
		ReadOnly: slices.Contains(info.MountOptions, "ro") || slices.Contains(info.SuperOptions, "ro"),
	}
}

// Device returns the path of the block device whose file system is mounted at
// mountpoint, as the kernel names it ("/dev/loop0"), or ErrNotMounted.
func Device(mountpoint string) (string, error) {
	f, err := openMount(mountpoint)
	if err != nil {
		return "", fmt.Errorf("device of %s: %w", mountpoint, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("device of %s: %w", mountpoint, err)
	}
	name, err := deviceName(st.Dev)
	if err != nil {
		return "", fmt.Errorf("device of %s: %w", mountpoint, err)
	}
	return name, nil
}

// InUse tells whether the kernel holds a block device for itself: it is mounted
// in some mount namespace, or part of a mapping of the device mapper, a RAID or
// a swap space. A loop device on top of it does not count.
func InUse(device string) (bool, error) {
	if _, err := deviceNumber(device); err != nil {
		return false, fmt.Errorf("use of %s: %w", device, err)
	}
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("use of %s: %w", device, err)
	}
	return false, f.Close()
}

// openMount opens a directory on which something is mounted. It returns
// ErrNotMounted for any other: to freeze or trim the file system that merely
// contains a directory would hit the host's own.
func openMount(mountpoint string) (*os.File, error) {
	f, err := os.OpenFile(mountpoint, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	root, err := isMountRoot(int(f.Fd()))
	if err == nil && !root {
		err = ErrNotMounted
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func isMountRoot(fd int) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st)
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	// Before Linux 5.8 a mount shows by the change of device only, which it does
	// for all but bind mounts within one file system.
	var self, parent unix.Stat_t
	if err := unix.Fstat(fd, &self); err != nil {
		return false, err
	}
	if err := unix.Fstatat(fd, "..", &parent, 0); err != nil {
		return false, err
	}
	return self.Dev != parent.Dev, nil
}

func deviceNumber(device string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, errors.New("not a block device")
	}
	return st.Rdev, nil
}

// sysDir is where the kernel describes a block device.
func sysDir(number uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
}

func deviceName(number uint64) (string, error) {
	f, err := os.Open(filepath.Join(sysDir(number), "uevent"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if name, ok := strings.CutPrefix(s.Text(), "DEVNAME="); ok {
			return filepath.Join("/dev", name), nil
		}
	}
	if err := s.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%s has no name", f.Name())
}

// unescape undoes the octal escapes of /proc/self/mountinfo: space, tab, newline
// and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
