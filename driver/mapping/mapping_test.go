package mapping

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/export"
)

func TestBuckets(t *testing.T) {
	for _, c := range []struct {
		took time.Duration
		want int
	}{
		{-1, 0}, {0, 0}, {time.Microsecond, 0}, {16 * time.Microsecond, 0}, {16*time.Microsecond + 1, 1}, {32 * time.Microsecond, 1},
		{time.Microsecond << (firstBucket + numBuckets - 2), numBuckets - 2}, {time.Hour, numBuckets - 1},
	} {
		if got := bucketOf(c.took); got != c.want {
			t.Errorf("%s: bucket %d, want %d", c.took, got, c.want)
		}
	}
}

// newTestMapping attaches an image of 16 MiB.
func newTestMapping(t *testing.T, o Options) (m *Mapping, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE and loop devices")
	}
	path = filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	m, err = Attach(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return m, path
}

func TestLatencies(t *testing.T) {
	m, _ := newTestMapping(t, Options{Name: fmt.Sprintf("latency-%d", os.Getpid()), BlockSize: 4096})
	dev, err := blockdev.Open(m.Device())
	if err != nil {
		t.Fatal(err)
	}
	const n = 5
	for i := range n {
		if _, err := dev.WriteAt(blockdev.Buffer(4096), int64(i)*4096); err != nil {
			t.Error(err)
		}
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	for _, l := range m.Latencies() {
		if l.Op != OpWrite || l.State != bow.Trim {
			continue
		}
		if l.Count < n || l.Sum <= 0 || l.Buckets[len(l.Buckets)-1].Count > l.Count {
			t.Errorf("%+v", l)
		}
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTakeOverGone takes over what has ended, or belongs to somebody else now.
func TestTakeOverGone(t *testing.T) {
	o := Options{Name: fmt.Sprintf("gone-%d", os.Getpid()), BlockSize: 4096}
	m, path := newTestMapping(t, o)
	h, ok, err := m.Handover()
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Skip("this kernel cannot send requests again")
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(t.Context(), path, o, h); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("taken over: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	// The device is not held.
	dev, err := blockdev.Open(path, blockdev.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailures: an operation of the backing device that fails is told of, with the
// error and the time. What the engine refuses is not one.
func TestFailures(t *testing.T) {
	m, path := newTestMapping(t, Options{Name: fmt.Sprintf("failures-%d", os.Getpid()), BlockSize: 4096})
	p := blockdev.Buffer(4096)
	if _, err := m.ReadAt(p, m.Size()); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("read after the end: %v", err)
	}
	if f := m.Failures(); f != (Failures{}) {
		t.Errorf("nothing has failed: %+v", f)
	}
	began := time.Now()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	for want := range uint64(3) {
		if _, err := m.ReadAt(p, 8192); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read of what is gone: %v", err)
		}
		f := m.Failures()
		if f.Count != want+1 || !errors.Is(f.Last, io.ErrUnexpectedEOF) || f.At.Before(began) || f.At.After(time.Now()) {
			t.Errorf("after %d: %+v", want+1, f)
		}
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
