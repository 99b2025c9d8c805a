package bow_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"golang.org/x/sys/unix"
)

var blockSizes = []int{512, 1024, 2048, 4096}

// perBlockSize runs a test with every block size.
func perBlockSize(t *testing.T, test func(t *testing.T, bs int)) {
	for _, bs := range blockSizes {
		t.Run(map[int]string{512: "512", 1024: "1024", 2048: "2048", 4096: "4096"}[bs], func(t *testing.T) { test(t, bs) })
	}
}

// TestBlock0: what is written to block 0 while a checkpoint is open is read back,
// survives a commit, and is gone after a rollback, also when the place where it is
// kept is wanted by the file system.
func TestBlock0(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 64, 32)
		f.checkpoint()
		f.want(f.engine, 0, 1)
		f.must(f.write(0, 100))
		f.want(f.engine, 0, 100)
		// Every free block is written, so the live block 0 moves about.
		moved := 0
		for b := int64(32); b < 64; b++ {
			if err := f.write(b, byte(b)); errors.Is(err, bow.ErrNoSpace) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			f.want(f.engine, 0, 100+byte(moved))
			moved++
			f.must(f.write(0, 100+byte(moved)))
		}
		if moved < 20 {
			t.Fatalf("only %d free blocks could be written", moved)
		}
		f.want(f.engine, 0, 100+byte(moved))
		f.wantRollback(32)
		f.must(f.engine.Commit())
		f.want(f.engine, 0, 100+byte(moved))
		f.want(f.mem, 0, 100+byte(moved))
	})
}

// TestAcrossBlock0: requests that begin at block 0 and go on are one request to
// the user and two to the device.
func TestAcrossBlock0(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 64, 32)
		f.checkpoint()
		p := blockdev.Buffer(4 * bs)
		for i := range p {
			p[i] = byte(i * 7)
		}
		if n, err := f.engine.WriteAt(p, 0); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		got := blockdev.Buffer(4 * bs)
		if n, err := f.engine.ReadAt(got, 0); n != len(got) || err != nil || string(got) != string(p) {
			t.Fatal(n, err, "or other content")
		}
		f.must(f.engine.WriteZeroes(0, int64(2*bs)))
		f.want(f.engine, 0, 0)
		f.want(f.engine, 1, 0)
		f.wantRollback(32)
		f.must(f.engine.Commit())
		f.want(f.engine, 0, 0)
	})
}

// TestFreeIsExact: the free space shown is what can be used, in all circumstances.
func TestFreeIsExact(t *testing.T) {
	f := newFixture(t, 4096, 1024, 512)
	free := func() int64 { return f.engine.Stats().Free / f.bs }
	if free() != 512 {
		t.Fatalf("%d blocks are free, want 512", free())
	}
	f.checkpoint()
	before := free() // without the log and block 0
	if before != 512-5 {
		t.Errorf("%d blocks are free with a checkpoint open, want 507", before)
	}
	// Into free space, in pieces.
	for b := int64(600); b < 664; b += 2 {
		f.must(f.write(b, 9))
	}
	if n := before - free(); n != 32 {
		t.Errorf("writing 32 free blocks took %d", n)
	}
	before = free()
	// Into used space: one copy each, and the log.
	for b := int64(100); b < 164; b++ {
		f.must(f.write(b, 9))
	}
	if n := before - free(); n < 64 || n > 66 {
		t.Errorf("writing 64 used blocks took %d", n)
	}
	if s := f.engine.Stats(); s.BackedUp != 64*f.bs || s.Changed != 96*f.bs {
		t.Errorf("backed up %d, changed %d", s.BackedUp, s.Changed)
	}
}

// TestDiscard: in Checkpoint a discard copies nothing and loses nothing, and what
// was free and has been written becomes free again.
func TestDiscard(t *testing.T) {
	f := newFixture(t, 4096, 4096, 2100)
	f.checkpoint()
	free := f.engine.Stats().Free
	f.must(f.engine.Discard(10*f.bs, 2048*f.bs)) // 8 MiB in use
	if n := f.engine.Stats().Free; n != free {
		t.Errorf("discarding used blocks changed free space by %d", n-free)
	}
	if n := f.tap.reset(); n['r']+n['w']+n['d'] != 0 {
		t.Errorf("discarding did I/O: %v", n)
	}
	f.wantRollback(2100)

	f.must(f.write(3000, 77))
	if f.engine.Stats().Free != free-f.bs {
		t.Errorf("writing a free block took %d", free-f.engine.Stats().Free)
	}
	f.must(f.engine.Discard(3000*f.bs, f.bs))
	if n := f.engine.Stats().Free; n != free {
		t.Errorf("after write and discard %d bytes are missing", free-n)
	}
	// A discarded block that is overwritten is backed up then.
	f.must(f.write(20, 99))
	if n := f.engine.Stats().BackedUp; n != f.bs {
		t.Errorf("backed up %d", n)
	}
	f.wantRollback(2100)
}

// TestDiscardedCopy: a block can be source of a move and later the copy of another
// one.
func TestDiscardedCopy(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 128, 64)
		f.checkpoint()
		rng := rand.New(rand.NewPCG(1, uint64(bs)))
		for range 3000 {
			switch b := rng.Int64N(128); {
			case b < 64:
				if err := f.write(b, byte(rng.Int())); err != nil && !errors.Is(err, bow.ErrNoSpace) {
					t.Fatal(err)
				}
			default:
				if err := f.write(b, byte(rng.Int())); err != nil && !errors.Is(err, bow.ErrNoSpace) {
					t.Fatal(err)
				}
				f.must(f.engine.Discard(b*f.bs, f.bs))
			}
		}
		if f.engine.Stats().Moved == 0 {
			t.Error("no copy had to move")
		}
		f.wantRollback(64)
	})
}

// TestBatches: overwrites that come together share log writes and flushes, and a
// large one is one copy.
func TestBatches(t *testing.T) {
	f := newFixture(t, 4096, 8192, 4096)
	f.checkpoint()
	// A disk whose flush takes until all writers are waiting again.
	const writers, each = 32, 32
	var wg sync.WaitGroup
	var waiting atomic.Int32
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				waiting.Add(1)
				if err := f.write(int64(1+w*each+i), 200); err != nil {
					t.Error(err)
				}
				waiting.Add(-1)
			}
		})
	}
	wg.Wait()
	n := f.tap.reset()
	t.Logf("%d first overwrites by %d writers: %d reads, %d writes, %d flushes", writers*each, writers, n['r'], n['w'], n['f'])
	if n['f'] > writers*each {
		t.Errorf("%d flushes", n['f'])
	}
	if n['r'] != writers*each {
		t.Errorf("%d reads", n['r'])
	}

	p := blockdev.Buffer(256 << 10)
	if _, err := f.engine.WriteAt(p, 2048*f.bs); err != nil {
		t.Fatal(err)
	}
	// The copy, the shadow, the log, the data; or a full log block too, and that
	// needs to be durable before the log.
	if n := f.tap.reset(); n['r'] != 1 || n['w'] != 4 && n['w'] != 5 || n['f'] != n['w']-3 {
		t.Errorf("overwriting 256 KiB: %v", n)
	}
	f.wantRollback(4096)
}

// TestBatchWhileFlushing: what arrives while a batch is being flushed makes one
// more batch, however much it is.
func TestBatchWhileFlushing(t *testing.T) {
	f := newFixture(t, 4096, 1024, 512)
	f.checkpoint()
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var reads atomic.Int32
	f.tap.intercept(func(o op) error {
		switch o.kind {
		case 'f':
			once.Do(func() { close(held); <-hold })
		case 'r':
			reads.Add(1)
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { f.must(f.write(1, 9)) })
	<-held
	for b := int64(2); b < 66; b++ {
		wg.Go(func() {
			if err := f.write(b, 9); err != nil {
				t.Error(err)
			}
		})
	}
	// All of them have made their copies while the flush lasted...
	for f.engine.Stats().Free > (512-4-65)*f.bs || reads.Load() < 65 {
	}
	time.Sleep(settle)
	close(hold)
	wg.Wait()
	// ...and share what comes then. One may have been late.
	if n := f.tap.reset(); n['f'] > 6 {
		t.Errorf("%d flushes for 64 overwrites that waited together", n['f'])
	}
	f.wantRollback(512)
}

// TestOthersGoOn: while a backup waits for the disk, reads, writes to changed and
// to free blocks, and other backups do not wait for it.
func TestOthersGoOn(t *testing.T) {
	f := newFixture(t, 4096, 1024, 512)
	f.checkpoint()
	f.must(f.write(1, 50)) // is changed from now on
	hold, held := make(chan struct{}), make(chan struct{})
	f.tap.intercept(func(o op) error {
		if o.kind == 'r' && o.off == 7*f.bs {
			close(held)
			<-hold
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { f.must(f.write(7, 70)) })
	<-held
	f.must(f.write(1, 51))
	f.must(f.write(600, 52))
	f.must(f.write(8, 53)) // needs a backup, a log write and flushes of its own
	f.must(f.write(0, 54))
	f.want(f.engine, 1, 51)
	f.want(f.engine, 8, 53)
	f.want(f.engine, 0, 54)
	f.must(f.engine.Flush())
	f.engine.Stats()
	// What overlaps does wait.
	second := make(chan error, 1)
	go func() { second <- f.write(7, 71) }()
	select {
	case <-second:
		t.Error("two overlapping writes at once")
	default:
	}
	f.tap.intercept(nil)
	close(hold)
	wg.Wait()
	f.must(<-second)
	f.want(f.engine, 7, 71)
	f.wantRollback(512)
}

// TestFullSpace: without space for a backup the writer gets ENOSPC, nothing of the
// write is done, and the checkpoint is whole; so again after a discard.
func TestFullSpace(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 128, 100)
		f.checkpoint()
		var full int64
		for b := int64(1); b < 100; b++ {
			err := f.write(b, 200)
			if err == nil {
				continue
			}
			if !errors.Is(err, bow.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			full = b
			break
		}
		if full == 0 {
			t.Fatal("free space never ended")
		}
		f.want(f.engine, full, byte(full+1))
		// A request that is partly possible is not done in part.
		p := blockdev.Buffer(3 * bs)
		if n, err := f.engine.WriteAt(p, (full-2)*f.bs); n != 0 || !errors.Is(err, bow.ErrNoSpace) {
			t.Fatal(n, err)
		}
		f.want(f.engine, full-2, 200)
		if f.engine.Stats().OutOfSpace < 2 {
			t.Error("not counted")
		}
		f.must(f.write(1, 201)) // is changed already
		f.wantRollback(100)
		f.must(f.engine.Commit())
		f.must(f.write(full, 202))
		f.want(f.engine, 1, 201)
	})
}

var errBroken = errors.New("broken")

// TestFailedIO: whatever fails before the overwrite stops the overwrite, and the
// checkpoint is whole. Afterwards everything goes on.
func TestFailedIO(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		f := newFixture(t, bs, 256, 128)
		f.checkpoint()
		// The n-th operation of a first overwrite fails, for all n.
		next := int64(1)
		for n := 1; ; n++ {
			var seen atomic.Int32
			f.tap.intercept(func(o op) error {
				if int(seen.Add(1)) == n {
					return errBroken
				}
				return nil
			})
			block := next
			next++
			err := f.write(block, 99)
			f.tap.intercept(nil)
			if err == nil {
				if n < 6 {
					t.Fatalf("a first overwrite is only %d operations", n-1)
				}
				break
			}
			if !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			if int(seen.Load()) > n+1 {
				t.Errorf("operation %d failed, and %d more were done", n, int(seen.Load())-n)
			}
			if o := n; o < 6 {
				f.want(f.mem, block, byte(block+1))
			}
			f.wantRollback(128)
			// A flush of the log that failed may have been of the user's data too,
			// which the user must hear, once.
			if f.engine.Flush() != nil {
				f.must(f.engine.Flush())
			}
			if f.engine.Stats().Unsettled {
				t.Error("a flush did not settle the log")
			}
			f.must(f.write(block, 98))
			f.wantRollback(128)
		}
		f.must(f.engine.Commit())
	})
}

// TestFailedTransition: when opening or committing a checkpoint fails, nothing is
// lost and it can be tried again.
func TestFailedTransition(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		for _, lasting := range []bool{false, true} {
			for n := 1; ; n++ {
				f := newFixture(t, bs, 64, 32)
				var seen atomic.Int32
				fail := func(op) error {
					if i := int(seen.Add(1)); i == n || lasting && i > n {
						return errBroken
					}
					return nil
				}
				f.tap.intercept(fail)
				opening := f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{})
				f.tap.intercept(nil)
				if opening != nil && !errors.Is(opening, errBroken) {
					t.Fatal(opening)
				}
				f.want(f.engine, 0, 1)
				f.must(f.write(0, 60))
				f.want(f.engine, 0, 60)
				if f.engine.Stats().State == bow.Trim {
					f.want(f.mem, 0, 60)
					f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{}))
					continue
				}
				f.must(f.write(3, 61))
				seen.Store(0)
				f.tap.intercept(fail)
				committing := f.engine.Commit()
				f.tap.intercept(nil)
				if committing != nil {
					f.want(f.engine, 0, 60)
					f.must(f.write(0, 62))
					f.must(f.write(4, 63))
					f.must(f.write(0, 60))
					if f.engine.Commit() != nil { // says that a flush failed before
						f.must(f.engine.Commit())
					}
				}
				f.want(f.mem, 0, 60)
				f.want(f.mem, 3, 61)
				if opening == nil && committing == nil {
					break
				}
			}
		}
	})
}

// TestStates: only the transitions that there are.
func TestStates(t *testing.T) {
	f := newFixture(t, 4096, 64, 32)
	bad := func(err error) {
		t.Helper()
		if !errors.Is(err, bow.ErrState) {
			t.Errorf("got %v", err)
		}
	}
	bad(f.engine.Commit())
	f.checkpoint()
	bad(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{}))
	bad(f.engine.StartTrim())
	bad(f.engine.Grow())
	f.engine.StopTrim()
	if s := f.engine.Stats(); s.State != bow.Checkpoint || s.Opened.IsZero() || s.ID == (bowlog.ID{}) {
		t.Errorf("%+v", s)
	}
	f.must(f.engine.Commit())
	bad(f.engine.Commit())
	bad(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{}))
	bad(f.engine.MarkFree(0, f.bs))
	f.must(f.engine.StartTrim())
	f.must(f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{})) // what was free is known
	f.must(f.engine.Commit())
	if s := f.engine.Stats(); s.State != bow.Committed || s.Free != 32*f.bs {
		t.Errorf("%+v", s)
	}
}

// TestNothingFree: a checkpoint without free space is refused and changes nothing.
func TestNothingFree(t *testing.T) {
	f := newFixture(t, 4096, 64, 61)
	if err := f.engine.Checkpoint(t.Context(), bow.CheckpointOptions{}); !errors.Is(err, bow.ErrNoSpace) {
		t.Fatal(err)
	}
	if n := f.tap.reset(); len(n) != 0 && n['w'] != 0 {
		t.Errorf("%v", n)
	}
	f.want(f.mem, 0, 1)
}

// TestReportsThatAreLate: a block that was written after StartTrim is not free,
// whoever says so.
func TestReportsThatAreLate(t *testing.T) {
	f := newFixture(t, 4096, 64, 32)
	f.must(f.engine.StartTrim())
	f.must(f.write(5, 55))
	f.must(f.write(40, 56)) // was reported free before
	f.must(f.engine.MarkFree(5*f.bs, f.bs))
	f.must(f.engine.MarkFree(32*f.bs, 32*f.bs))
	f.checkpoint()
	// All of the free space is filled with copies, none of which is there.
	for b := int64(6); b < 32; b++ {
		f.must(f.write(b, 1))
	}
	for b := int64(1); b < 5; b++ {
		if err := f.write(b, 1); err != nil && !errors.Is(err, bow.ErrNoSpace) {
			t.Fatal(err)
		}
	}
	if n := f.engine.Stats().Free; n != 0 {
		t.Errorf("%d bytes are still free", n)
	}
	f.want(f.engine, 5, 55)
	f.want(f.engine, 40, 56)
}

// TestOpenRefuses: what an engine must not be put on.
func TestOpenRefuses(t *testing.T) {
	f := newFixture(t, 1024, 64, 32)
	f.checkpoint()
	f.must(f.write(2, 9))
	before := make([]byte, f.mem.Size())
	if _, err := f.mem.ReadAt(before, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := bow.Open(f.mem, 2048); !errors.Is(err, bow.ErrCheckpointOpen) {
		t.Errorf("a checkpoint with other blocks: %v", err)
	}
	larger := memdev.New(f.mem.Size()+1024, 512)
	if _, err := larger.WriteAt(before, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := bow.Open(larger, 1024); !errors.Is(err, bow.ErrCheckpointOpen) {
		t.Errorf("a checkpoint of a device that has grown: %v", err)
	}
	for name, c := range map[string]struct {
		offset int
		want   error
	}{
		"version":  {4, bowlog.ErrUnsupported},
		"checksum": {36, bowlog.ErrCorrupt},
		"ext":      {32, bowlog.ErrUnsupported},
	} {
		p := append([]byte(nil), before...)
		p[c.offset] ^= 0x40
		m := memdev.New(int64(len(p)), 512)
		if _, err := m.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := bow.Open(m, 1024); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bs := range []int{0, -1, 256, 513, 8192} {
		if _, err := bow.Open(memdev.New(1<<20, 512), bs); err == nil {
			t.Errorf("block size %d", bs)
		}
	}
	if _, err := bow.Open(memdev.New(1<<20, 4096), 512); err == nil {
		t.Error("blocks smaller than those of the device")
	}
	if _, err := bow.Open(memdev.New(4096*8, 512), 4096); err == nil {
		t.Error("a device of 8 blocks")
	}
}

// TestConcurrent lets many writers loose on one engine and compares at the end.
// The race detector is what it is for.
func TestConcurrent(t *testing.T) {
	f := newFixture(t, 4096, 2048, 1024)
	f.checkpoint()
	const writers = 16
	var wg sync.WaitGroup
	last := make([]byte, 1024) // by block; each has one writer
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			for range 400 {
				b := 1 + rng.Int64N(1023/writers)*writers + int64(w)
				if b >= 1024 {
					continue
				}
				v := byte(rng.IntN(255)) + 1
				switch err := f.write(b, v); {
				case err == nil:
					last[b] = v
				case !errors.Is(err, bow.ErrNoSpace):
					t.Error(err)
				}
				free := 1024 + rng.Int64N(1024)
				switch rng.IntN(4) {
				case 0:
					if err := f.write(free, v); err != nil && !errors.Is(err, bow.ErrNoSpace) {
						t.Error(err)
					}
				case 1:
					if err := f.engine.Discard(free*f.bs, f.bs); err != nil {
						t.Error(err)
					}
				case 2:
					if err := f.write(0, v); err != nil {
						t.Error(err)
					}
					f.engine.Stats()
				case 3:
					if err := f.engine.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for b, v := range last {
		if v != 0 {
			f.want(f.engine, int64(b), v)
		}
	}
	f.wantRollback(1024)
	f.must(f.engine.Commit())
	for b, v := range last {
		if v != 0 {
			f.want(f.engine, int64(b), v)
		}
	}
}
