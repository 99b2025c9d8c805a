package bow_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// TestSettleAfterDeath: the process dies between the write of block 0 and its flush; the
// successor settles the log; the power is cut before the first flush of that.
func TestSettleAfterDeath(t *testing.T) {
	f := newFixture(t, 1024, 16384, 8192)
	f.mem.SetAtomicUnit(512)
	f.checkpoint()
	for i := int64(1); i <= 34; i++ {
		f.must(f.write(i*200, 99))
	}
	recorded := f.mem.Record()
	zero, dead := false, false
	f.tap.intercept(func(o op) error {
		zero = zero || o.kind == 'w' && o.off == 0
		dead = dead || zero && o.kind == 'f'
		if dead {
			return errBroken
		}
		return nil
	})
	if f.write(35*200, 99) == nil { // a new log block
		t.Fatal("written")
	}
	died := recorded.Len()
	if _, err := bow.Open(f.mem, 1024); err != nil {
		t.Fatal(err)
	}
	n := died
	for recorded.Ops()[n].Kind != memdev.Flush {
		n++
	}
	if n == died { // it flushes first
		return
	}
	dev := recorded.Cut(n).Replay(func(op int, off int64) memdev.Fate {
		if off == 0 {
			return memdev.Lost
		}
		return memdev.Done
	})
	if _, err := bow.Open(dev.Clone(), 1024); err != nil {
		t.Errorf("carrying on: %v", err)
	}
	if _, err := restore.Restore(t.Context(), dev, restore.Options{}); err != nil {
		t.Errorf("restore: %v", err)
	}
}

// TestCommitDeathCrash: the process dies between the last write of a commit and its
// flush; the successor finds no log, the file system goes on, and the power is cut before
// it flushes.
func TestCommitDeathCrash(t *testing.T) {
	for _, bs := range []int{512, 1024} {
		f := newFixture(t, bs, 256, 128)
		f.mem.SetAtomicUnit(512)
		mem := make([]byte, bow.MemorySize(256))
		f.engine.Remember(mem)
		f.checkpoint()
		f.must(f.write(3, 99))
		f.must(f.engine.Flush())
		recorded := f.mem.Record()
		zeroes, dead := 0, false
		want := map[int]int{512: 1, 1024: 2}[bs]
		f.tap.intercept(func(o op) error {
			if o.kind == 'w' && o.off == 0 {
				zeroes++
			}
			dead = dead || zeroes == want && o.kind == 'f'
			if dead {
				return errBroken
			}
			return nil
		})
		if f.engine.Commit() == nil {
			t.Fatal("committed")
		}
		died := recorded.Len()
		e, err := bow.TakeOver(f.mem, bs, mem)
		f.must(err)
		for b := int64(1); b < 256; b++ {
			_, err := e.WriteAt(f.block(200), b*f.bs)
			f.must(err)
		}
		dev := recorded.Cut(recorded.Len()).Replay(func(op int, off int64) memdev.Fate {
			if op < died {
				return memdev.Lost
			}
			return memdev.Done
		})
		again, err := bow.Open(dev, bs)
		if err != nil {
			t.Errorf("%d: attach: %v", bs, err)
			continue
		}
		p := make([]byte, bs)
		_, err = again.ReadAt(p, 0)
		f.must(err)
		if p[0] != 1 {
			t.Errorf("%d: block 0 is full of %d", bs, p[0])
		}
	}
}

// TestZeroMerged: a merged entry whose checksum would come out as 0, which says that
// there is none.
func TestZeroMerged(t *testing.T) {
	f := newFixture(t, 512, 256, 64)
	// Blocks 10 and 11: the CRC of both together, begun with the seed of block 10, is 0.
	b := make([]byte, 1024)
	for i := range b {
		b[i] = byte(i * 7)
	}
	crc := bowlog.Checksum(bowlog.Seed(10, 512), b[:1020])
	binary.LittleEndian.PutUint32(b[1020:], crc)
	if got := bowlog.Checksum(bowlog.Seed(10, 512), b); got != 0 {
		t.Fatalf("crc %x", got)
	}
	_, err := f.mem.WriteAt(b, 10*512)
	f.must(err)
	f.checkpoint()
	f.must(f.write(9, 99)) // makes it two entries
	f.must(f.write(30, 99))
	f.must(f.write(10, 99))
	f.must(f.write(11, 99))
	f.must(f.engine.Flush())
	head, err := bowlog.Load(f.mem)
	f.must(err)
	if n := len(head.Entries); n < 4 || !head.Ext.Unproven {
		t.Errorf("%+v", head)
	}
	if _, err := bow.Open(f.mem.Clone(), 512); err != nil {
		t.Errorf("resume: %v", err)
	}
	if _, err := restore.Restore(t.Context(), f.mem.Clone(), restore.Options{}); err != nil {
		t.Errorf("restore: %v", err)
	}
}

// lossy is a device whose cache is lost on the way to the disk by a flush that fails,
// as a page cache is: what was written is still read, is clean, and the next flush succeeds.
type lossy struct {
	*memdev.Device
	mu      sync.Mutex
	disk    *memdev.Device
	pending []func() error
	flush   func() error // in place of plain, if not nil
}

func (l *lossy) WriteAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := bytes.Clone(p)
	l.pending = append(l.pending, func() error { _, err := l.disk.WriteAt(c, off); return err })
	return l.Device.WriteAt(p, off)
}

// plain flushes.
func (l *lossy) plain() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.pending {
		if err := w(); err != nil {
			return err
		}
	}
	l.pending = nil
	return l.disk.Flush()
}

func (l *lossy) Flush() error {
	if l.flush != nil {
		return l.flush()
	}
	return l.plain()
}

// newLossy returns a lossy device with an engine on it, of which the second half is free.
// Block i is full of i+1.
func newLossy(t *testing.T, bs, blocks int) (*lossy, *bow.Engine, []byte) {
	t.Helper()
	m := memdev.New(int64(bs*blocks), 512)
	kept := make([]byte, bs*blocks)
	for i := range kept {
		kept[i] = byte(i/bs + 1)
	}
	if _, err := m.WriteAt(kept, 0); err != nil {
		t.Fatal(err)
	}
	l := &lossy{Device: m, disk: m.Clone()}
	e, err := bow.Open(l, bs)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.StartTrim(), e.MarkFree(int64(blocks/2*bs), int64(blocks/2*bs))); err != nil {
		t.Fatal(err)
	}
	return l, e, kept[:blocks/2*bs]
}

// fail is a flush that loses everything.
func (l *lossy) fail() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = nil
	return errBroken
}

// TestFlushFailsDuringTransition: a flush of the user comes between what a change of the
// state writes and the flush of that, and would fail and lose it.
func TestFlushFailsDuringTransition(t *testing.T) {
	const bs, blocks = 512, 256
	for _, during := range []string{"checkpoint", "commit"} {
		t.Run(during, func(t *testing.T) {
			l, e, _ := newLossy(t, bs, blocks)
			flushed := make(chan bool)
			// meddle is the n-th flush of the transition.
			meddle := func(n int) func() error {
				return func() error {
					if n--; n == 0 {
						l.flush = l.fail
						go func() { _ = e.Flush(); close(flushed) }()
						select {
						case <-flushed:
						case <-time.After(settle):
						}
						l.flush = nil
					}
					return l.plain()
				}
			}
			if during == "checkpoint" {
				l.flush = meddle(1)
			}
			_ = e.Checkpoint(t.Context(), bow.CheckpointOptions{})
			if during == "commit" {
				l.flush = meddle(2)
				_ = e.Commit()
			}
			<-flushed
			if during == "commit" && e.State() == bow.Committed {
				// The file system goes on, everywhere.
				for b := range int64(blocks - 1) {
					if _, err := e.WriteAt(bytes.Repeat([]byte{200}, bs), (b+1)*bs); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = e.Flush()
			if err := e.Flush(); err != nil {
				t.Error(err)
			}
			again, err := bow.Open(l.disk.Clone(), bs)
			if err != nil {
				t.Fatal("attached again from what is on the disk:", err)
			}
			p := make([]byte, bs)
			if _, err := again.ReadAt(p, 0); err != nil || p[0] != 1 {
				t.Errorf("block 0 is full of %d, want 1: %v", p[0], err)
			}
		})
	}
}

// TestFlushRace: a flush of the user fails and loses the copies of a request whose own
// flush comes right after it. The request must not believe in its copies, though the
// user's goroutine has not been told yet.
func TestFlushRace(t *testing.T) {
	const bs, blocks = 512, 256
	l, e, kept := newLossy(t, bs, blocks)
	e.BackUpAlone()
	if err := e.Checkpoint(t.Context(), bow.CheckpointOptions{}); err != nil {
		t.Fatal(err)
	}
	entered, written := make(chan bool), make(chan bool)
	first := true
	l.flush = func() error {
		if !first {
			return l.plain()
		}
		first = false
		close(entered)
		<-written
		time.Sleep(settle) // until the request wants to flush
		return l.fail()
	}
	user := make(chan error, 1)
	go func() { user <- e.Flush() }()
	<-entered
	request := make(chan error, 1)
	go func() {
		close(written)
		_, err := e.WriteAt(bytes.Repeat([]byte{99}, bs), 3*bs)
		request <- err
	}()
	if err := <-request; err == nil {
		t.Error("written though its copy was lost")
	}
	if err := <-user; err == nil {
		t.Error("the user was not told")
	}
	_ = e.Flush()
	if err := e.Flush(); err != nil {
		t.Error(err)
	}
	if _, err := restore.Restore(t.Context(), l.disk, restore.Options{}); err != nil {
		t.Fatal("restore:", err)
	}
	got := make([]byte, len(kept))
	if _, err := l.disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, kept) {
		t.Errorf("restored to something else: %v", err)
	}
}
