// Package exporttest checks what package export promises of every kind of
// export, with real block devices of the kernel. It needs root, ext4, the tools
// of e2fsprogs and util-linux, and fio.
package exporttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
)

// Export is what a kind of export has to have.
type Export interface {
	Path() string
	DiscardsAmbiguous() bool
	Stats() export.Stats
	Grow() error
	Close(context.Context) error
}

// NewFunc exports dev under a name, as a block device with logical blocks of
// blockSize bytes.
type NewFunc func(ctx context.Context, dev blockdev.Device, name string, blockSize int) (Export, error)

// Run runs the suite on the exports that newExport makes.
func Run(t *testing.T, newExport NewFunc) {
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	s := suite{newExport}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Geometry", s.geometry},
		{"RandomRequests", s.randomRequests},
		{"CutRequests", s.cutRequests},
		{"Parallel", s.parallel},
		{"Errors", s.errors},
		{"Discard", s.discard},
		{"Zeroing", s.zeroing},
		{"Busy", s.busy},
		{"Leaks", s.leaks},
		{"Verify", s.verify},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct{ newExport NewFunc }

var serial atomic.Int64

// export exports dev until the test ends.
func (s suite) export(t *testing.T, dev blockdev.Device, blockSize int) Export {
	t.Helper()
	name := fmt.Sprintf("exporttest-%d-%d", os.Getpid(), serial.Add(1))
	e, err := s.newExport(t.Context(), dev, name, blockSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// open opens the block device for direct I/O until the test ends.
func open(t *testing.T, e Export) int {
	t.Helper()
	fd, err := unix.Open(e.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", e.Path(), err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// memory is n bytes that begin at a page.
func memory(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// sysfs is the number in a file of the block device's directory.
func sysfs(t *testing.T, e Export, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(e.Path()), name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ioctlRange calls BLKDISCARD or BLKZEROOUT.
func ioctlRange(fd int, request uint, off, length uint64) error {
	arg := [2]uint64{off, length}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// run runs a program, logs what it does if it fails, and returns its output.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Logf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out), err
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := run(t, name, args...); err != nil {
		t.FailNow()
	}
}

// mount mounts a file system until the test ends or unmount is called.
func mount(t *testing.T, dev, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	mustRun(t, "mount", "-o", options, dev, dir)
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func (s suite) geometry(t *testing.T) {
	for _, c := range []struct{ device, export int }{{512, 512}, {512, 1024}, {1024, 2048}, {4096, 4096}, {512, 4096}} {
		t.Run(fmt.Sprintf("%d/%d", c.device, c.export), func(t *testing.T) {
			size := int64(1<<20 + c.device) // The last block may be incomplete.
			dev := NewDevice(size, c.device)
			e := s.export(t, dev, c.export)
			check := func() {
				t.Helper()
				if got, want := sysfs(t, e, "size")*512, dev.Size()/int64(c.export)*int64(c.export); got != want {
					t.Errorf("size %d, want %d", got, want)
				}
				if got := sysfs(t, e, "queue/logical_block_size"); got != int64(c.export) {
					t.Errorf("logical block size %d", got)
				}
			}
			check()
			dev.Grow(3 << 20)
			if err := e.Grow(); err != nil {
				t.Fatal(err)
			}
			check()
			if n := dev.Count(Write) + dev.Count(Discard) + dev.Count(WriteZeroes); n != 0 {
				t.Errorf("%d requests changed the device before it was used", n)
			}
		})
	}
}

func (s suite) busy(t *testing.T) {
	e := s.export(t, NewDevice(1<<20, 4096), 4096)
	fd := open(t, e)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); !errors.Is(err, export.ErrBusy) {
		t.Fatalf("close while it is open: %v", err)
	}
	p := memory(t, 4096)
	if _, err := unix.Pwrite(fd, p, 0); err != nil {
		t.Errorf("write after a close that was refused: %v", err)
	}
	if err := ioctlRange(fd, unix.BLKZEROOUT, 0, 4096); err != nil {
		t.Errorf("zero after a close that was refused: %v", err)
	}
	unix.Close(fd)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func (s suite) leaks(t *testing.T) {
	type resources struct{ goroutines, descriptors int }
	count := func() resources {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return resources{runtime.NumGoroutine(), len(fds)}
	}
	once := func() {
		t.Run("export", func(t *testing.T) {
			e := s.export(t, NewDevice(1<<20, 4096), 4096)
			mustRun(t, "dd", "if=/dev/zero", "of="+e.Path(), "bs=64k", "count=16", "status=none", "oflag=direct")
		})
	}
	once() // What is made once for the process is no leak.
	before := count()
	for range 10 {
		once()
	}
	// Threads and goroutines may need a moment to end.
	var after resources
	for range 100 {
		if after = count(); after.goroutines <= before.goroutines && after.descriptors <= before.descriptors {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("before %+v, after %+v", before, after)
}

// verify lets fio write at random and check what it reads.
func (s suite) verify(t *testing.T) {
	for _, blockSize := range []int{512, 4096} {
		t.Run(strconv.Itoa(blockSize), func(t *testing.T) {
			e := s.export(t, NewDevice(32<<20, 512), blockSize)
			out, err := exec.CommandContext(t.Context(), "fio", "--name=verify", "--filename="+e.Path(),
				"--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite",
				"--bsrange="+strconv.Itoa(blockSize)+"-256k", "--blockalign="+strconv.Itoa(blockSize),
				"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--size=32m").CombinedOutput()
			if err != nil {
				t.Errorf("fio: %v\n%s", err, out)
			}
			if n := e.Stats().InFlight; n != 0 {
				t.Errorf("%d requests in flight", n)
			}
		})
	}
}
