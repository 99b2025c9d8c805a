package bow

import (
	"cmp"
	"slices"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// windowSize is the length in bytes of the stretch of free space that backups
// fill before the next one is looked for.
const windowSize = 4 << 20

// placement decides where backups go. File systems fill free space from low
// addresses and near to what belongs together, so backups keep away from that:
// they take the end of the last free extent of the device, then the end of what
// is free before that, and so on. Within such a window they go upwards, so that
// the copies of a sequential overwrite are sequential too and their log entries
// merge. What the file system takes in the meantime is skipped; what a discard
// freed behind the window is found when the search starts again from the end.
//
// The reserve is for after a crash, so it is taken last.
//
// All fields are guarded by Engine.mu; positions are blocks.
type placement struct {
	next, end int64 // what is left of the window
	floor     int64 // the next window ends here at the latest
}

func (e *Engine) resetPlacementLocked() {
	e.mu.place = placement{floor: e.mu.types.Size()}
}

// reserveShare and maxReserve limit the reserve: a part of the free space, and
// bytes. It must take what mounting writes after a crash, the replay of a journal
// above all.
const (
	reserveShare = 4
	maxReserve   = 256 << 20
)

// availableLocked is the number of blocks that backups can use.
func (e *Engine) availableLocked() int64 {
	return e.mu.types.Total(Free.Class()) + e.mu.types.Total(Spare.Class())
}

// takeLocked makes up to n free blocks in a row Reserved and returns them, or
// nothing if no block is free.
func (e *Engine) takeLocked(n int64) (extent, bool) {
	types, p := e.mu.types, &e.mu.place
	if types.Total(Free.Class()) == 0 {
		x, ok := types.Next(0, Spare.Class())
		if !ok {
			return extent{}, false
		}
		got := extent{x.Start, min(x.End, x.Start+n), true}
		types.Set(got.start, got.end, Reserved)
		return got, true
	}
	for {
		if x, ok := types.Next(p.next, Free.Class()); ok && x.Start < p.end {
			got := extent{x.Start, min(x.End, p.end, x.Start+n), false}
			p.next = got.end
			types.Set(got.start, got.end, Reserved)
			return got, true
		}
		x, ok := types.Prev(p.floor, Free.Class())
		if !ok {
			// Something is free, so it is behind the floor.
			p.floor = types.Size()
			continue
		}
		p.floor = max(x.Start, x.End-windowSize/e.blockSize)
		p.next, p.end = p.floor, x.End
	}
}

// reserveLocked appends n free blocks to to, in as many extents as it takes, and
// makes them Reserved; or it changes nothing and returns ErrNoSpace.
func (e *Engine) reserveLocked(to []extent, n int64) ([]extent, error) {
	if e.availableLocked() < n {
		return to, ErrNoSpace
	}
	for n > 0 {
		x, ok := e.takeLocked(n)
		if !ok {
			panic("bow: the total of free blocks is wrong")
		}
		to = append(to, x)
		n -= x.len()
	}
	return to, nil
}

// setAllLocked gives every extent of list the type t.
func (e *Engine) setAllLocked(list []extent, t Type) {
	for _, x := range list {
		e.mu.types.Set(x.start, x.end, t)
	}
}

// giveBackLocked makes reserved blocks what they were.
func (e *Engine) giveBackLocked(list []extent) {
	for _, x := range list {
		t := Free
		if x.spare {
			t = Spare
		}
		e.mu.types.Set(x.start, x.end, t)
	}
}

// chooseReserveLocked makes some of the free blocks Spare: those at the end of the
// device, in few runs.
func (e *Engine) chooseReserveLocked() {
	types := e.mu.types
	want := min(types.Total(Free.Class())/reserveShare, maxReserve/e.blockSize)
	end := types.Size()
	for range len(bowlog.Extension{}.Reserve) {
		x, ok := types.Prev(end, Free.Class())
		if !ok || want == 0 {
			return
		}
		n := min(x.End-x.Start, want)
		types.Set(x.End-n, x.End, Spare)
		want -= n
		end = x.Start
	}
}

// reserveRunsLocked returns the longest runs of Spare blocks, as the log has them.
func (e *Engine) reserveRunsLocked() (runs [4]bowlog.Run) {
	var list []extent
	for x, ok := e.mu.types.Next(0, Spare.Class()); ok; x, ok = e.mu.types.Next(x.End, Spare.Class()) {
		list = append(list, extent{start: x.Start, end: x.End})
	}
	slices.SortFunc(list, func(a, b extent) int { return cmp.Compare(b.len(), a.len()) })
	for i, x := range list[:min(len(list), len(runs))] {
		runs[i] = bowlog.Run{Start: e.sector(x.start), Sectors: e.sector(x.len())}
	}
	return runs
}
