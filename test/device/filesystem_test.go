package device

import (
	"fmt"
	"os"
	"testing"
)

const mib = 1 << 20

// kind is a way to make a file system.
type kind struct {
	name      string
	mkfs      []string // command without the device
	size      int64    // bytes of the image
	blockSize int      // logical block size that the mapped device must have
}

func ext4(block int) kind {
	return kind{
		name:      fmt.Sprintf("ext4-%d", block),
		mkfs:      []string{"mkfs.ext4", "-q", "-F", "-b", fmt.Sprint(block)},
		size:      256 * mib,
		blockSize: block,
	}
}

func xfs(sector int) kind {
	return kind{
		name:      fmt.Sprintf("xfs-%d", sector),
		mkfs:      []string{"mkfs.xfs", "-q", "-f", "-s", fmt.Sprintf("size=%d", sector)},
		size:      320 * mib,
		blockSize: sector,
	}
}

var kinds = []kind{ext4(1024), ext4(2048), ext4(4096), xfs(512), xfs(4096)}

// briefly is kinds, or two of them in a short run: under the race detector
// everything takes several times as long, and the others do not differ in what runs
// at the same time.
func briefly(kinds []kind) []kind {
	if testing.Short() {
		return []kind{ext4(4096), xfs(512)}
	}
	return kinds
}

func (k kind) isExt4() bool { return k.mkfs[0] == "mkfs.ext4" }

// make makes a file system on a device or an image.
func (k kind) make(t *testing.T, on string) {
	t.Helper()
	tool(t, k.mkfs[0], append(k.mkfs[1:len(k.mkfs):len(k.mkfs)], on)...)
}

// check finds out whether an unmounted file system is sound.
func (k kind) check(t *testing.T, on string) {
	t.Helper()
	args := []string{"e2fsck", "-fn", on}
	if !k.isExt4() {
		args = []string{"xfs_repair", "-n", on}
		if info, err := os.Stat(on); err == nil && info.Mode().IsRegular() {
			args = []string{"xfs_repair", "-n", "-f", on}
		}
	}
	if r := execute(t, args[0], args[1:]...); r.code != 0 {
		t.Error(r)
	}
}

// newMounted makes an image with a file system of this kind, attaches and mounts
// it.
func (k kind) newMounted(t *testing.T, options ...string) *volume {
	t.Helper()
	v := newHost(t).newImage("image", k.size)
	k.make(t, v.path)
	v.attach()
	v.mount(options...)
	return v
}

// restore unmounts and detaches v, goes back to the checkpoint, and attaches and
// mounts it again; the file system must be sound before and after.
func (v *volume) restore(k kind) {
	v.t.Helper()
	v.umount()
	v.detach()
	v.restoreDetached(k)
}

func (v *volume) restoreDetached(k kind) {
	v.t.Helper()
	v.must("verify", v.path)
	v.must("restore", v.path)
	v.exits(exitNoLog, "inspect", v.path)
	if !k.isExt4() {
		// XFS leaves its log to be replayed when it is frozen, and xfs_repair
		// does not check a file system with such a log.
		tool(v.t, "mount", "-o", "loop", v.path, v.mountpoint)
		tool(v.t, "umount", v.mountpoint)
	}
	k.check(v.t, v.path)
	v.attach()
	v.mount()
}

// finish unmounts and detaches v, whose file system must be sound.
func (v *volume) finish(k kind) {
	v.t.Helper()
	v.umount()
	v.detach()
	k.check(v.t, v.path)
}
