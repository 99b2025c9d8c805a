package volume_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/volume"
)

// told is a mapping that is told what is free.
type told struct {
	volume.Mapping
	first func() // called when the first of it is told
	free  int64  // bytes
}

func (m *told) MarkFree(_ context.Context, extents []blockdev.Extent) error {
	if m.free == 0 {
		m.first()
	}
	for _, x := range extents {
		m.free += x.Length
	}
	return nil
}

// TestFreeIsDurable: what is told to be free is not in use again when the machine stops
// in this moment. XFS frees space in memory long before its log has that; ext4 when its
// journal has it.
func TestFreeIsDurable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices and mounts")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	mounted := func(image string) string {
		at := mountXFS(t, newLoop(t, image), image+".mnt")
		t.Cleanup(func() { tool(t, "umount", at) })
		return at
	}
	// stopped is what a machine would find that stopped now, and whether the file is
	// there.
	stopped := func(name string) bool {
		t.Helper()
		rest := filepath.Join(dir, name)
		tool(t, "cp", "--sparse=always", image, rest)
		_, err := os.Stat(filepath.Join(mounted(rest), "file"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return err == nil
	}

	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 320*mib); err != nil {
		t.Fatal(err)
	}
	if err := filesystem.Make(t.Context(), image, filesystem.XFS); err != nil {
		t.Fatal(err)
	}
	at := mounted(image)
	file := filepath.Join(at, "file")
	const size = 16 * mib
	if err := os.WriteFile(file, bytes.Repeat([]byte{0x5a}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Sync()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	with := int64(st.Bfree) * st.Bsize
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if !stopped("before") {
		t.Log("the file system had its log written at once")
	}
	m := &told{first: func() {
		if stopped("told") {
			t.Error("the file whose space is told to be free is back after a crash")
		}
	}}
	if err := volume.FindFree(t.Context(), m, at); err != nil {
		t.Fatal(err)
	}
	if m.free < with+size/2 {
		t.Errorf("%d MiB are told to be free; with the file %d MiB were", m.free/mib, with/mib)
	}
}
