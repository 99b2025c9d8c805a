package bench

import (
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

// Goals in state 1 against state 2.
const (
	goalUnsaved         = 0.95 // where nothing needs a backup
	goalFirst32         = 0.50 // first overwrites, 4 KiB random, depth 32
	goalFirstSequential = 0.45 // first overwrites, 256 KiB sequential: each byte is read once and written twice
)

// devices are what is compared, each over an image of its own, all attached at
// the same time so that each can be measured right after the other.
type devices struct {
	raw                         string // block device
	rawImage                    string
	trim, checkpoint, committed *mapped // by state
	uring                       *mapped // in state 2, over io_uring; nil where there is none
}

// blocks measures the three states on the mapped device itself, and restoring.
func (b *bench) blocks(ctx context.Context) (err error) {
	list := slices.DeleteFunc(slices.Clone(works), func(w work) bool { return !b.wants(w.key) })
	if len(list) == 0 && !b.wants(restorePart) {
		return nil
	}
	var d devices
	var closers closers
	defer func() { err = errors.Join(err, closers.close()) }()
	b.progress("writing five images of %d MiB", b.image/mib)
	image := func(name string) (string, error) {
		path := filepath.Join(b.images, name+".img")
		return path, writeImage(path, b.image, ctx.Err)
	}
	if d.rawImage, err = image("raw"); err != nil {
		return err
	}
	raw, err := rawLoop(d.rawImage)
	if err != nil {
		return err
	}
	closers.add(raw.Close)
	d.raw = raw.Name()
	for name, m := range map[string]**mapped{"trim": &d.trim, "checkpoint": &d.checkpoint, "committed": &d.committed} {
		path, err := image(name)
		if err != nil {
			return err
		}
		if *m, err = b.attach(ctx, path); err != nil {
			return err
		}
		// Restoring replaces the mapping.
		closers.add(func() error { return (*m).detach() })
	}
	path, err := image("uring")
	if err != nil {
		return err
	}
	if d.uring, err = b.attach(ctx, path, "--io-uring"); err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.progress("io_uring is not measured: %v", err)
	} else {
		closers.add(d.uring.detach)
	}
	// Something is free in each of them, as it would be in use.
	if err := d.trim.discard(b.free()); err != nil {
		return err
	}
	if err := d.committed.fresh(ctx, b.free()); err != nil {
		return err
	}
	if err := d.committed.commit(ctx); err != nil {
		return err
	}
	if d.uring != nil {
		if err := errors.Join(d.uring.fresh(ctx, b.free()), d.uring.commit(ctx)); err != nil {
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
		if !b.wants(restorePart) {
			continue
		}
		for _, k := range restoreKinds {
			if err := b.restore(ctx, &d, k); err != nil {
				return fmt.Errorf("restoring: %w", err)
			}
		}
	}
	return nil
}

// states does one work on all devices, one after the other, each time in another
// order: what was written before, by whomever, makes a disk slower or faster.
func (b *bench) states(ctx context.Context, d devices, w work) error {
	loop := func(device string) (tally, error) { return fio(ctx, device, w, b.used(), b.run, false) }
	runs := map[string]func() (tally, error){
		"raw":    func() (tally, error) { return loop(d.raw) },
		"state0": func() (tally, error) { return loop(d.trim.device) },
		"state2": func() (tally, error) { return loop(d.committed.device) },
	}
	if d.uring != nil {
		runs["uring"] = func() (tally, error) { return loop(d.uring.device) }
	}
	if w.writes() {
		runs["state1-first"] = func() (tally, error) { return b.firstOverwrites(ctx, d.checkpoint, w) }
		runs["state1-changed"] = func() (tally, error) { return b.rewrites(ctx, d.checkpoint, w) }
		runs["state1-free"] = func() (tally, error) { return b.freeWrites(ctx, d.checkpoint, w) }
	} else {
		runs["state1"] = func() (tally, error) {
			if err := d.checkpoint.fresh(ctx, b.free()); err != nil {
				return tally{}, err
			}
			return loop(d.checkpoint.device)
		}
	}
	if w.key == flushesWork {
		runs["flushes"] = func() (tally, error) { return b.twoFlushes(ctx, d.raw) }
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

	if w.key == flushesWork {
		rates["state1-first-flushes"] = rates["state1-first"]
	}
	bases := map[string]string{"raw": "raw", "state2": "state 2", "flushes": "two flushes"}
	row := func(run, what, base string, goal float64) {
		if rate, measured := rates[run]; measured {
			b.results.row(row{key: run + "-" + w.key, work: what + ": " + w.name, unit: u, against: bases[base], goal: goal}).compare(rates[base], rate)
		}
	}
	row("state0", "state 0", "raw", w.goal)
	row("state2", "state 2", "raw", w.goal)
	row("uring", "state 2 over io_uring", "raw", w.uring)
	row("state1", "state 1", "state2", goalUnsaved)
	row("state1-changed", "state 1, changed blocks", "state2", goalUnsaved)
	row("state1-free", "state 1, free blocks", "state2", goalUnsaved)
	row("state1-first", "state 1, first overwrite", "state2", map[string]float64{"randwrite-32": goalFirst32, "write": goalFirstSequential}[w.key])
	row("state1-first-flushes", "state 1, first overwrite", "flushes", goalFlushes)
	return nil
}

// maxPasses bounds how often work that touches each block once is repeated to
// fill its time.
const maxPasses = 4

// passes repeats work that touches each block of a region once, each time with a
// fresh checkpoint, until it has run as long as other work. Each pass must back
// up as many bytes as want says of those that it wrote.
func (b *bench) passes(ctx context.Context, m *mapped, w work, at region, want func(written int64) (least, most int64)) (tally, error) {
	var all tally
	for range maxPasses {
		if err := m.fresh(ctx, b.free()); err != nil {
			return all, err
		}
		t, err := fio(ctx, m.device, w, at, b.run-all.time, true)
		if err != nil {
			return all, err
		}
		least, most := want(t.bytes)
		if err := m.expectBackedUp(ctx, least, most); err != nil {
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
	return b.passes(ctx, m, w, b.used(), func(written int64) (int64, int64) { return written, b.used().length })
}

// freeWrites writes blocks that were free at the checkpoint and have not been
// written since.
func (b *bench) freeWrites(ctx context.Context, m *mapped, w work) (tally, error) {
	return b.passes(ctx, m, w, b.freeUser(), func(int64) (int64, int64) { return 0, 0 })
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
