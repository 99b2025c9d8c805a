package filesystem

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// needRoot skips a test that uses loop devices and mounts where they cannot be.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, for loop devices and mounts")
	}
}

// tool runs a command and returns what it printed on its standard output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// newImage makes a sparse file of size bytes.
func newImage(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// attachLoop puts a loop device with logical blocks of sector bytes on an image
// until the test ends.
func attachLoop(t *testing.T, image string, sector int, args ...string) string {
	t.Helper()
	args = append(args, "--find", "--show", "--sector-size", fmt.Sprint(sector), image)
	device := strings.TrimSpace(tool(t, "losetup", args...))
	t.Cleanup(func() { tool(t, "losetup", "--detach", device) })
	return device
}

// newLoop makes a sparse loop device of size bytes.
func newLoop(t *testing.T, size int64, sector int) string {
	t.Helper()
	needRoot(t)
	return attachLoop(t, newImage(t, size), sector)
}

// mountAt mounts device on a new directory. At the end of the test it is
// unmounted, if it still is mounted, and checked.
func mountAt(t *testing.T, device, fsType string, options ...string) string {
	t.Helper()
	target := t.TempDir()
	if err := Mount(context.Background(), device, target, fsType, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = Thaw(target) // or the test would hang here
		}
		mounts, err := Mounts(device)
		if err != nil {
			t.Error(err)
		}
		for _, m := range mounts {
			if m.Path == target {
				unmount(t, target)
			}
		}
		check(t, device, fsType)
	})
	return target
}

func unmount(t *testing.T, target string) {
	t.Helper()
	if err := Unmount(context.Background(), target); err != nil {
		t.Error(err)
	}
}

func check(t *testing.T, device, fsType string) {
	t.Helper()
	if err := Check(context.Background(), device, fsType); err != nil {
		t.Error(err)
	}
}

// A layout is a kind of file system that the tests run on.
type layout struct {
	name   string
	fsType string
	sector int // logical block size of the device
	args   []string
	block  int // of the file system
	fits   int // MappingBlockSize
}

var layouts = []layout{
	{"ext4-1k", Ext4, 512, []string{"-b", "1024"}, 1024, 1024},
	{"ext4-2k", Ext4, 512, []string{"-b", "2048"}, 2048, 2048},
	{"ext4-4k", Ext4, 512, []string{"-b", "4096"}, 4096, 4096},
	{"ext4-4k-sectors", Ext4, 4096, []string{"-b", "4096"}, 4096, 4096},
	{"xfs-512", XFS, 512, nil, 4096, 512},
	{"xfs-4k-sectors", XFS, 4096, nil, 4096, 4096},
	{"xfs-1k-blocks", XFS, 512, []string{"-b", "size=1024"}, 1024, 512},
	{"xfs-rmap", XFS, 512, []string{"-m", "rmapbt=1"}, 4096, 512},
}

const layoutBytes = 320 << 20

// oneOfEachType are the layouts for tests that do not look at places on the disk.
var oneOfEachType = []layout{layouts[3], layouts[5]}

// onEach runs a test on a new file system of each layout. image is the file
// below the loop device.
func onEach(t *testing.T, layouts []layout, test func(t *testing.T, l layout, device, image string)) {
	needRoot(t)
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			image := newImage(t, layoutBytes)
			device := attachLoop(t, image, l.sector)
			if err := Make(context.Background(), device, l.fsType, l.args...); err != nil {
				t.Fatal(err)
			}
			test(t, l, device, image)
		})
	}
}
