package filesystem

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMake(t *testing.T) {
	onEach(t, layouts, func(t *testing.T, l layout, device, _ string) {
		c, err := Probe(context.Background(), device)
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind != Filesystem || c.Type != l.fsType || c.BlockSize != l.block || len(c.UUID) != 36 {
			t.Errorf("made %+v", c)
		}
		if got := MappingBlockSize(c); got != l.fits {
			t.Errorf("a mapping with blocks of %d, want %d", got, l.fits)
		}
		if err := Make(context.Background(), device, l.fsType); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("made again: %v", err)
		}
		check(t, device, l.fsType)
		if l.fsType == Ext4 {
			groups := tool(t, "dumpe2fs", device)
			if n, zeroed := strings.Count(groups, ": (Blocks "), strings.Count(groups, "ITABLE_ZEROED"); n != zeroed {
				t.Errorf("%d of %d groups have their inode tables", zeroed, n)
			}
		}
	})
}

func TestMakeRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		path func(t *testing.T) string
		typ  string
		want error
	}{
		{"log", func(t *testing.T) string {
			path := newImage(t, 64<<20)
			patch(t, path, 0, 'B', 'O', 'W', 0)
			return path
		}, Ext4, ErrNotEmpty},
		{"data at the end", func(t *testing.T) string {
			path := newImage(t, 64<<20)
			patch(t, path, 64<<20-1, 1)
			return path
		}, Ext4, ErrNotEmpty},
		{"unknown type", func(t *testing.T) string { return newImage(t, 64<<20) }, "ntfs", ErrNotSupported},
		{"no device", func(*testing.T) string { return "/dev/no-such-device" }, Ext4, os.ErrNotExist},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := test.path(t)
			before, _ := os.ReadFile(path)
			if err := Make(context.Background(), path, test.typ); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the device was changed")
			}
		})
	}
	err := Make(context.Background(), newImage(t, 64<<20), XFS)
	if err == nil || !strings.Contains(err.Error(), "300MB") {
		t.Errorf("a small XFS: the error does not say what mkfs said: %v", err)
	}
}

func TestMakeOptions(t *testing.T) {
	path := newImage(t, 64<<20)
	if err := Make(context.Background(), path, Ext4, "-E", "stride=4", "-L", "mine"); err != nil {
		t.Fatal(err)
	}
	head := tool(t, "dumpe2fs", "-h", path)
	if !strings.Contains(head, "RAID stride:              4") || !strings.Contains(head, "mine") {
		t.Errorf("the options were lost:\n%s", head)
	}
	got := extendedOptions([]string{"-E", "stride=4"})
	if !slices.Equal(got, []string{"-E", "nodiscard,lazy_itable_init=0,stride=4"}) {
		t.Errorf("got %q", got)
	}
}

// TestMakeKeepsSpace: an image that was preallocated still is afterwards.
func TestMakeKeepsSpace(t *testing.T) {
	for _, fsType := range []string{Ext4, XFS} {
		t.Run(fsType, func(t *testing.T) {
			const size = 320 << 20
			image := newImage(t, size)
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
				t.Skip("SKIPPED: the temporary directory cannot preallocate:", err)
			}
			needRoot(t)
			if err := Make(context.Background(), attachLoop(t, image, 4096), fsType); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			if st.Blocks*512 < size {
				t.Errorf("only %d of %d bytes are still allocated", st.Blocks*512, size)
			}
		})
	}
}

// TestMakeUnfinished goes on after an XFS that was never finished.
func TestMakeUnfinished(t *testing.T) {
	path := newImage(t, 320<<20)
	if err := Make(context.Background(), path, XFS); err != nil {
		t.Fatal(err)
	}
	unfinishXFS(t, path)
	if err := Make(context.Background(), path, XFS); err != nil {
		t.Fatal(err)
	}
	check(t, path, XFS)
}

// TestMakeCancelled kills mkfs in the middle: the next try must succeed.
func TestMakeCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	// A mkfs that leaves something behind, says so and then hangs.
	script := "#!/bin/sh\nfor device; do :; done\nprintf junk | dd of=\"$device\" bs=1 seek=5000 conv=notrunc 2>/dev/null\n: >" + dir + "/began\nexec sleep 60\n"
	if err := os.WriteFile(filepath.Join(dir, "mkfs.ext4"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	image := newImage(t, 64<<20)
	go func() {
		defer cancel()
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "began")); err == nil {
				return
			}
		}
	}()
	if err := Make(ctx, image, Ext4); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	t.Setenv("PATH", path)
	if err := Make(context.Background(), image, Ext4); err != nil {
		t.Error(err)
	}
}

func TestMounts(t *testing.T) {
	device := newLoop(t, 64<<20, 512)
	if err := Make(context.Background(), device, Ext4); err != nil {
		t.Fatal(err)
	}
	if mounts, err := Mounts(device); err != nil || len(mounts) != 0 {
		t.Fatalf("not mounted: got %v, %v", mounts, err)
	}
	if used, err := InUse(device); err != nil || used {
		t.Fatalf("not mounted: in use %v, %v", used, err)
	}
	mnt := mountAt(t, device, Ext4, "noatime")
	if err := os.Mkdir(filepath.Join(mnt, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "a \\ place")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "--bind", filepath.Join(mnt, "sub"), second)
	tool(t, "mount", "-o", "remount,bind,ro", second)

	want := []MountPoint{
		{Path: mnt, Root: "/", Type: Ext4},
		{Path: second, Root: "/sub", Type: Ext4, ReadOnly: true},
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{device, link} {
		if got, err := Mounts(name); err != nil || !slices.Equal(got, want) {
			t.Errorf("mounts of %s: got %v, %v, want %v", name, got, err, want)
		}
	}
	if used, err := InUse(device); err != nil || !used {
		t.Errorf("mounted: in use %v, %v", used, err)
	}
	for _, point := range []string{mnt, second} {
		if got, err := Device(point); err != nil || got != device {
			t.Errorf("device of %s: got %s, %v, want %s", point, got, err, device)
		}
	}
	if _, err := Device(filepath.Join(mnt, "sub")); !errors.Is(err, ErrNotMounted) {
		t.Errorf("device of a directory: %v", err)
	}

	of := func(want string, wantErr error) {
		t.Helper()
		if got, err := MountOf(device); got != want || !errors.Is(err, wantErr) {
			t.Errorf("mount of %s: got %q, %v, want %q, %v", device, got, err, want, wantErr)
		}
	}
	of(mnt, nil)
	tool(t, "mount", "-t", "tmpfs", "over", mnt)
	of(second, nil)
	other := newLoop(t, 64<<20, 512)
	if err := Make(context.Background(), other, Ext4); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", other, second)
	of("", ErrHidden)
	tool(t, "umount", second)
	of(second, nil)
	tool(t, "umount", mnt)
	unmount(t, second)
	of(mnt, nil)
	unmount(t, mnt)
	of("", nil)
}

func TestMountErrors(t *testing.T) {
	device := newLoop(t, 64<<20, 512)
	if err := Mount(context.Background(), device, t.TempDir(), Ext4, nil); err == nil || !strings.Contains(err.Error(), "wrong fs type") {
		t.Errorf("an empty device: the error does not say what mount said: %v", err)
	}
	if _, err := Mounts(t.TempDir()); err == nil {
		t.Error("mounts of a directory: no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Mount(ctx, device, t.TempDir(), Ext4, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// TestMappingBlockSizeFits holds MappingBlockSize against the kernel: it is the
// largest logical block size on which the file system can be mounted.
func TestMappingBlockSizeFits(t *testing.T) {
	onEach(t, layouts, func(t *testing.T, l layout, _, image string) {
		mountAt(t, attachLoop(t, image, l.fits), l.fsType)
		if l.fits == 4096 {
			return
		}
		target := t.TempDir()
		if err := Mount(context.Background(), attachLoop(t, image, 2*l.fits), target, l.fsType, []string{"ro"}); err == nil {
			t.Errorf("it can be mounted on blocks of %d, too", 2*l.fits)
			unmount(t, target)
		}
	})
}

// TestMountReadOnlyDevice: mount must not quietly mount read-only.
func TestMountReadOnlyDevice(t *testing.T) {
	needRoot(t)
	image := newImage(t, 64<<20)
	if err := Make(context.Background(), image, Ext4); err != nil {
		t.Fatal(err)
	}
	device := attachLoop(t, image, 512, "--read-only")
	target := t.TempDir()
	if err := Mount(context.Background(), device, target, Ext4, nil); err == nil {
		t.Error("mounted")
		unmount(t, target)
	}
	mountAt(t, device, Ext4, "ro")
}

func TestUnmount(t *testing.T) {
	device := newLoop(t, 64<<20, 512)
	if err := Make(context.Background(), device, Ext4); err != nil {
		t.Fatal(err)
	}
	mnt := mountAt(t, device, Ext4)
	f, err := os.Create(filepath.Join(mnt, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(context.Background(), mnt); !errors.Is(err, ErrBusy) {
		t.Errorf("with an open file: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	unmount(t, mnt)
	if err := Unmount(context.Background(), mnt); !errors.Is(err, ErrNotMounted) {
		t.Errorf("again: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	onEach(t, oneOfEachType, func(t *testing.T, l layout, device, _ string) {
		mnt := mountAt(t, device, l.fsType)
		if err := Thaw(mnt); !errors.Is(err, ErrNotFrozen) {
			t.Errorf("thaw of what is not frozen: %v", err)
		}
		if err := Sync(mnt); err != nil {
			t.Fatal(err)
		}
		if err := Freeze(mnt); err != nil {
			t.Fatal(err)
		}
		if err := Freeze(mnt); !errors.Is(err, ErrFrozen) {
			t.Errorf("freeze of what is frozen: %v", err)
		}
		written := make(chan error)
		go func() { written <- os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o644) }()
		select {
		case err := <-written:
			t.Errorf("a write got through: %v", err)
			written = nil
		default:
		}
		if err := Thaw(mnt); err != nil {
			t.Fatal(err)
		}
		if written != nil {
			if err := <-written; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestNotAMountPoint: a mistaken path must not freeze the host's file system.
func TestNotAMountPoint(t *testing.T) {
	dir := t.TempDir()
	for name, err := range map[string]error{
		"sync":       Sync(dir),
		"freeze":     Freeze(dir),
		"thaw":       Thaw(dir),
		"trim":       func() error { _, err := Trim(context.Background(), dir); return err }(),
		"free space": FreeSpace(context.Background(), dir, func(_, _ int64) error { return nil }),
	} {
		if !errors.Is(err, ErrNotMounted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNotSupported tries a file system that can do nothing of this.
func TestNotSupported(t *testing.T) {
	needRoot(t)
	mnt := t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "none", mnt)
	defer unmount(t, mnt)
	_, trimErr := Trim(context.Background(), mnt)
	for name, err := range map[string]error{
		"freeze":     Freeze(mnt),
		"trim":       trimErr,
		"free space": FreeSpace(context.Background(), mnt, func(_, _ int64) error { return nil }),
	} {
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTrim(t *testing.T) {
	onEach(t, oneOfEachType, func(t *testing.T, l layout, device, image string) {
		mnt := mountAt(t, device, l.fsType)
		if err := os.WriteFile(filepath.Join(mnt, "file"), make([]byte, 100<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, "sync", "-f", mnt)
		allocated := func() int64 {
			var st unix.Stat_t
			if err := unix.Stat(image, &st); err != nil {
				t.Fatal(err)
			}
			return st.Blocks * 512
		}
		before := allocated()
		if err := os.Remove(filepath.Join(mnt, "file")); err != nil {
			t.Fatal(err)
		}
		// XFS frees the extents of the file in the background, and discards
		// them when Trim has returned.
		for deadline := time.Now().Add(10 * time.Second); before-allocated() < 99<<20; time.Sleep(10 * time.Millisecond) {
			tool(t, "sync", "-f", mnt)
			if n, err := Trim(context.Background(), mnt); err != nil || n <= 0 {
				t.Fatalf("%d bytes trimmed, %v", n, err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("still %d bytes in the image, %d before the file was removed", allocated(), before)
			}
		}
		// In steps as on a large device; the last begins near the end.
		f, err := openMount(mnt)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := trim(context.Background(), f, 7<<20); err != nil {
			t.Error("in small steps:", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := trim(ctx, f, 7<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
	})
}

func TestGrow(t *testing.T) {
	onEach(t, oneOfEachType, func(t *testing.T, l layout, device, image string) {
		mnt := mountAt(t, device, l.fsType)
		files := fragment(t, mnt)
		size := func() int64 {
			var st unix.Statfs_t
			if err := unix.Statfs(mnt, &st); err != nil {
				t.Fatal(err)
			}
			return int64(st.Blocks) * st.Bsize
		}
		before := size()
		if l.fsType == Ext4 && !capable(unix.CAP_SYS_RESOURCE) {
			t.Skip("SKIPPED: growing a mounted ext4 needs the capability CAP_SYS_RESOURCE")
		}
		if err := Grow(context.Background(), device, mnt); err != nil || size() != before {
			t.Errorf("nothing to grow: %v, %d bytes", err, size())
		}
		if err := os.Truncate(image, 2*layoutBytes); err != nil {
			t.Fatal(err)
		}
		tool(t, "losetup", "--set-capacity", device)
		if err := Grow(context.Background(), device, mnt); err != nil {
			t.Fatal(err)
		}
		if after := size(); after < before+layoutBytes*9/10 {
			t.Errorf("%d bytes, grown from %d", after, before)
		}
		verify(t, mnt, mnt, files)
	})
}

func capable(capability uintptr) bool {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, capability, 0, 0, 0)
	return err == nil && has == 1
}

func TestGrowNothing(t *testing.T) {
	device := newLoop(t, 64<<20, 512)
	if err := Grow(context.Background(), device, "/"); err == nil {
		t.Error("no error")
	}
}

func TestCheck(t *testing.T) {
	for _, fsType := range []string{Ext4, XFS} {
		path := newImage(t, 320<<20)
		if err := Make(context.Background(), path, fsType, "-b", map[string]string{Ext4: "4096", XFS: "size=4096"}[fsType]); err != nil {
			t.Fatal(err)
		}
		check(t, path, fsType)
		patch(t, path, 4096, make([]byte, 4096)...) // group descriptors, free lists
		patch(t, path, 2048, make([]byte, 2048)...)
		if err := Check(context.Background(), path, fsType); !errors.Is(err, ErrDamaged) {
			t.Errorf("damaged %s: %v", fsType, err)
		}
	}
	if err := Check(context.Background(), "/dev/null", "ntfs"); !errors.Is(err, ErrNotSupported) {
		t.Errorf("unknown type: %v", err)
	}
}
