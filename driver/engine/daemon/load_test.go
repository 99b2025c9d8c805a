package daemon_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"golang.org/x/sys/unix"
)

// load writes to a file system and reads back what it wrote. Every error, and every
// byte that is not what was written last, fails the test.
type load struct {
	t    *testing.T
	stop chan struct{}
	wg   sync.WaitGroup
}

const (
	cell     = 4096            // unit of the writers, bytes
	fileSize = 8 << 20         // of a writer of cells
	cells    = fileSize / cell // of a file
)

// startLoad starts writers in dir.
func startLoad(t *testing.T, dir string) *load {
	l := &load{t: t, stop: make(chan struct{})}
	for i := range 3 {
		l.wg.Go(func() { l.direct(filepath.Join(dir, fmt.Sprintf("direct%d", i)), uint64(i)) })
	}
	l.wg.Go(func() { l.buffered(filepath.Join(dir, "buffered")) })
	l.wg.Go(func() { l.files(dir) })
	return l
}

// end stops the writers and returns when they have verified everything.
func (l *load) end() {
	close(l.stop)
	l.wg.Wait()
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return l.t.Failed()
	}
}

// stamp fills p, which begins at the given cell of a file, with what its cells have
// in the given generation.
func stamp(p []byte, file uint64, at int, generation uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], generation<<40|file<<32|uint64(at*cell+i))
	}
}

// direct writes and reads ranges of cells past the page cache.
func (l *load) direct(path string, seed uint64) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer unix.Close(fd)
	rng := rand.New(rand.NewPCG(seed, 1))
	var generations [cells]uint64
	buf, want := blockdev.Buffer(256*cell), make([]byte, cell)
	check := func(at, n int) {
		if _, err := unix.Pread(fd, buf[:n*cell], int64(at*cell)); err != nil {
			l.t.Errorf("reading %s: %v", path, err)
			return
		}
		for i := range n {
			if generations[at+i] == 0 {
				continue
			}
			stamp(want, seed, at+i, generations[at+i])
			if got := buf[i*cell : (i+1)*cell]; !bytes.Equal(got, want) {
				l.t.Errorf("%s, cell %d: generation %d, want %d", path, at+i, binary.LittleEndian.Uint64(got)>>40, generations[at+i])
				return
			}
		}
	}
	for g := uint64(1); !l.stopped(); g++ {
		at := rng.IntN(cells)
		n := 1 + rng.IntN(min(4, cells-at))
		if rng.IntN(8) == 0 {
			n = min(256, cells-at)
		}
		if g%4 == 0 {
			check(at, n)
			continue
		}
		stamp(buf[:n*cell], seed, at, g)
		if k, err := unix.Pwrite(fd, buf[:n*cell], int64(at*cell)); err != nil || k != n*cell {
			l.t.Errorf("writing %s: %d, %v", path, k, err)
			return
		}
		for i := range n {
			generations[at+i] = g
		}
		if g%32 == 0 {
			if err := unix.Fdatasync(fd); err != nil {
				l.t.Errorf("flushing %s: %v", path, err)
			}
		}
	}
	for at := 0; at < cells; at += 256 {
		check(at, 256)
	}
}

// buffered writes through the page cache, so that the kernel writes back in large
// pieces.
func (l *load) buffered(path string) {
	f, err := os.Create(path)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer f.Close()
	p := make([]byte, 4<<20)
	for g := uint64(1); ; g++ {
		stamp(p, 9, 0, g)
		if _, err := f.WriteAt(p, 0); err != nil {
			l.t.Error(err)
			return
		}
		if err := f.Sync(); err != nil {
			l.t.Error(err)
			return
		}
		if l.stopped() {
			break
		}
	}
	// What the device has, not the page cache.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		l.t.Error(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, p) {
		l.t.Errorf("%s is not what was written: %v", path, err)
	}
}

// files makes, renames and removes small files.
func (l *load) files(dir string) {
	for i := 0; !l.stopped(); i++ {
		from, to := filepath.Join(dir, "new"), filepath.Join(dir, fmt.Sprintf("small%d", i%64))
		want := bytes.Repeat([]byte{byte(i)}, 1+i%20000)
		err := os.WriteFile(from, want, 0o600)
		if err == nil {
			err = os.Rename(from, to)
		}
		if err == nil && i%8 == 0 {
			err = syncFile(to)
		}
		if err == nil && i%5 == 0 {
			err = os.Remove(to)
		} else if err == nil {
			var got []byte
			if got, err = os.ReadFile(to); err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("%s is not what was written", to)
			}
		}
		if err != nil {
			l.t.Error(err)
			return
		}
	}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
