package exporttest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// randomRequests compares the block device with a model.
func (s suite) randomRequests(t *testing.T) {
	const size, block, writers, steps = 16 << 20, 512, 4, 150
	dev := NewDevice(size, block)
	e := s.export(t, dev, block)
	fd := open(t, e)
	model := memory(t, size)
	if err := ioctlRange(fd, unix.BLKZEROOUT, 0, size); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for w := range writers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		buf := memory(t, size/writers)
		base := int64(w) * size / writers
		wg.Go(func() {
			for range steps {
				length := block * (1 + rng.Int64N(1+rng.Int64N(size/writers/block)))
				off := base + block*rng.Int64N((size/writers-length)/block+1)
				p, want := buf[:length], model[off:off+length]
				var err error
				switch rng.IntN(10) {
				case 0:
					err = ioctlRange(fd, unix.BLKZEROOUT, uint64(off), uint64(length))
					clear(want)
				case 1:
					err = unix.Fsync(fd)
				case 2, 3, 4, 5:
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
					copy(want, p)
					_, err = unix.Pwrite(fd, p, off)
				default:
					_, err = unix.Pread(fd, p, off)
					if err == nil && !bytes.Equal(p, want) {
						err = errors.New("reads differently")
					}
				}
				if err != nil {
					t.Errorf("range [%d, +%d): %v", off, length, err)
					return
				}
			}
		})
	}
	wg.Wait()
	got := memory(t, size)
	if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("the device differs from the model (%v)", err)
	}
	if dev.Count(Flush) == 0 {
		t.Error("no flush arrived")
	}
}

// cutRequests does I/O with memory that makes the kernel cut requests in the
// middle of a block: it lies in large pages, but begins at none.
func (s suite) cutRequests(t *testing.T) {
	const size = 8 << 20
	e := s.export(t, NewDevice(size, 4096), 4096)
	fd := open(t, e)
	mem, back := memory(t, size+4<<20), memory(t, size+4<<20)
	for _, m := range [][]byte{mem, back} {
		if err := unix.Madvise(m, unix.MADV_HUGEPAGE); err != nil {
			t.Logf("no large pages: %v", err)
		}
	}
	for shift := 512; shift < 4096; shift += 1024 {
		p, q := mem[shift:shift+size], back[shift:shift+size]
		for i := range p {
			p[i] = byte(i>>9) ^ byte(i>>17) ^ byte(shift>>9)
		}
		if n, err := unix.Pwrite(fd, p, 0); n != len(p) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
		if n, err := unix.Pread(fd, q, 0); n != len(q) || err != nil {
			t.Fatalf("read: %d, %v", n, err)
		}
		if !bytes.Equal(p, q) {
			t.Fatalf("memory shifted by %d: reads differently", shift)
		}
	}
}

// parallel checks that requests reach the device at once, writes too: none of
// them is answered before all have arrived.
func (s suite) parallel(t *testing.T) {
	for _, kind := range []Kind{Read, Write} {
		t.Run(string(kind), func(t *testing.T) {
			const n = 32
			dev := NewDevice(n*4096, 4096)
			var arrived sync.WaitGroup
			arrived.Add(n)
			all := make(chan struct{})
			armed := make(chan struct{})
			dev.Hook = func(k Kind, _, _ int64) error {
				select {
				case <-armed:
				default:
					return nil
				}
				if k != kind {
					return nil
				}
				arrived.Done()
				select {
				case <-all:
					return nil
				case <-time.After(10 * time.Second):
					return errors.New("the others have not arrived")
				}
			}
			e := s.export(t, dev, 4096)
			fd := open(t, e)
			time.Sleep(100 * time.Millisecond) // Others may have a look at a new device.
			close(armed)
			go func() {
				arrived.Wait()
				close(all)
			}()
			var wg sync.WaitGroup
			for i := range int64(n) {
				p := memory(t, 4096)
				wg.Go(func() {
					var err error
					if kind == Read {
						_, err = unix.Pread(fd, p, i*4096)
					} else {
						_, err = unix.Pwrite(fd, p, i*4096)
					}
					if err != nil {
						t.Errorf("request %d: %v", i, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// errors checks that requests fail if the device fails, and that those who can
// tell the cause are told.
func (s suite) errors(t *testing.T) {
	var mu sync.Mutex
	var failing Kind
	var failure error
	dev := NewDevice(1<<20, 4096)
	dev.Hook = func(kind Kind, _, _ int64) error {
		mu.Lock()
		defer mu.Unlock()
		if kind == failing {
			return failure
		}
		return nil
	}
	e := s.export(t, dev, 4096)
	fd := open(t, e)
	p := memory(t, 4096)
	do := map[Kind]func() error{
		Read:    func() error { _, err := unix.Pread(fd, p, 0); return err },
		Write:   func() error { _, err := unix.Pwrite(fd, p, 0); return err },
		Flush:   func() error { return unix.Fsync(fd) },
		Discard: func() error { return ioctlRange(fd, unix.BLKDISCARD, 0, 4096) },
	}
	for _, c := range []struct {
		kind     Kind
		err      error
		want     error
		absorbed bool // if discards arrive as something else
	}{
		{kind: Read, err: errors.New("unknown"), want: unix.EIO},
		{kind: Read, err: unix.ENODATA, want: unix.ENODATA},
		{kind: Read, err: blockdev.ErrOutOfRange, want: unix.EINVAL},
		{kind: Read, err: unix.ENOSYS, want: unix.EIO},
		{kind: Write, err: unix.EIO, want: unix.EIO},
		{kind: Write, err: unix.ENOSPC, want: unix.ENOSPC},
		{kind: Write, err: unix.ENOSYS, want: unix.EIO},
		{kind: Flush, err: errors.New("unknown"), want: unix.EIO},
		{kind: Flush, err: unix.ENOSYS, want: unix.EIO},
		{kind: Discard, err: unix.EIO, want: unix.EIO, absorbed: e.DiscardsAmbiguous()},
	} {
		if c.absorbed {
			continue
		}
		mu.Lock()
		failing, failure = c.kind, c.err
		mu.Unlock()
		if err := do[c.kind](); !errors.Is(err, c.want) {
			t.Errorf("%s that fails with %v: %v, want %v", c.kind, c.err, err, c.want)
		}
		mu.Lock()
		failing = ""
		mu.Unlock()
		if err := do[c.kind](); err != nil {
			t.Errorf("%s after one that failed: %v", c.kind, err)
		}
	}
	if e.Stats().Errors == 0 {
		t.Error("no errors are counted")
	}
}

// discard checks that a discard arrives as such.
func (s suite) discard(t *testing.T) {
	const size = 1 << 20
	dev := NewDevice(size, 4096)
	e := s.export(t, dev, 4096)
	fd := open(t, e)
	p := memory(t, size)
	for i := range p {
		p[i] = 1
	}
	if _, err := unix.Pwrite(fd, p, 0); err != nil {
		t.Fatal(err)
	}
	if err := ioctlRange(fd, unix.BLKDISCARD, 8192, 4096); err != nil {
		t.Fatal(err)
	}
	want := byte(poison)
	if e.DiscardsAmbiguous() {
		want = 0
	} else if n := dev.Count(Discard); n != 1 {
		t.Errorf("%d discards", n)
	}
	if _, err := unix.Pread(fd, p, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range p {
		if inside := i >= 8192 && i < 8192+4096; inside && b != want || !inside && b != 1 {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
	if got := sysfs(t, e, "queue/discard_granularity"); got != 4096 {
		t.Errorf("granularity of discards is %d", got)
	}
}
