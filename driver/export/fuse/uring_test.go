package fuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/exporttest"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// needUring skips the test where FUSE over io_uring cannot be had.
func needUring(t testing.TB) {
	t.Helper()
	u, err := newUring()
	if errors.Is(err, export.ErrUnsupported) {
		t.Skipf("FUSE over io_uring: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	u.free()
}

func TestSuiteUring(t *testing.T) {
	needUring(t)
	exporttest.Run(t, func(ctx context.Context, dev blockdev.Device, name string, blockSize int) (exporttest.Export, error) {
		return New(ctx, dev, Options{Name: name, BlockSize: blockSize, IOUring: true})
	})
}

// shortcuts counts the shortcuts of a file, refuses some, and has others fail, at once
// or when they are done.
type shortcuts struct {
	*blockdev.File
	sealed  int // an empty file that cannot be written to
	n, open atomic.Int64
}

func (d *shortcuts) BeginShortcut(s *blockdev.Shortcut) bool {
	n := d.n.Add(1)
	if n%5 == 1 || !d.File.BeginShortcut(s) {
		return false
	}
	switch n % 7 {
	case 1:
		s.FD = -1
	case 2:
		s.FD = d.sealed
	}
	d.open.Add(1)
	return true
}

func (d *shortcuts) EndShortcut(s *blockdev.Shortcut) {
	d.open.Add(-1)
	d.File.EndShortcut(s)
}

// TestShortcuts checks that data is right whether the kernel or a worker does a request,
// or the one after the other.
func TestShortcuts(t *testing.T) { overBoth(t, shortcutsTaken) }

func shortcutsTaken(t *testing.T, uring bool) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := blockdev.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	sealed, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(sealed) })
	if _, err := unix.FcntlInt(uintptr(sealed), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	dev := &shortcuts{File: file, sealed: sealed}
	e := exportWith(t, dev, Options{Name: testName(), IOUring: uring})
	for _, job := range []string{"--bs=4k --iodepth=64", "--bsrange=4k-1m --iodepth=16"} {
		mustRun(t, "fio", append(strings.Fields(job), "--name=verify", "--filename="+e.Path(), "--direct=1", "--ioengine=libaio",
			"--rw=randrw", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1")...)
	}
	if n, open := dev.n.Load(), dev.open.Load(); n == 0 || open != 0 {
		t.Errorf("%d shortcuts, %d not ended", n, open)
	}
	if s := e.Stats(); s.Errors != 0 || s.InFlight != 0 || s.BytesWritten == 0 {
		t.Errorf("stats: %+v", s)
	}
}

// TestUringCannotBeTakenOver checks that nobody is told otherwise.
func TestUringCannotBeTakenOver(t *testing.T) {
	needUring(t)
	e := exportWith(t, exporttest.NewDevice(1<<20, 4096), Options{Name: testName(), IOUring: true})
	if e.CanResend() {
		t.Error("requests are to be sent again")
	}
}

// TestAborted has the kernel break off a connection whose requests are being worked
// on.
func TestAborted(t *testing.T) { overBoth(t, aborted) }

func aborted(t *testing.T, uring bool) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dev := exporttest.NewDevice(1<<20, 4096)
	g := newGate(dev)
	e, err := New(t.Context(), dev, Options{Name: testName(), IOUring: uring})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(e.Path(), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	status, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		t.Fatal(err)
	}
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Skipf("no fusectl: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(control, 0) })
	g.shut.Store(true)
	failed := make(chan error, 1)
	go func() {
		p := blockdev.Buffer(4096)
		_, err := unix.Pread(fd, p, 0)
		failed <- err
	}()
	<-g.held
	conn := filepath.Join(control, strconv.Itoa(int(unix.Minor(status.Device))), "abort")
	if err := os.WriteFile(conn, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	within(t, "the read", func() {
		if err := <-failed; err == nil {
			t.Error("the read succeeds")
		}
	})
	close(g.open)
	within(t, "the export", func() { <-e.Done() })
	unix.Close(fd)
	if err := Detach(t.Context(), e.name); err != nil {
		t.Error(err)
	}
}

// idler is a device that is found to be idle as soon as a request is done, before the
// reply is handed in.
type idler struct {
	*blockdev.File
	srv atomic.Pointer[server]
}

func (d *idler) EndShortcut(s *blockdev.Shortcut) {
	d.File.EndShortcut(s)
	if srv := d.srv.Load(); srv != nil {
		srv.trim() // sees a request that came before
		srv.trim()
	}
}

// TestUringReadsWhileIdle checks that no memory is given back that has a reply in it.
func TestUringReadsWhileIdle(t *testing.T) {
	needUring(t)
	const blocks = 64
	content := make([]byte, blocks*4096)
	for i := range content {
		content[i] = byte(i/4096 + 1)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := blockdev.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	dev := &idler{File: file}
	e := exportWith(t, dev, Options{Name: testName(), IOUring: true})
	f, err := os.OpenFile(e.Path(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev.srv.Store(e.srv)
	p := blockdev.Buffer(4096)
	for i := range blocks {
		if _, err := f.ReadAt(p, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, content[i*4096:(i+1)*4096]) {
			t.Fatalf("block %d has %d in it", i, p[0])
		}
	}
}

// TestUringIdle checks that an export that was busy gives memory back.
func TestUringIdle(t *testing.T) {
	needUring(t)
	e := exportWith(t, exporttest.NewDevice(32<<20, 4096), Options{Name: testName(), IOUring: true})
	resident := func() (pages int) {
		mem := e.srv.uring.mem
		vec := make([]byte, len(mem)/os.Getpagesize())
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for _, v := range vec {
			pages += int(v & 1)
		}
		return pages
	}
	for range 2 {
		mustRun(t, "fio", "--name=load", "--filename="+e.Path(), "--direct=1", "--ioengine=libaio",
			"--iodepth=32", "--rw=randrw", "--bs=256k", "--size=32m")
		busy := resident()
		deadline := time.Now().Add(10 * time.Second)
		for resident() > 32 {
			if time.Now().After(deadline) {
				t.Fatalf("%d pages of %d are still there", resident(), busy)
			}
			e.srv.trim() // The timer would do it later.
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func TestEnableUring(t *testing.T) {
	dir := t.TempDir()
	if err := enableUring(filepath.Join(dir, "missing")); !errors.Is(err, export.ErrUnsupported) {
		t.Errorf("without the switch: %v", err)
	}
	path := filepath.Join(dir, "switch")
	for _, before := range []string{"N\n", "Y\n"} {
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := enableUring(path); err != nil {
			t.Errorf("%q: %v", before, err)
		}
		if b, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(b)) != "Y" {
			t.Errorf("%q became %q (%v)", before, b, err)
		}
	}
	if err := enableUring(dir); err == nil {
		t.Error("a directory is a switch")
	}
}

func TestParseCPUList(t *testing.T) {
	for list, want := range map[string][]int{
		"0": {0}, "0-3": {0, 1, 2, 3}, "0-1,4,6-7": {0, 1, 4, 6, 7},
		"": nil, "x": nil, "3-1": nil, "1-": nil, "0-99999": nil, "-1": nil,
	} {
		got, err := parseCPUList(list)
		if (err != nil) != (want == nil) || !slices.Equal(slices.Sorted(maps.Keys(got)), want) && want != nil {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
}

// FuzzEntry puts anything into an entry. It must not panic, and the answer must be one
// that the kernel takes.
func FuzzEntry(f *testing.F) {
	for op := range linuxabi.FuseOpcode(53) {
		for _, payload := range []uint32{0, 512, maxIO, 1 << 31} {
			f.Add(uint32(op), uint64(0), uint32(512), payload, []byte{0})
			f.Add(uint32(op), uint64(1)<<63, uint32(1)<<20, payload, []byte("x\x00"))
		}
	}
	dev := exporttest.NewDevice(64<<10, 512)
	srv := newServer(-1, dev, "x", 4096)
	e := entry{header: new(linuxabi.FuseUringHeader), payload: blockdev.Buffer(maxIO)}
	f.Fuzz(func(t *testing.T, op uint32, off uint64, size, payload uint32, data []byte) {
		for _, discards := range []int32{discardsProbed, discardsPlain, discardsAmbiguous} {
			srv.discards.Store(discards)
			copy(e.payload, data)
			*e.header = linuxabi.FuseUringHeader{Payload: payload}
			h := (*linuxabi.FuseInHeader)(unsafe.Pointer(&e.header.InOut))
			*h = linuxabi.FuseInHeader{Opcode: linuxabi.FuseOpcode(op), Unique: 42, NodeID: fileID}
			binary.NativeEndian.PutUint64(e.header.Op[8:], off)
			binary.NativeEndian.PutUint32(e.header.Op[16:], size)
			length, errno := 0, e.decode()
			if errno == 0 {
				length, errno, _ = srv.do(e.payload, &e.request)
			}
			if errno >= 512 || length > len(e.payload) || e.request.unique != 42 && payload <= maxIO {
				t.Errorf("answers %d bytes, %v, to %d", length, errno, e.request.unique)
			}
		}
	})
}
