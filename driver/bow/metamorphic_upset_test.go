package bow_test

import (
	"cmp"
	"errors"
	"slices"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// foundFree is what a file system reports: the units that are free now, but for
// those of some deeds.
func (l *life) foundFree(but []int) {
	free := slices.Clone(l.undefined)
	for _, i := range but {
		for u := l.deeds[i].start; u < l.deeds[i].end; u++ {
			free[u] = false
		}
	}
	for u := 0; u < units; u++ {
		start := u
		for u < units && free[u] {
			u++
		}
		piece := cmp.Or(l.piece, units*unit)
		for off := start * unit; off < u*unit; off += piece {
			l.reports = append(l.reports, [2]int64{int64(off), int64(min(piece, u*unit-off))})
		}
	}
	if l.piece > 0 {
		l.rng.Shuffle(len(l.reports), func(i, j int) { l.reports[i], l.reports[j] = l.reports[j], l.reports[i] })
	}
	switch {
	case !l.late || but != nil:
		l.report(len(l.reports))
	case l.open: // until it is reported there is no more space than the reserve
		l.report(max(len(l.reports)-4, 0))
	}
}

// report makes n of the reports.
func (l *life) report(n int) {
	for _, r := range l.reports[:n] {
		l.must(l.engine.MarkFree(r[0], r[1]))
	}
	l.reports = l.reports[n:]
}

// upset does to the volume what its user must not notice:
//
//	die      the process dies, and its successor has its memory
//	forget   the same without the memory
//	cut      a power cut; what was not flushed may be lost, and the user does it again
//	detach   the volume is detached and attached again
func (l *life) upset(what string) {
	l.note("upset: %s", what)
	l.must(l.engine.Close())
	if what == "die" {
		l.takeOver(l.memory)
		if l.trim {
			l.foundFreeAgain(nil)
		}
		return
	}
	redo := l.redo
	switch what {
	case "cut":
		l.mem = l.mem.Crash(l.rng)
		l.attach()
	case "detach":
		redo = nil
		l.attach()
	case "forget":
		redo = nil
		l.takeOver(nil)
	}
	if l.open || l.trim {
		l.foundFreeAgain(redo)
	}
	for _, i := range redo {
		l.must(l.do(i))
	}
	if l.open && len(redo) > 0 {
		l.foundFree(nil)
	}
}

// foundFreeAgain is foundFree when what was found before does not count any more.
func (l *life) foundFreeAgain(but []int) {
	l.reports = nil
	if l.trim {
		l.must(l.engine.StartTrim())
	}
	l.foundFree(but)
}

// device opens the device below.
func (l *life) device() blockdev.Device {
	l.t.Helper()
	l.below = l.mem
	if l.file {
		file, err := blockdev.Open(l.path, blockdev.Buffered)
		l.must(err)
		l.below = file
	}
	return l.below
}

// attach opens the volume, which is refused if it is to be rolled back.
func (l *life) attach() {
	l.t.Helper()
	e, err := bow.Open(l.device(), l.blockSize)
	if l.asked && errors.Is(err, bow.ErrCheckpointOpen) {
		l.must(l.below.Close())
		l.takeOver(nil)
		return
	}
	l.must(err)
	if l.asked {
		l.fatal("opened, though a rollback was asked for")
	}
	l.engine = e
	e.Remember(l.memory)
}

func (l *life) takeOver(memory []byte) {
	l.t.Helper()
	e, err := bow.TakeOver(l.device(), l.blockSize, memory)
	l.must(err)
	l.engine = e
	e.Remember(l.memory)
}
