package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/exporttest"
)

func TestSuite(t *testing.T) {
	exporttest.Run(t, func(ctx context.Context, dev blockdev.Device, name string, blockSize int) (exporttest.Export, error) {
		return New(ctx, dev, Options{Name: name, BlockSize: blockSize})
	})
}

// gate holds up the requests of a device while it is shut.
type gate struct {
	shut atomic.Bool
	held chan struct{} // gets something for each request that is held up, 64 at most
	open chan struct{} // to be closed, once, for those to go on
}

func newGate(dev *exporttest.Device) *gate {
	g := &gate{held: make(chan struct{}, 64), open: make(chan struct{})}
	dev.Hook = func(exporttest.Kind, int64, int64) error {
		if g.shut.Load() {
			g.held <- struct{}{}
			<-g.open
		}
		return nil
	}
	return g
}

// exportTest exports dev until the test ends.
func exportTest(t *testing.T, dev blockdev.Device, blockSize int) *Export {
	t.Helper()
	return exportWith(t, dev, Options{Name: testName(), BlockSize: blockSize})
}

func exportWith(t *testing.T, dev blockdev.Device, o Options) *Export {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	e, err := New(t.Context(), dev, o)
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

func testName() string { return fmt.Sprintf("test-%d-%d", os.Getpid(), serial.Add(1)) }

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func TestInvalid(t *testing.T) {
	dev := exporttest.NewDevice(1<<20, 1024)
	for _, o := range []Options{
		{Name: ""},
		{Name: "a/b"},
		{Name: "two words"},
		{Name: "line\n"},
		{Name: strings.Repeat("x", maxName+1)},
		{Name: "x", BlockSize: 512},
		{Name: "x", BlockSize: 8192},
		{Name: "x", BlockSize: -1},
	} {
		if e, err := New(t.Context(), dev, o); !errors.Is(err, export.ErrInvalid) {
			t.Errorf("%+v: %v, %v", o, e, err)
		}
	}
	if _, err := New(t.Context(), exporttest.NewDevice(3072, 1024), Options{Name: "x"}); !errors.Is(err, export.ErrInvalid) {
		t.Errorf("a device without a block: %v", err)
	}
}

// TestLongName checks that names come through whole.
func TestLongName(t *testing.T) {
	name := testName()
	name += strings.Repeat("x", maxName-len(name))
	e, err := New(t.Context(), exporttest.NewDevice(1<<20, 4096), Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(context.Background()) })
	infos, err := List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i == (Info{Name: name, Path: e.Path(), State: Serving}) {
			return
		}
	}
	t.Errorf("not in %+v", infos)
}

// TestSilent lists an export whose server does not answer.
func TestSilent(t *testing.T) {
	dev := exporttest.NewDevice(1<<20, 4096)
	e := exportTest(t, dev, 4096)
	if got := e.loop.state(t.Context()); got != Serving {
		t.Errorf("state %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := e.loop.state(ctx); got != Silent && got != Serving {
		t.Errorf("state %s", got)
	}
}

// TestDetachedByOthers takes the loop device away behind the back of the
// export.
func TestDetachedByOthers(t *testing.T) {
	e := exportTest(t, exporttest.NewDevice(1<<20, 4096), 4096)
	mustRun(t, "losetup", "-d", e.Path())
	select {
	case <-e.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the export goes on")
	}
	if err := e.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := e.Grow(); err == nil {
		t.Error("an export that has ended has grown")
	}
}

// TestMisaligned sends requests that no loop device would send.
func TestMisaligned(t *testing.T) {
	srv := newServer(-1, exporttest.NewDevice(1<<20, 4096), "x", 4096)
	srv.discards.Store(discardsPlain)
	m, err := newMessage(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.free)
	for _, r := range []request{{off: 1, length: 4096}, {off: 0, length: 100}, {off: 1 << 20, length: 512}, {off: 1<<20 - 512, length: 1024}} {
		if _, errno := srv.read(m.data(), &r); errno != unix.EINVAL {
			t.Errorf("read of %+v: %v", r, errno)
		}
		if _, errno := srv.write(m.data(), &r); errno != unix.EINVAL {
			t.Errorf("write of %+v: %v", r, errno)
		}
		if r.mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE; srv.fallocate(&r) != unix.EINVAL {
			t.Errorf("discard of %+v succeeds", r)
		}
	}
}

// TestIdle checks that an export that was busy gives back what that took.
func TestIdle(t *testing.T) {
	e := exportTest(t, exporttest.NewDevice(32<<20, 4096), 4096)
	load := func() {
		mustRun(t, "fio", "--name=load", "--filename="+e.Path(), "--direct=1", "--ioengine=libaio",
			"--iodepth=32", "--rw=randrw", "--bs=256k", "--size=32m")
	}
	for range 2 {
		load()
		deadline := time.Now().Add(10 * time.Second)
		for e.srv.workers.Load() > 1 || e.srv.jobs.made() > 1 {
			if time.Now().After(deadline) {
				t.Fatalf("%d workers, %d of them waiting, %d jobs", e.srv.workers.Load(), e.srv.waiting.Load(), e.srv.jobs.made())
			}
			time.Sleep(10 * time.Millisecond)
			e.srv.trim() // The timer would do it later.
		}
	}
}

// TestEnoughWorkers checks that workers leave when others wait, without being told.
func TestEnoughWorkers(t *testing.T) {
	dev := exporttest.NewDevice(1<<20, 4096)
	const many = 16
	g := newGate(dev)
	e := exportTest(t, dev, 4096)
	g.shut.Store(true)
	fd, err := unix.Open(e.Path(), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var reads sync.WaitGroup
	for i := range many {
		reads.Go(func() {
			if _, err := unix.Pread(fd, blockdev.Buffer(4096), int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	for range many {
		<-g.held
	}
	if n := e.srv.workers.Load(); n < many {
		t.Errorf("%d workers do %d requests", n, many)
	}
	g.shut.Store(false)
	close(g.open)
	reads.Wait()
	// About two: whoever has counted just before another began to wait stays as well.
	for begin := time.Now(); e.srv.workers.Load() > 2*enoughWaiting; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("%d workers are left, %d of them waiting", e.srv.workers.Load(), e.srv.waiting.Load())
		}
	}
}

// TestIdleLater checks that memory is given back although the server was not idle when
// it was looked at, with one worker left.
func TestIdleLater(t *testing.T) {
	s := newServer(-1, exporttest.NewDevice(1<<20, 4096), "", 4096)
	t.Cleanup(s.jobs.release)
	t.Cleanup(s.stopTrimming)
	s.workers.Store(1) // the worker, and
	s.waiting.Store(1)
	j, err := s.takeJob() // what it waits with
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.jobs.put(j) })
	other, err := s.takeJob() // what was done meanwhile
	if err != nil {
		t.Fatal(err)
	}
	s.jobs.put(other)
	s.counts.reads.Add(1)
	s.trim() // not idle
	s.trim()
	if n := s.jobs.made(); n != 1 {
		t.Errorf("%d jobs are left", n)
	}
}
