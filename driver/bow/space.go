package bow

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
// All fields are guarded by Engine.mu; positions are blocks.
type placement struct {
	next, end int64 // what is left of the window
	floor     int64 // the next window ends here at the latest
}

func (e *Engine) resetPlacementLocked() {
	e.mu.place = placement{floor: e.mu.types.Size()}
}

// takeLocked makes up to n free blocks in a row Reserved and returns them, or
// nothing if no block is free.
func (e *Engine) takeLocked(n int64) (extent, bool) {
	types, p := e.mu.types, &e.mu.place
	if types.Total(Free.Class()) == 0 {
		return extent{}, false
	}
	for {
		if x, ok := types.Next(p.next, Free.Class()); ok && x.Start < p.end {
			got := extent{x.Start, min(x.End, p.end, x.Start+n)}
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
	if e.mu.types.Total(Free.Class()) < n {
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
