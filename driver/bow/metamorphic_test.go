package bow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// circumstances are what must make no difference to the user of a volume.
type circumstances struct {
	name      string
	blockSize int
	sector    int  // unit of the device below, bytes
	file      bool // a real file instead of memory

	upsets   []string // what happens now and then, see upset
	parallel int      // requests at once, when they are disjoint
	piece    int      // free space is reported in pieces of so many bytes, in any order; 0 for runs in order
	late     bool     // reports come one by one, while the user goes on
}

var allCircumstances = []circumstances{
	{name: "nothing happens", blockSize: 4096, sector: 4096},
	{name: "small blocks", blockSize: 512, sector: 512, piece: 512},
	{name: "late reports", blockSize: 1024, sector: 1024, piece: unit, late: true},
	{name: "at once", blockSize: 2048, sector: 512, parallel: 8},
	{name: "dying", blockSize: 1024, sector: 512, upsets: []string{"die"}, piece: 8 * unit},
	{name: "dying, late reports", blockSize: 512, sector: 512, upsets: []string{"die"}, piece: unit, late: true},
	{name: "dying without memory", blockSize: 2048, sector: 2048, upsets: []string{"forget"}},
	{name: "power cuts", blockSize: 4096, sector: 512, upsets: []string{"cut"}},
	{name: "power cuts, whole blocks", blockSize: 4096, sector: 4096, upsets: []string{"cut"}, piece: unit, late: true},
	{name: "power cuts, small blocks", blockSize: 512, sector: 512, upsets: []string{"cut"}, parallel: 4},
	{name: "detached", blockSize: 1024, sector: 1024, upsets: []string{"detach"}, parallel: 2},
	{name: "everything", blockSize: 1024, sector: 512, upsets: []string{"die", "forget", "cut", "detach"}, parallel: 4, piece: unit, late: true},
	{name: "file", blockSize: 4096, file: true, upsets: []string{"die", "forget", "detach"}, piece: 2 * unit, late: true},
	{name: "file, small blocks", blockSize: 512, file: true, parallel: 4},
}

// TestMetamorphic does the same things to a volume under circumstances that must
// make no difference, and compares the answers with those of a plain array of bytes
// and with each other. To run a seed again, put it in the place of one that is
// always run.
func TestMetamorphic(t *testing.T) {
	seeds := []uint64{1, 2}
	for range 6 * histories() {
		if !testing.Short() {
			seeds = append(seeds, rand.Uint64())
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			deeds := someDeeds(seed)
			var first []answer
			for i, c := range allCircumstances {
				l := &life{
					plain: newPlain(), circumstances: c, t: t, seed: seed, deeds: deeds,
					rng: rand.New(rand.NewPCG(seed, uint64(i))), scratch: blockdev.Buffer(units * unit),
				}
				answers := l.live()
				if first == nil {
					first = answers
				}
				for i, a := range answers {
					if b := first[i]; a.kind != b.kind || a.looked && b.looked && a != b {
						l.fatal("answer %d is %+v, and %+v when %s", i, a, b, allCircumstances[0].name)
					}
				}
			}
		})
	}
}

// answer is what the user sees of a deed.
type answer struct {
	kind    string // of the error
	looked  bool
	content uint64 // sum of what is defined; this and the rest only if somebody looked
	status
}

// life is a volume that a user does something with, under some circumstances.
type life struct {
	*plain
	circumstances
	t     *testing.T
	seed  uint64
	deeds []deed
	rng   *rand.Rand

	mem     *memdev.Device // the device below, unless it is a file
	path    string         // of the file
	below   blockdev.Device
	engine  *bow.Engine
	memory  []byte     // see Remember
	redo    []int      // deeds that a power cut may undo
	reports [][2]int64 // of free space still to be made: offset and length in bytes
	answers []answer
	diary   []note
	scratch []byte // as long as the device
}

func (l *life) fatal(format string, args ...any) {
	l.t.Helper()
	var all strings.Builder
	for _, line := range l.diary {
		fmt.Fprintln(&all, line)
	}
	l.t.Logf("the deeds:\n%s", &all)
	l.t.Fatalf("seed %d, %s: %s", l.seed, l.name, fmt.Sprintf(format, args...))
}

func (l *life) note(format string, args ...any) {
	l.diary = append(l.diary, note{format, args})
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		l.fatal("%v", err)
	}
}

// live does all deeds and returns the answers, the last of which is that of the
// device below when all is over.
func (l *life) live() []answer {
	l.t.Helper()
	l.memory = make([]byte, bow.MemorySize(int64(units*unit/l.blockSize)))
	if l.file {
		l.path = filepath.Join(l.t.TempDir(), "disk")
		l.must(os.WriteFile(l.path, make([]byte, units*unit), 0o600))
	} else {
		l.mem = memdev.New(units*unit, l.sector)
	}
	l.attach()
	l.answers = make([]answer, len(l.deeds), len(l.deeds)+1)
	for i := 0; i < len(l.deeds); {
		n := l.disjoint(i)
		errs := make([]error, n)
		var others sync.WaitGroup
		for k := range n {
			l.note("%d: %v", i+k, l.deeds[i+k])
			if k > 0 {
				others.Go(func() { errs[k] = l.do(i + k) })
			}
		}
		errs[0] = l.do(i)
		others.Wait()
		for k, err := range errs {
			want, got := l.plain.do(i+k, l.deeds[i+k]), kindOf(err)
			if got != want {
				l.fatal("deed %d: %q, not %q: %v", i+k, got, want, err)
			}
			l.answers[i+k].kind = got
			l.after(i + k)
		}
		i += n
		l.look(&l.answers[i-1])
		if i%4 == 0 && l.open {
			l.lookBack()
		}
		if len(l.upsets) > 0 && l.rng.IntN(8) == 0 {
			l.upset(l.upsets[l.rng.IntN(len(l.upsets))])
			l.look(&answer{})
		}
		if len(l.reports) > 0 {
			l.report(1)
		}
	}
	l.must(l.engine.Close())
	end := answer{kind: "end", content: l.same(l.device(), l.now, l.undefined)}
	l.must(l.below.Close())
	return append(l.answers, end)
}

// disjoint returns how many deeds from i on are done at once.
func (l *life) disjoint(i int) int {
	n := 1
	for ; n < l.parallel && i+n < len(l.deeds); n++ {
		for _, d := range l.deeds[i : i+n] {
			e := l.deeds[i+n]
			if !d.request() || !e.request() || d.start < e.end && e.start < d.end {
				return n
			}
		}
	}
	return n
}

// do does deed i, and nothing to the plain volume.
func (l *life) do(i int) error {
	d, e := l.deeds[i], l.engine
	off, length := int64(d.start*unit), int64((d.end-d.start)*unit)
	options := bow.CheckpointOptions{ID: checkpointID(i), CommitWhenFull: i%2 == 0}
	switch d.kind {
	case "write":
		_, err := e.WriteAt(d.content(i), off)
		return err
	case "zero":
		return e.WriteZeroes(off, length)
	case "discard":
		return e.Discard(off, length)
	case "flush":
		return e.Flush()
	case "free":
		return e.MarkFree(off, length)
	case "trim":
		return e.StartTrim()
	case "stop":
		e.StopTrim()
		return nil
	case "checkpoint":
		l.report(len(l.reports))
		return e.Checkpoint(context.Background(), options)
	case "again":
		return e.Checkpoint(context.Background(), bow.CheckpointOptions{ID: l.id})
	case "commit":
		return e.Commit()
	case "ask":
		return e.RequestRollback()
	case "rollback":
		return l.rollback()
	}
	return fmt.Errorf("unknown deed %q", d.kind)
}

// rollback lets go of the device, restores it, and attaches it again. If there are
// power cuts, there is one in the middle of it.
func (l *life) rollback() error {
	l.must(l.engine.Close())
	l.device()
	if slices.Contains(l.upsets, "cut") && l.open {
		tap := newTap(l.below)
		var left atomic.Int64
		left.Store(l.rng.Int64N(10))
		tap.intercept(func(o op) error {
			if o.kind == 'w' && left.Add(-1) < 0 {
				return errBroken
			}
			return nil
		})
		_, err := restore.Restore(context.Background(), tap, restore.Options{})
		if !errors.Is(err, errBroken) {
			l.must(err)
			return nil
		}
		l.mem = l.mem.Crash(l.rng)
		l.device()
	}
	_, err := restore.Restore(context.Background(), l.below, restore.Options{})
	l.must(l.below.Close())
	return err
}

// after does what follows from deed i, which was done to the plain volume as well.
func (l *life) after(i int) {
	d, done := l.deeds[i], l.answers[i].kind == ""
	if d.kind == "rollback" {
		l.attach()
	}
	switch {
	case !done:
	case d.request():
		l.redo = append(l.redo, i)
	case d.kind == "flush", d.kind == "checkpoint", d.kind == "commit", d.kind == "rollback":
		l.redo = nil
	case d.kind == "trim":
		l.foundFree(nil)
	}
	if !l.trim && !l.open {
		l.reports = nil
	}
}

// look compares what the user sees with what he should, and notes it.
func (l *life) look(a *answer) {
	l.t.Helper()
	s := l.engine.Stats()
	a.looked = true
	a.content = l.same(l.engine, l.now, l.undefined)
	a.status = status{s.State == bow.Checkpoint, s.RollbackRequested, s.CommitWhenFull, s.ID}
	if a.status != l.status {
		l.fatal("%+v, not %+v", a.status, l.status)
	}
	l.must(l.engine.Check())
}

// lookBack compares what a rollback would give, after a power cut perhaps.
func (l *life) lookBack() {
	l.t.Helper()
	var c *memdev.Device
	switch {
	case l.file:
		_, err := l.below.ReadAt(l.scratch, 0)
		l.must(err)
		c = memdev.New(units*unit, l.below.BlockSize())
		_, err = c.WriteAt(l.scratch, 0)
		l.must(err)
	case slices.Contains(l.upsets, "cut"):
		c = l.mem.Crash(l.rng)
	default:
		c = l.mem.Clone()
	}
	_, err := restore.Restore(context.Background(), c, restore.Options{})
	l.must(err)
	l.same(c, l.kept, l.keptUndefined)
}

// same fails if dev is not as content says where that is defined.
func (l *life) same(dev blockdev.Device, content []byte, undefined []bool) uint64 {
	l.t.Helper()
	got := l.scratch
	_, err := dev.ReadAt(got, 0)
	l.must(err)
	var sum maphash.Hash
	sum.SetSeed(sums)
	for u := range units {
		a, b := u*unit, (u+1)*unit
		if undefined[u] {
			continue
		}
		if !bytes.Equal(got[a:b], content[a:b]) {
			l.fatal("unit %d is not what it should be", u)
		}
		sum.Write(got[a:b])
	}
	return sum.Sum64()
}

var sums = maphash.MakeSeed()
