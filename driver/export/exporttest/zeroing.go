package exporttest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// zeroing checks that blocks that a file system wants to read as zeros are not
// discarded instead.
func (s suite) zeroing(t *testing.T) {
	dev := NewDevice(256<<20, 4096)
	e := s.export(t, dev, 4096)
	if e.DiscardsAmbiguous() {
		t.Log("this kernel mixes up discards and zeroing")
	}
	if !ZeroOnExt4(t, e, dev, func() {}) {
		t.Error("the file system is damaged")
	}
	if !e.DiscardsAmbiguous() && dev.Count(Discard) == 0 {
		t.Error("no discard arrived")
	}
}

// ZeroOnExt4 lets ext4 zero blocks of the export e of dev in the ways it knows and tells whether
// it could read them as zeros.
// It calls made between making and mounting the file system.
func ZeroOnExt4(t *testing.T, e Export, dev *Device, made func()) (ok bool) {
	t.Helper()
	mustRun(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", e.Path())
	made()
	dir, unmount := mount(t, e.Path(), "init_itable=0,nodioread_nolock,discard")
	const pieces, size = 64, 24 << 10
	name := func(i int) string {
		return filepath.Join(dir, "unwritten", string(rune('a'+i%26))+string(rune('a'+i/26)))
	}
	if err := os.Mkdir(filepath.Join(dir, "unwritten"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	copy(want[8<<10:], bytes.Repeat([]byte{0x11}, 4096))
	for i := range pieces {
		f, err := os.Create(name(i))
		if err != nil {
			t.Fatal(err)
		}
		// A write into the middle of an unwritten extent that is small makes
		// ext4 zero the rest instead of splitting it.
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(want[8<<10:12<<10], 8<<10); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	// Files that come and go: their blocks are discarded and allocated anew.
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		junk := filepath.Join(dir, "junk")
		if err := os.WriteFile(junk, bytes.Repeat([]byte{0x77}, 20<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = unix.Syncfs(int(root.Fd()))
		if err := os.Remove(junk); err != nil {
			t.Fatal(err)
		}
		_ = unix.Syncfs(int(root.Fd()))
	}
	root.Close()
	mustRun(t, "fstrim", dir)
	// Growing zeroes inode tables, too.
	dev.Grow(128 << 20)
	if err := e.Grow(); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "resize2fs", e.Path()); err != nil && !strings.Contains(out, "Permission denied") {
		t.Fatal("cannot grow") // without CAP_SYS_RESOURCE it is denied
	}
	waitLazyInit(t, e.Path())
	unmount()
	ok = true
	if _, err := run(t, "e2fsck", "-fn", e.Path()); err != nil {
		ok = false
	}
	dir, unmount = mount(t, e.Path(), "ro")
	for i := range pieces {
		got, err := os.ReadFile(name(i))
		if err != nil || !bytes.Equal(got, want) {
			t.Logf("%s does not read as written (%v)", name(i), err)
			ok = false
			break
		}
	}
	unmount()
	return ok
}

// waitLazyInit waits until a thread of the kernel, which begins some seconds
// after the mount, has zeroed all inode tables.
func waitLazyInit(t *testing.T, dev string) {
	t.Helper()
	for range 100 {
		out, err := exec.CommandContext(t.Context(), "dumpe2fs", dev).Output()
		if err != nil {
			t.Fatal(err)
		}
		if groups := bytes.Count(out, []byte(": (Blocks ")); groups > 0 && groups == bytes.Count(out, []byte("ITABLE_ZEROED")) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the inode tables have not been zeroed")
}
