package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
)

const mib = 1 << 20

// The regions of each image, which is used without a file system.

// used is in use at every checkpoint.
func (s sizes) used() region { return region{s.image / 16, s.image / 4} }

// freeUser is free at every checkpoint, and written by fio.
func (s sizes) freeUser() region { return region{s.image / 2, s.image / 4} }

// free is all that is free; backups take it from the end.
func (s sizes) free() region { return region{s.image / 2, s.image / 2} }

// The set-ups of fio. Goals are those of states 0 and 2 against the raw device.
var works = []work{
	{key: "randread-1", name: "4 KiB random read, depth 1", rw: "randread", blockSize: 4 << 10, depth: 1, goal: 0.80},
	{key: "randread-32", name: "4 KiB random read, depth 32", rw: "randread", blockSize: 4 << 10, depth: 32, goal: 0.42, uring: 0.65},
	{key: "randwrite-1", name: "4 KiB random write, depth 1", rw: "randwrite", blockSize: 4 << 10, depth: 1, goal: 0.80},
	{key: "randwrite-32", name: "4 KiB random write, depth 32", rw: "randwrite", blockSize: 4 << 10, depth: 32, goal: 0.42, uring: 0.65},
	{key: "read", name: "256 KiB sequential read", rw: "read", blockSize: 256 << 10, depth: 32, goal: 0.90},
	{key: "write", name: "256 KiB sequential write", rw: "write", blockSize: 256 << 10, depth: 32, goal: 0.90},
}

// goalUnsaved is for state 1 against state 2 where nothing needs a backup.
const goalUnsaved = 0.95

// goalsFirst are for first overwrites against state 2, by work.
var goalsFirst = map[string]float64{
	"randwrite-32": 0.50,
	"write":        0.45, // each byte is read once and written twice
}

// devices are what is compared, all attached at the same time so that each can be
// measured right after the other.
type devices struct {
	trim  *pair // in state 0
	main  *pair // in states 1 and 2
	uring *pair // in state 2, over io_uring; nil where there is none
}

// pair is a mapped device and a raw one on the same image, so that they find the same
// data at the same place: how fast a disk reads may depend on that, by a factor of two.
type pair struct {
	*mapped
	raw string // block device
}

// pair makes an image and its two devices, and adds to closers what takes them away.
func (b *bench) pair(ctx context.Context, closers *closers, name string, options ...string) (*pair, error) {
	image := filepath.Join(b.images, name+".img")
	if err := writeImage(image, b.image, ctx.Err); err != nil {
		return nil, err
	}
	m, err := b.attach(ctx, image, options...)
	if err != nil {
		return nil, err
	}
	closers.add(m.detach)
	raw, err := rawLoop(image)
	if err != nil {
		return nil, err
	}
	closers.add(raw.Close)
	return &pair{m, raw.Name()}, nil
}

// blocks measures the three states on the mapped device itself.
func (b *bench) blocks(ctx context.Context) (err error) {
	list := slices.DeleteFunc(slices.Clone(works), func(w work) bool { return !b.wants(w.key) })
	if len(list) == 0 {
		return nil
	}
	var d devices
	var closers closers
	defer func() { err = errors.Join(err, closers.close()) }()
	b.progress("writing three images of %d MiB", b.image/mib)
	if d.trim, err = b.pair(ctx, &closers, "trim"); err != nil {
		return err
	}
	if d.main, err = b.pair(ctx, &closers, "main"); err != nil {
		return err
	}
	if d.uring, err = b.pair(ctx, &closers, "uring", "--io-uring"); err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.progress("io_uring is not measured: %v", err)
	}
	// Something is free in each of them, as it would be in use.
	if err := d.trim.discard(b.free()); err != nil {
		return err
	}
	if d.uring != nil {
		if err := d.uring.committed(ctx, b.free()); err != nil {
			return err
		}
	}

	for round := range b.Rounds {
		b.progress("round %d of %d", round+1, b.Rounds)
		for _, w := range list {
			if err := b.states(ctx, d, w); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return nil
}

// states does one work on all devices, one after the other, each time in another
// order: what was written before, by whomever, makes a disk slower or faster.
func (b *bench) states(ctx context.Context, d devices, w work) error {
	loop := func(device string) func() (tally, error) {
		return func() (tally, error) { return fio(ctx, device, w, b.used(), b.run, false) }
	}
	inState2 := func(run func() (tally, error)) func() (tally, error) {
		return func() (tally, error) {
			if err := d.main.committed(ctx, b.free()); err != nil {
				return tally{}, err
			}
			return run()
		}
	}
	runs := map[string]func() (tally, error){
		"raw of state0": loop(d.trim.raw),
		"state0":        loop(d.trim.device),
		"raw of state2": inState2(loop(d.main.raw)),
		"state2":        inState2(loop(d.main.device)),
	}
	if d.uring != nil {
		runs["raw of uring"] = loop(d.uring.raw)
		runs["uring"] = loop(d.uring.device)
	}
	if w.writes() {
		runs["state1-first"] = func() (tally, error) { return b.firstOverwrites(ctx, d.main.mapped, w) }
		runs["state1-changed"] = func() (tally, error) { return b.rewrites(ctx, d.main.mapped, w) }
		runs["state1-free"] = func() (tally, error) { return b.freeWrites(ctx, d.main.mapped, w) }
		runs["state2 once"] = func() (tally, error) { return b.onceInState2(ctx, d.main.mapped, w) }
	} else {
		runs["state1"] = func() (tally, error) {
			if err := d.main.fresh(ctx, b.free()); err != nil {
				return tally{}, err
			}
			return loop(d.main.device)()
		}
	}
	hand, ok := byHand[w.key]
	if ok {
		runs["by hand"] = inState2(func() (tally, error) { return b.firstByHand(ctx, d.main.raw, w) })
	}
	order := slices.Sorted(maps.Keys(runs))
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	u := w.unit()
	rates := map[string]float64{}
	for _, run := range order {
		t, err := runs[run]()
		if err != nil {
			return fmt.Errorf("%s: %w", run, err)
		}
		rates[run] = t.rate(u)
	}

	for _, c := range []struct {
		run, work     string
		base, against string
		goal          float64
		key           string // if it is not run
	}{
		{run: "state0", work: "state 0", base: "raw of state0", against: "raw", goal: w.goal},
		{run: "state2", work: "state 2", base: "raw of state2", against: "raw", goal: w.goal},
		{run: "uring", work: "state 2 over io_uring", base: "raw of uring", against: "raw", goal: w.uring},
		{run: "state1", work: "state 1", base: "state2", against: "state 2", goal: goalUnsaved},
		{run: "state1-changed", work: "state 1, changed blocks", base: "state2", against: "state 2", goal: goalUnsaved},
		{run: "state1-free", work: "state 1, free blocks", base: "state2 once", against: "state 2", goal: goalUnsaved},
		{run: "state1-first", work: "state 1, first overwrite", base: "state2 once", against: "state 2", goal: goalsFirst[w.key]},
		{run: "state1-first", work: "state 1, first overwrite", base: "by hand", against: hand.name, goal: hand.goal, key: hand.key},
	} {
		base, got := rates[c.base], rates[c.run]
		if base != 0 && got != 0 {
			b.results.row(row{
				key: cmp.Or(c.key, c.run) + "-" + w.key, work: c.work + ": " + w.name, unit: u, against: c.against, goal: c.goal,
			}).compare(base, got)
		}
	}
	return nil
}

// maxPasses bounds how often work that touches each block once is repeated to
// fill its time.
const maxPasses = 4

// passes repeats work that touches each block of a region once until it has run as
// long as other work. Before each pass comes prepare, with what is to be free, and after
// it check.
func (b *bench) passes(ctx context.Context, m *mapped, w work, at region, prepare func(context.Context, region) error, check func(written int64) error) (tally, error) {
	var all tally
	for range maxPasses {
		if err := prepare(ctx, b.free()); err != nil {
			return all, err
		}
		t, err := fio(ctx, m.device, w, at, b.run-all.time, true)
		if err != nil {
			return all, err
		}
		if err := check(t.bytes); err != nil {
			return all, err
		}
		all.add(t)
		if all.time > b.run*3/4 {
			break
		}
	}
	return all, nil
}

// firstOverwrites overwrites blocks in use that have not been written since the
// checkpoint. What is next to them may be backed up with them, of the same region.
func (b *bench) firstOverwrites(ctx context.Context, m *mapped, w work) (tally, error) {
	return b.passes(ctx, m, w, b.used(), m.fresh, func(written int64) error {
		return m.expectBackedUp(ctx, written, b.used().length)
	})
}

// freeWrites writes blocks that were free at the checkpoint and have not been
// written since.
func (b *bench) freeWrites(ctx context.Context, m *mapped, w work) (tally, error) {
	return b.passes(ctx, m, w, b.freeUser(), m.fresh, func(int64) error {
		return m.expectBackedUp(ctx, 0, 0)
	})
}

// onceInState2 is what both are compared with: passes are short, and to choose blocks
// that it has not touched is work for fio.
func (b *bench) onceInState2(ctx context.Context, m *mapped, w work) (tally, error) {
	return b.passes(ctx, m, w, b.used(), m.committed, func(int64) error { return nil })
}

// rewrites overwrites blocks that have been overwritten since the checkpoint.
func (b *bench) rewrites(ctx context.Context, m *mapped, w work) (tally, error) {
	if err := b.overwriteAll(ctx, m, 1*mib, "write"); err != nil {
		return tally{}, err
	}
	t, err := fio(ctx, m.device, w, b.used(), b.run, false)
	if err != nil {
		return t, err
	}
	return t, m.expectBackedUp(ctx, b.used().length, b.used().length)
}

// overwriteAll overwrites all of used after a fresh checkpoint.
func (b *bench) overwriteAll(ctx context.Context, m *mapped, blockSize int, rw string) error {
	if err := m.fresh(ctx, b.free()); err != nil {
		return err
	}
	w := work{rw: rw, blockSize: blockSize, depth: 8}
	if _, err := fio(ctx, m.device, w, b.used(), 0, true); err != nil {
		return err
	}
	return m.expectBackedUp(ctx, b.used().length, b.used().length)
}

// expectBackedUp fails unless so many bytes are backed up, and no backup had to
// move: then what was measured is not what was meant.
func (m *mapped) expectBackedUp(ctx context.Context, least, most int64) error {
	// A request that fio did not wait for may still be under way.
	var open *enginepb.Open
	for range 20 {
		v, err := m.status(ctx)
		if err != nil {
			return err
		}
		if open = v.Open; open == nil {
			return fmt.Errorf("no checkpoint is open on %s", m.image)
		}
		if least <= open.BackedUp && open.BackedUp <= most {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if open.BackedUp < least || open.BackedUp > most || open.Moved != 0 || open.OutOfSpace != 0 {
		return fmt.Errorf("%d bytes were backed up where %d to %d were expected, %d bytes of backups moved, %d requests without space: this is not the work that was to be measured",
			open.BackedUp, least, most, open.Moved, open.OutOfSpace)
	}
	return nil
}
