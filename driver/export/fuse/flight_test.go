package fuse

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export/exporttest"
)

// stuck is a device whose reads of the second block are to be done on a pipe.
type stuck struct {
	*exporttest.Device
	pipe int // with nothing in it
}

func (d *stuck) BeginShortcut(s *blockdev.Shortcut) bool {
	s.FD = d.pipe
	return !s.Write && s.Offset == 4096
}

func (d *stuck) EndShortcut(*blockdev.Shortcut) {}

// TestStuck checks that requests for which the kernel has to wait before it can begin
// them keep nobody from the others.
func TestStuck(t *testing.T) { overBoth(t, isStuck) }

func isStuck(t *testing.T, uring bool) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]) })
	dev := &stuck{Device: exporttest.NewDevice(1<<20, 4096), pipe: pipe[0]}
	held, hold := make(chan struct{}), make(chan struct{})
	var hang atomic.Bool
	dev.Hook = func(_ exporttest.Kind, off, _ int64) error {
		if off == 0 && hang.CompareAndSwap(true, false) {
			close(held)
			<-hold
		}
		return nil
	}
	e := exportWith(t, dev, Options{Name: testName(), IOUring: uring})
	fd, err := unix.Open(e.Path(), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	read := func(off int64) {
		if _, err := unix.Pread(fd, blockdev.Buffer(4096), off); err != nil {
			t.Errorf("at %d: %v", off, err)
		}
	}
	var reads sync.WaitGroup
	hang.Store(true)
	reads.Go(func() { read(0) }) // so that the others are not alone
	<-held
	for range 8 {
		reads.Go(func() { read(4096) })
		time.Sleep(10 * time.Millisecond)
	}
	answered := make(chan struct{})
	reads.Go(func() { read(8192); close(answered) })
	deadline := time.After(20 * time.Second)
	for waiting := true; waiting; {
		select {
		case <-answered:
			waiting = false
		case <-deadline:
			t.Error("another read hangs")
			waiting = false
		case <-time.After(10 * time.Millisecond):
			e.srv.trim() // The timer would do it later.
		}
	}
	close(hold)
	unix.Close(pipe[1]) // What waits reads nothing, and is done by a worker.
	reads.Wait()
	unix.Close(fd)
}
