package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// load is writers at work on a mounted file system, each of which can tell of
// what it finds later whether that is what was there at some instant.
//
//   - journal appends numbered lines to a file, each synced.
//   - slots overwrites pages of a file in place, in random order.
//   - churn makes files, renames them over each other and removes them.
type load struct {
	dir  string
	stop chan struct{}
	wg   sync.WaitGroup

	begun, synced atomic.Int64           // lines of the journal
	generations   [numSlots]atomic.Int64 // latest page written to each slot

	mu     sync.Mutex
	failed []error // guarded by mu
}

const (
	numSlots  = 512
	pageSize  = 4096
	maxChurn  = 64 // files of churn at a time
	lineBytes = 512
)

// startLoad starts the writers in dir, which they make. They stop when an error
// comes, or at halt.
func startLoad(t *testing.T, dir string) *load {
	t.Helper()
	l := &load{dir: dir, stop: make(chan struct{})}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "churn"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, writer := range []func() error{l.journal, l.slots, l.churn} {
		l.wg.Go(func() {
			if err := writer(); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.failed = append(l.failed, err)
			}
		})
	}
	t.Cleanup(func() { l.end() })
	eventually(t, "the writers are at work", func() bool { return l.synced.Load() > 5 && l.generations[0].Load() > 0 })
	return l
}

// end stops the writers and returns what went wrong.
func (l *load) end() error {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.failed...)
}

// halt stops the writers, of which none may have failed.
func (l *load) halt(t *testing.T) {
	t.Helper()
	if err := l.end(); err != nil {
		t.Fatalf("a writer failed: %v", err)
	}
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func line(n int64) string {
	s := fmt.Sprintf("line %d ", n)
	return s + strings.Repeat(".", lineBytes-len(s)-1) + "\n"
}

func (l *load) journal() error {
	f, err := os.OpenFile(filepath.Join(l.dir, "journal"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for n := int64(1); !l.stopped(); n++ {
		l.begun.Store(n)
		if _, err := f.WriteString(line(n)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		l.synced.Store(n)
	}
	return nil
}

// page is what slot holds in a generation: number, generation, and random bytes
// with a checksum at the end.
func page(p []byte, slot int, generation int64) {
	binary.LittleEndian.PutUint64(p, uint64(slot))
	binary.LittleEndian.PutUint64(p[8:], uint64(generation))
	x := uint64(slot)<<32 + uint64(generation)
	for i := 16; i < len(p); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.ChecksumIEEE(p[:len(p)-4]))
}

func (l *load) slots() error {
	f, err := os.OpenFile(filepath.Join(l.dir, "slots"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, pageSize)
	for i := 0; !l.stopped(); i++ {
		slot := i
		if i >= numSlots {
			slot = rand.IntN(numSlots)
		}
		generation := l.generations[slot].Load() + 1
		page(p, slot, generation)
		if _, err := f.WriteAt(p, int64(slot)*pageSize); err != nil {
			return err
		}
		l.generations[slot].Store(generation)
		if i%32 == 0 {
			if err := f.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *load) churn() error {
	dir := filepath.Join(l.dir, "churn")
	temporary := filepath.Join(dir, "temporary")
	for !l.stopped() {
		name := filepath.Join(dir, fmt.Sprintf("file-%d", rand.IntN(maxChurn)))
		switch rand.IntN(4) {
		case 0:
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		default:
			p := make([]byte, 24+8*rand.IntN(8192))
			page(p, len(p), rand.Int64())
			if err := os.WriteFile(temporary, p, 0o600); err != nil {
				return err
			}
			if err := os.Rename(temporary, name); err != nil {
				return err
			}
		}
	}
	syscall.Sync()
	return nil
}

// instant is between what which moments of a load something lies.
type instant struct {
	journal     int64 // lines that are there at least, or at most
	generations [numSlots]int64
}

// before returns what must be in a checkpoint that is opened now.
func (l *load) before() instant {
	i := instant{journal: l.synced.Load()}
	for s := range i.generations {
		i.generations[s] = l.generations[s].Load()
	}
	return i
}

// after returns the most that may be in a checkpoint that has been opened.
func (l *load) after() instant {
	i := instant{journal: l.begun.Load()}
	for s := range i.generations {
		// One more may be written and not counted.
		i.generations[s] = l.generations[s].Load() + 1
	}
	return i
}

// checkLoad fails the test unless what is in dir is what a load left there at an
// instant between two others.
func checkLoad(t *testing.T, dir string, from, to instant) {
	t.Helper()
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	lines := int64(len(journal)) / lineBytes
	if len(journal)%lineBytes != 0 || lines < from.journal || lines > to.journal {
		t.Errorf("the journal has %d bytes, which is %d lines; want whole ones, %d to %d", len(journal), lines, from.journal, to.journal)
	}
	for n := range lines {
		if got := string(journal[n*lineBytes : (n+1)*lineBytes]); got != line(n+1) {
			t.Fatalf("line %d of %d of the journal is %q", n+1, lines, got)
		}
	}

	slots, err := os.ReadFile(filepath.Join(dir, "slots"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, pageSize)
	for s := range numSlots {
		var p []byte
		if len(slots) >= (s+1)*pageSize {
			p = slots[s*pageSize:][:pageSize]
		} else if from.generations[s] == 0 {
			continue
		} else {
			t.Fatalf("slot %d was written and is not there", s)
		}
		generation := int64(binary.LittleEndian.Uint64(p[8:]))
		page(want, s, generation)
		// What has never been written is a hole.
		if generation == 0 && from.generations[s] == 0 && bytes.Count(p, []byte{0}) == len(p) {
			continue
		}
		if !bytes.Equal(p, want) || generation < from.generations[s] || generation > to.generations[s] {
			t.Fatalf("slot %d: is generation %d, sound: %v; want %d to %d", s, generation, bytes.Equal(p, want), from.generations[s], to.generations[s])
		}
	}

	files, err := filepath.Glob(filepath.Join(dir, "churn", "file-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(p) < 24 {
			t.Fatalf("%s has %d bytes, which no file ever had", name, len(p))
		}
		want := make([]byte, len(p))
		page(want, len(p), int64(binary.LittleEndian.Uint64(p[8:])))
		if !bytes.Equal(p, want) {
			t.Fatalf("%s is not as it was written", name)
		}
	}
}
