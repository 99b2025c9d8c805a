package bow

import (
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Check tells which invariants of the package comment do not hold. It is for
// tests; no request may be under way.
func (e *Engine) Check() error {
	e.transition.Lock()
	defer e.transition.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if err := e.mu.types.Check(); err != nil {
		errs = append(errs, err)
	}
	if n := e.mu.types.Size() * e.blockSize; n != e.Size() {
		wrong("the map is for %d bytes, the size is %d", n, e.Size())
	}
	if held, waiting := len(e.mu.locks.held), len(e.mu.locks.waiting); held+waiting != 0 {
		wrong("%d locks held and %d waited for without a request", held, waiting)
	}
	var totals [numTypes]int64
	for x := range e.mu.types.Extents(0, e.mu.types.Size()) {
		if x.Value >= numTypes {
			wrong("blocks [%d, %d) have no valid type: %d", x.Start, x.End, x.Value)
			continue
		}
		totals[x.Value] += x.End - x.Start
	}
	for t, n := range totals {
		if got := e.mu.types.Total(Type(t).Class()); got != n {
			wrong("total of %s is %d, the map has %d", Type(t), got, n)
		}
	}
	if totals[Reserved] != 0 {
		wrong("%d blocks are reserved without a request", totals[Reserved])
	}
	if e.mu.shown != e.state {
		wrong("state is %s, shown is %s", e.state, e.mu.shown)
	}
	if zero := e.mu.types.Get(0).Value; e.state != Checkpoint {
		for _, t := range []Type{Changed, Backup, Sector0, Sector0Current, Spare, Stale} {
			if totals[t] != 0 {
				wrong("%d blocks are %s in state %s", totals[t], t, e.state)
			}
		}
		if zero == Free {
			wrong("block 0 is free")
		}
		return errors.Join(errs...)
	} else if zero != Sector0 {
		wrong("block 0 is %s", zero)
	}
	perBlock := e.blockSize / blockdev.SectorSize
	if totals[Sector0] != 1 || totals[Sector0Current] != 1 {
		wrong("%d blocks are %s, %d are %s", totals[Sector0], Sector0, totals[Sector0Current], Sector0Current)
	}
	if t := e.mu.types.Get(e.mu.sector0).Value; t != Sector0Current {
		wrong("the live content of block 0 is at block %d, which is %s", e.mu.sector0, t)
	}
	if got, want := e.log.block.Sector0, e.sector(e.mu.sector0); got != want {
		wrong("the log has block 0 at sector %d, the engine at %d", got, want)
	}
	// Who writes to a block that the log on disk has in its reserve must have
	// to ask the log first.
	for _, r := range e.log.block.Ext.Reserve {
		start, n := int64(r.Start)/perBlock, int64(r.Sectors)/perBlock
		for x := range e.mu.types.Extents(start, start+n) {
			if x.Value != Spare && x.Value != Backup {
				wrong("blocks [%d, %d) of the reserve are %s", x.Start, x.End, x.Value)
			}
		}
	}
	for i, s := range e.mu.shadows {
		if t := e.mu.types.Get(s).Value; t != Backup {
			wrong("shadow %d is at block %d, which is %s", i, s, t)
		}
		if got, want := e.log.block.Ext.Shadows[i], e.sector(s); got != want {
			wrong("the log has shadow %d at sector %d, the engine at %d", i, got, want)
		}
	}
	return errors.Join(errs...)
}
