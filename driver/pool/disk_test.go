package pool_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A layout is a kind of file system that a pool may be on.
type layout struct {
	name     string
	fsType   string
	mkfs     []string
	size     int64
	reflinks bool
}

var (
	ext4 = layout{"ext4", "ext4", []string{"mkfs.ext4", "-q"}, 128 * MiB, false}
	xfs  = layout{"xfs", "xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, 320 * MiB, true}
	// Cannot share extents.
	plainXFS = layout{"xfs-plain", "xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=0"}, 320 * MiB, false}
	// Cannot allocate beforehand.
	noExtents = layout{"ext4-no-extents", "ext4", []string{"mkfs.ext4", "-q", "-O", "^extent,^64bit"}, 128 * MiB, false}

	layouts = []layout{ext4, xfs, plainXFS, noExtents}
)

// A disk is a loop device with a file system.
type disk struct {
	layout
	device string
	dir    string // where it is mounted
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// memoryDir returns a directory in memory. What is flushed on a disk in there is
// flushed at once.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pool-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newDisk makes a file system that is mounted until the end of the test, and is
// checked then.
func newDisk(t testing.TB, l layout) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, for loop devices and mounts")
	}
	image := filepath.Join(memoryDir(t), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, l.size); err != nil {
		t.Fatal(err)
	}
	d := &disk{layout: l, dir: t.TempDir()}
	d.device = run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { run(t, "losetup", "--detach", d.device) })
	run(t, l.mkfs[0], append(l.mkfs[1:], d.device)...)
	d.mount(t)
	t.Cleanup(func() {
		d.unmount(t)
		switch l.fsType {
		case "ext4":
			run(t, "e2fsck", "-f", "-n", d.device)
		case "xfs":
			run(t, "xfs_repair", "-n", d.device)
		}
	})
	return d
}

func (d *disk) mount(t testing.TB) {
	t.Helper()
	if err := unix.Mount(d.device, d.dir, d.fsType, 0, ""); err != nil {
		t.Fatalf("mounting %s: %v", d.device, err)
	}
}

func (d *disk) unmount(t testing.TB) {
	t.Helper()
	if err := unix.Unmount(d.dir, 0); err != nil {
		t.Fatalf("unmounting %s: %v", d.device, err)
	}
}

// stop ends the file system; with flush it writes everything before, and otherwise
// it forgets what it has not written. It is mounted until unmount, but nothing works.
func (d *disk) stop(t testing.TB, flush bool) {
	t.Helper()
	const (
		goingDown  = 0x8004587d // XFS_IOC_GOINGDOWN, which ext4 knows too
		flushAll   = 0
		noLogFlush = 2
	)
	how := noLogFlush
	if flush {
		how = flushAll
	}
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, how); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "alive"), nil, 0o600); !errors.Is(err, unix.EIO) {
		t.Fatalf("it was stopped, and yet: %v", err)
	}
}
