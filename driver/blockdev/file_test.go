package blockdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/blockdevtest"
)

const imageSize = 4 << 20

func newImage(t testing.TB, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t testing.TB, path string, flags ...blockdev.Flag) *blockdev.File {
	t.Helper()
	f, err := blockdev.Open(path, flags...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// tmpfs returns a directory on a file system that cannot zero ranges and does
// not tell the alignment of direct I/O.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "blockdev-test-")
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

// newLoop makes a loop device of n bytes with blocks of this size.
func newLoop(t testing.TB, size int64, blockSize uint32) string {
	t.Helper()
	image, err := os.OpenFile(newImage(t, t.TempDir(), size), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Size: blockSize}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			loop.Close()
			continue
		}
		if err != nil {
			loop.Close()
			t.Fatal(err)
		}
		loop.Close()
		t.Cleanup(func() { detach(t, path) })
		return path
	}
	t.Fatal("no loop device to be had")
	return ""
}

func detach(t testing.TB, path string) {
	loop, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Errorf("detaching %s: %v", path, err)
	}
}

func TestFile(t *testing.T) {
	for _, place := range []struct {
		name string
		dir  func(testing.TB) string
	}{
		{"Disk", func(t testing.TB) string { return t.TempDir() }},
		{"Tmpfs", tmpfs},
	} {
		t.Run(place.name, func(t *testing.T) {
			blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
				return openFile(t, newImage(t, place.dir(t), imageSize), blockdev.Exclusive)
			})
		})
		t.Run(place.name+"KeepAllocated", func(t *testing.T) {
			blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
				return openFile(t, newImage(t, place.dir(t), imageSize), blockdev.KeepAllocated)
			})
		})
	}
}

func TestBlockDevice(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			path := newLoop(t, imageSize, blockSize)
			blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
				f := openFile(t, path, blockdev.Exclusive)
				if f.BlockSize() != int(blockSize) || f.Size() != imageSize {
					t.Fatalf("%d bytes in blocks of %d", f.Size(), f.BlockSize())
				}
				return f
			})
		})
	}
}

// TestNoDirectIO: on a file system that takes O_DIRECT and then cannot do it, I/O
// is buffered.
func TestNoDirectIO(t *testing.T) {
	loop, dir := newFileSystem(t, "ext4", 32<<20, "data=journal")
	blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
		return openFile(t, newImage(t, dir, imageSize))
	})
	if _, err := blockdev.Open(loop, blockdev.Exclusive); !errors.Is(err, blockdev.ErrInUse) {
		t.Errorf("exclusive use of a mounted device: %v", err)
	}
}

// newFileSystem makes a loop device with a file system and mounts it at dir.
func newFileSystem(t testing.TB, fsType string, size int64, options string) (loop, dir string) {
	t.Helper()
	loop = newLoop(t, size, 512)
	if out, err := exec.Command("mkfs."+fsType, "-q", loop).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", fsType, err, out)
	}
	dir = t.TempDir()
	if err := unix.Mount(loop, dir, fsType, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return loop, dir
}

func TestExclusive(t *testing.T) {
	for _, test := range []struct{ name, path string }{
		{"File", newImage(t, t.TempDir(), imageSize)},
		{"Device", newLoop(t, imageSize, 512)},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 2 {
				first := openFile(t, test.path, blockdev.Exclusive)
				for _, flags := range []blockdev.Flag{0, blockdev.ReadOnly} {
					second, err := blockdev.Open(test.path, blockdev.Exclusive, flags)
					if !errors.Is(err, blockdev.ErrInUse) || second != nil {
						t.Fatalf("a second exclusive user: %v", err)
					}
				}
				// Looking on is allowed.
				if err := openFile(t, test.path, blockdev.ReadOnly).Close(); err != nil {
					t.Fatal(err)
				}
				if err := first.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCached: what is read through the cache is what was written past it, also after
// the cache had something else, and of the file that was opened.
func TestCached(t *testing.T) {
	path := newImage(t, t.TempDir(), imageSize)
	f := openFile(t, path, blockdev.Exclusive)
	defer f.Close()
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	p, got := blockdev.Buffer(8192), make([]byte, 8192)
	for i := range byte(3) {
		copy(p, bytes.Repeat([]byte{'a' + i}, len(p)))
		if _, err := f.WriteAt(p, 4096); err != nil {
			t.Fatal(err)
		}
		c, err := f.Cached()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, p) {
			t.Errorf("read %q..., %v", got[:4], err)
		}
		if _, err := c.WriteAt(p, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	path := newImage(t, t.TempDir(), imageSize)
	f := openFile(t, path, blockdev.ReadOnly)
	defer f.Close()
	p := blockdev.Buffer(f.BlockSize())
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Error(err)
	}
	_, err := f.WriteAt(p, 0)
	for what, err := range map[string]error{
		"WriteAt":     err,
		"Discard":     f.Discard(0, int64(len(p))),
		"WriteZeroes": f.WriteZeroes(0, int64(len(p))),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := f.Flush(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo, "/dev/null", filepath.Join(dir, "nothing")} {
		if f, err := blockdev.Open(path, blockdev.ReadOnly); err == nil || f != nil {
			t.Errorf("%s was opened", path)
		}
	}
	if _, err := blockdev.Open(filepath.Join(dir, "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

// TestSizes: a tail that is not a whole block does not count, and a file that
// grew has its new size after Refresh.
func TestSizes(t *testing.T) {
	path := newImage(t, t.TempDir(), imageSize+100)
	f := openFile(t, path)
	defer f.Close()
	if f.Size() != imageSize {
		t.Errorf("size %d, not %d", f.Size(), imageSize)
	}
	if err := os.Truncate(path, 2*imageSize); err != nil {
		t.Fatal(err)
	}
	if f.Size() != imageSize {
		t.Errorf("the size changed by itself to %d", f.Size())
	}
	if err := f.Refresh(); err != nil || f.Size() != 2*imageSize {
		t.Errorf("after Refresh: %d, %v", f.Size(), err)
	}
	p := blockdev.Buffer(f.BlockSize())
	if _, err := f.WriteAt(p, 2*imageSize-int64(len(p))); err != nil {
		t.Error(err)
	}
}

// TestFileShrinks: a file that became shorter behind our back gives errors, not
// made-up content.
func TestFileShrinks(t *testing.T) {
	for _, dir := range []string{t.TempDir(), tmpfs(t)} {
		path := newImage(t, dir, imageSize)
		f := openFile(t, path)
		defer f.Close()
		if err := os.Truncate(path, 4096); err != nil {
			t.Fatal(err)
		}
		for skip := range 2 { // misaligned memory goes another way
			p := blockdev.Buffer(8192 + skip)[skip:]
			if n, err := f.ReadAt(p, 0); n != 4096 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read over the end: %d, %v", n, err)
			}
		}
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * blockdev.SectorSize
}

// TestAllocation: a discard gives space back, zeroing keeps it.
func TestAllocation(t *testing.T) {
	path := newImage(t, t.TempDir(), imageSize)
	f := openFile(t, path)
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, imageSize), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteZeroes(0, imageSize); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n < imageSize {
		t.Errorf("%d bytes allocated after zeroing", n)
	}
	if err := f.Discard(0, imageSize/2); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n > imageSize*3/4 {
		t.Errorf("%d bytes allocated after discarding half", n)
	}
}

// TestKeepAllocated: with that flag a discard gives nothing back, and does nothing
// at all where the file system cannot do better.
func TestKeepAllocated(t *testing.T) {
	_, ext4 := newFileSystem(t, "ext4", 32<<20, "")
	_, xfs := newFileSystem(t, "xfs", 320<<20, "")
	content := bytes.Repeat([]byte{1}, imageSize)
	for _, test := range []struct {
		name   string
		dir    string
		expect []byte // after the discard
	}{
		{"Ext4", ext4, make([]byte, imageSize/2)},
		{"XFS", xfs, content[:imageSize/2]},
		{"Tmpfs", tmpfs(t), content[:imageSize/2]},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := newImage(t, test.dir, imageSize)
			f := openFile(t, path, blockdev.KeepAllocated)
			defer f.Close()
			if _, err := f.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Discard(0, imageSize/2); err != nil {
				t.Fatal(err)
			}
			if n := allocated(t, path); n < imageSize {
				t.Errorf("%d bytes allocated after discarding half", n)
			}
			got := make([]byte, imageSize)
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:imageSize/2], test.expect) {
				t.Error("the discarded half does not read as it should")
			}
			if !bytes.Equal(got[imageSize/2:], content[imageSize/2:]) {
				t.Error("the other half has changed")
			}
			if err := f.WriteZeroes(0, imageSize); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, make([]byte, imageSize)) || allocated(t, path) < imageSize {
				t.Error("zeroed, and not all zeros or not all allocated")
			}
		})
	}
}

func TestBuffer(t *testing.T) {
	for _, n := range []int{0, 1, 512, 4095, 4096, 4097, 12288, 1 << 16, 1<<20 + 512} {
		for range 20 {
			b := blockdev.Buffer(n)
			if len(b) != n || cap(b) != n {
				t.Fatalf("%d bytes wanted: length %d, capacity %d", n, len(b), cap(b))
			}
			if at := uintptr(unsafe.Pointer(unsafe.SliceData(b))); n > 0 && at%4096 != 0 {
				t.Fatalf("%d bytes at %#x", n, at)
			}
		}
	}
}

// TestNoAllocations: the data path makes no work for the garbage collector.
func TestNoAllocations(t *testing.T) {
	f := openFile(t, newImage(t, t.TempDir(), imageSize))
	defer f.Close()
	for _, test := range []struct {
		buffer []byte
		limit  float64
	}{
		{blockdev.Buffer(4096), 1},
		// The race detector makes pools forgetful. Without a pool it were 4.
		{blockdev.Buffer(4097)[1:], 3},
	} {
		p := test.buffer
		n := testing.AllocsPerRun(100, func() {
			_, werr := f.WriteAt(p, 8192)
			_, rerr := f.ReadAt(p, 8192)
			if err := errors.Join(werr, rerr, f.WriteZeroes(0, 4096), f.Discard(4096, 4096)); err != nil {
				t.Fatal(err)
			}
		})
		if n >= test.limit {
			t.Errorf("%v allocations a round", n)
		}
	}
}

func BenchmarkFile(b *testing.B) {
	for _, place := range []struct {
		name string
		dir  func(testing.TB) string
	}{
		{"Disk", func(b testing.TB) string { return b.TempDir() }},
		{"Tmpfs", tmpfs},
	} {
		f := openFile(b, newImage(b, place.dir(b), 64<<20))
		defer f.Close()
		if _, err := f.WriteAt(blockdev.Buffer(64<<20), 0); err != nil {
			b.Fatal(err)
		}
		for _, size := range []int{4 << 10, 1 << 20} {
			aligned, shifted := blockdev.Buffer(size), blockdev.Buffer(size + 1)[1:]
			for _, op := range []struct {
				name string
				do   func(off int64) (int, error)
			}{
				{"Read", func(off int64) (int, error) { return f.ReadAt(aligned, off) }},
				{"Write", func(off int64) (int, error) { return f.WriteAt(aligned, off) }},
				{"ReadBounced", func(off int64) (int, error) { return f.ReadAt(shifted, off) }},
				{"WriteBounced", func(off int64) (int, error) { return f.WriteAt(shifted, off) }},
			} {
				b.Run(fmt.Sprintf("%s/%s/%dKiB", place.name, op.name, size>>10), func(b *testing.B) {
					b.SetBytes(int64(size))
					b.ReportAllocs()
					for i := int64(0); b.Loop(); i++ {
						if _, err := op.do(i * int64(size) % (64 << 20)); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// TestShortcuts checks what a file lets others do on its descriptor.
func TestShortcuts(t *testing.T) {
	_, dir := newFileSystem(t, "ext4", 32<<20, "")
	path := newImage(t, dir, imageSize)
	for _, flags := range []blockdev.Flag{0, blockdev.ReadOnly, blockdev.Buffered} {
		f := openFile(t, path, flags)
		defer f.Close()
		for _, s := range []blockdev.Shortcut{
			{Length: 4096}, {Write: true, Length: 4096}, {Offset: imageSize, Length: 4096}, {Offset: 1, Length: 4096},
		} {
			want := flags != blockdev.Buffered && s.Offset == 0 && !(s.Write && flags == blockdev.ReadOnly)
			if got := f.BeginShortcut(&s); got != want {
				t.Errorf("flags %d, %+v: %t", flags, s, got)
			}
		}
	}
}
