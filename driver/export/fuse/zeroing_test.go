package fuse

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// command runs a program and returns what it printed and whether it succeeded.
func command(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	t.Logf("%s %q: %v\n%s", name, args, err, out)
	return string(out), err
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := command(t, name, args...); err != nil {
		t.FailNow()
	}
}

// mountTest mounts the file system on dev and unmounts it in the end, if that
// has not been done before by the function it returns.
func mountTest(t *testing.T, dev, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	mustRun(t, "mount", "-o", options, dev, dir)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount: %v", err)
				_ = unix.Unmount(dir, unix.MNT_DETACH)
			}
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// exerciseZeroing lets ext4 zero blocks in the ways it knows and tells whether
// it could read them as zeros.
// It calls made between making and mounting the file system.
func exerciseZeroing(t *testing.T, e *Export, dev *ramDevice, made func()) (ok bool) {
	t.Helper()
	mustRun(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", e.Path())
	made()
	dir, unmount := mountTest(t, e.Path(), "init_itable=0,nodioread_nolock,discard")
	const pieces, size = 64, 24 << 10
	name := func(i int) string { return filepath.Join(dir, "unwritten", string(rune('a'+i%26))+string(rune('a'+i/26))) }
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
	for range 3 {
		junk := filepath.Join(dir, "junk")
		if err := os.WriteFile(junk, bytes.Repeat([]byte{0x77}, 20<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
		if err := os.Remove(junk); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
	}
	mustRun(t, "fstrim", dir)
	// Growing zeroes inode tables, too.
	dev.grow(128 << 20)
	if err := e.Grow(); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "resize2fs", e.Path()); err != nil && !strings.Contains(out, "Permission denied") {
		t.Fatal("cannot grow") // without CAP_SYS_RESOURCE it is denied
	}
	waitLazyInit(t, e.Path())
	unmount()
	ok = true
	if _, err := command(t, "e2fsck", "-fn", e.Path()); err != nil {
		ok = false
	}
	dir, unmount = mountTest(t, e.Path(), "ro")
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

func TestZeroingIsNotDiscard(t *testing.T) {
	dev := newRAM(256<<20, 4096)
	for i := range dev.mem {
		dev.mem[i] = 0xa5
	}
	var discards atomic.Int64
	dev.log = func(op string, _, _ int64) {
		if op == "discard" {
			discards.Add(1)
		}
	}
	e := attachTest(t, dev, 4096)
	if e.DiscardsAmbiguous() {
		t.Log("this kernel mixes up discards and zeroing: discards are zeroings")
	} else if zeroes, err := e.loop.sysfs("queue/write_zeroes_max_bytes"); err != nil || zeroes != 0 {
		t.Errorf("write_zeroes_max_bytes is %d, %v", zeroes, err)
	}
	if max, err := e.loop.sysfs("queue/discard_max_bytes"); err != nil || max == 0 {
		t.Errorf("discard_max_bytes is %d, %v", max, err)
	}
	if !exerciseZeroing(t, e, dev, func() {}) {
		t.Error("the file system is damaged")
	}
	if !e.DiscardsAmbiguous() && discards.Load() == 0 {
		t.Error("no discard arrived")
	}
	if got := dev.mem[:4096]; bytes.Equal(got, make([]byte, 4096)) {
		t.Error("the probe was written to the device")
	}
}

// TestZeroingWouldBeDiscard shows that the test above can fail: the probing is
// made undone, by a change of the block size, and the same file system is
// damaged.
func TestZeroingWouldBeDiscard(t *testing.T) {
	dev := newRAM(256<<20, 4096)
	for i := range dev.mem {
		dev.mem[i] = 0xa5
	}
	e := attachTest(t, dev, 4096)
	if e.DiscardsAmbiguous() {
		t.Skip("discards are treated as zeroings on this kernel")
	}
	ok := exerciseZeroing(t, e, dev, func() {
		fd, err := unix.Open(e.Path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for _, size := range []int{512, 4096} {
			if err := unix.IoctlSetInt(fd, unix.LOOP_SET_BLOCK_SIZE, size); err != nil {
				t.Fatal(err)
			}
		}
		zeroes, err := e.loop.sysfs("queue/write_zeroes_max_bytes")
		t.Log("write_zeroes_max_bytes", zeroes, err)
	})
	if ok {
		t.Log("the kernel does not confuse zeroing with discarding any more")
	}
}
