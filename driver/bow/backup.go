package bow

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/iomem"
)

// backup is what one request has to save before it may overwrite its range:
// which blocks, and where their copies go. It is made in one step under
// Engine.mu, so that a request that cannot be done changes nothing.
type backup struct {
	originals []extent // Unchanged: the content of the checkpoint
	moves     []extent // Backup: copies that must not be lost
	current   int64    // block with the live content of block 0 if it is in the range, or 0
	shadows   [2]bool  // which shadows of the log are in the range

	neighbours bool     // originals are not only of the range
	freed      []extent // Free and Stale blocks of the range: nothing to save
	cut        []extent // Spare blocks of the range: the log must say first that they are not
	margin     []extent // Spare blocks around those, which go out of the reserve with them
	copies     []copyJob
	dests      []extent // all blocks reserved, in the order of the list of blocks above

	newCurrent int64    // where current goes
	newShadows [2]int64 // where the shadows go
}

// copyJob copies the content of one extent to another of the same length.
type copyJob struct {
	from, to extent
	checksum bool // 0 in the log otherwise, as the format wants it for the live block 0
}

// overwrite runs write, which overwrites [off, off+length), after what must be
// kept of that range has been saved. The caller is in state Checkpoint.
func (e *Engine) overwrite(off, length int64, write func() error) error {
	start, end := off/e.blockSize, (off+length)/e.blockSize
	if l, ok := e.nothingToSave(start, end); ok {
		if l != nil {
			defer e.unlock(l)
		}
		return write()
	}
	l, b, err := e.lockAndPrepare(start, end, true)
	defer func() { e.unlock(l) }()
	if err == nil && b != nil {
		err = e.save(b)
		if err != nil && b.neighbours {
			// Perhaps it is one of these that cannot be read.
			e.unlock(l)
			if l, b, err = e.lockAndPrepare(start, end, false); err == nil && b != nil {
				err = e.save(b)
			}
		}
	}
	if err != nil {
		if errors.Is(err, ErrNoSpace) {
			e.outOfSpace.Add(1)
		}
		return fmt.Errorf("overwriting [%d, +%d): %w", off, length, err)
	}
	return write()
}

// nothingToSave tells whether [start, end) can be overwritten at once, which is so most
// of the time: nothing of it has to be saved, and no other request is in the way. It is
// locked then, if there is a lock; otherwise nothing has happened.
func (e *Engine) nothingToSave(start, end int64) (*rangeLock, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.mu.types.Get(start)
	if start == 0 || x.End < end {
		return nil, false
	}
	switch x.Value {
	case Changed:
		return nil, true // as it stays until the checkpoint ends
	case Written, Free:
		// It may become free and be given to a copy while the write is under way.
		l := &rangeLock{start: start, end: end}
		if !e.mu.locks.tryAcquire(l) {
			return nil, false
		}
		if x.Value == Free {
			e.mu.types.Set(start, end, Written)
		}
		return l, true
	}
	return nil, false
}

// lockAndPrepare locks [start, end) and prepares to overwrite it, and to save its
// neighbours as well if that is wanted and worth it. The lock is held whether or not
// there is an error.
func (e *Engine) lockAndPrepare(start, end int64, neighbours bool) (*rangeLock, *backup, error) {
	for {
		from, to := start, end
		if neighbours {
			from, to = e.withNeighbours(start, end)
		}
		l := e.lock(from, to)
		b, moved, err := e.prepare(l, start, end)
		if !moved {
			return l, b, err
		}
		e.unlock(l)
	}
}

// prepare finds out what is to be saved of [start, end), which is in the range of l,
// reserves the space for it, and makes what was Free Written. It returns nil if there
// is nothing to save.
//
// Free blocks of the range can become something else until then. If one of them
// became the place of the live block 0, which l does not hold, it reports that it
// has moved there, and nothing else has happened.
func (e *Engine) prepare(l *rangeLock, start, end int64) (b *backup, moved bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		for e.reservedInLocked(start, end) {
			e.mu.reserved.Wait()
		}
		if l.start <= e.mu.sector0 && e.mu.sector0 < l.end && !l.zero {
			return nil, true, nil
		}
		b, err = e.prepareLocked(l, start, end)
		if !errors.Is(err, ErrNoSpace) || e.mu.types.Total(Reserved.Class()) == 0 {
			return b, false, err
		}
		// Some of what others have reserved may become free again.
		e.mu.reserved.Wait()
	}
}

func (e *Engine) prepareLocked(l *rangeLock, start, end int64) (*backup, error) {
	if x := e.mu.types.Get(start); x.End >= end && (x.Value == Changed || x.Value == Written) {
		return nil, nil
	}
	b := &backup{}
	for x := range e.mu.types.Extents(start, end) {
		switch piece := (extent{start: x.Start, end: x.End}); x.Value {
		case Unchanged:
			b.originals = append(b.originals, piece)
		case Free, Stale:
			b.freed = append(b.freed, piece)
		case Spare:
			b.cut = append(b.cut, piece)
		case Backup:
			b.moves = append(b.moves, piece)
		case Sector0Current:
			b.current = x.Start
		}
	}
	b.moves = e.cutShadowsLocked(b.moves, b)
	if len(b.originals) > 0 && (l.start < start || end < l.end) {
		all, n := e.extentsLocked(l.start, l.end, Unchanged), int64(0)
		for _, x := range all {
			n += x.len()
		}
		if e.plentyLocked(n, end-start) {
			b.originals, b.neighbours = all, true
		}
	}

	before := e.typesOfLocked(b.freed)
	e.setAllLocked(b.freed, Written)
	e.setAllLocked(b.cut, Written)
	if err := e.reserveForLocked(b); err != nil {
		for i, x := range b.freed {
			e.mu.types.Set(x.start, x.end, before[i])
		}
		e.setAllLocked(b.cut, Spare)
		return nil, err
	}
	if len(b.cut) > 0 {
		e.cutReserveLocked(b)
	}
	if len(b.dests) == 0 && len(b.cut) == 0 {
		return nil, nil
	}
	return b, nil
}

// cutMargin is how far around a write into the reserve the reserve ends, bytes: who
// writes there will go on there, and each cut costs a write of the log.
const cutMargin = 8 << 20

// cutReserveLocked takes what is around b.cut out of the reserve as well, as long as
// most of the reserve stays: until the log is written, nobody can use it.
func (e *Engine) cutReserveLocked(b *backup) {
	margin := cutMargin / e.blockSize
	start := max(b.cut[0].start-margin, 0)
	end := min(b.cut[len(b.cut)-1].end+margin, e.mu.types.Size())
	most := e.mu.types.Total(Spare.Class()) / 4
	for _, x := range e.extentsLocked(start, end, Spare) {
		x.end = min(x.end, x.start+most)
		most -= x.len()
		if x.len() > 0 {
			b.margin = append(b.margin, x)
		}
	}
	e.setAllLocked(b.margin, Reserved)
}

func (e *Engine) typesOfLocked(list []extent) []Type {
	types := make([]Type, len(list))
	for i, x := range list {
		types[i] = e.mu.types.Get(x.start).Value
	}
	return types
}

func (e *Engine) reservedInLocked(start, end int64) bool {
	if e.mu.types.Total(Reserved.Class()) == 0 {
		return false
	}
	return len(e.extentsLocked(start, end, Reserved)) > 0
}

// cutShadowsLocked takes the blocks of the shadows out of moves and notes them in
// b: nothing need be copied, the next log block is just written elsewhere.
func (e *Engine) cutShadowsLocked(moves []extent, b *backup) []extent {
	for i, s := range e.mu.shadows {
		for j, x := range moves {
			if s < x.start || s >= x.end {
				continue
			}
			b.shadows[i] = true
			cut := append([]extent(nil), moves[:j]...)
			if x.start < s {
				cut = append(cut, extent{start: x.start, end: s})
			}
			if s+1 < x.end {
				cut = append(cut, extent{start: s + 1, end: x.end})
			}
			moves = append(cut, moves[j+1:]...)
			break
		}
	}
	return moves
}

// reserveForLocked reserves a place for everything that b saves, or nothing.
func (e *Engine) reserveForLocked(b *backup) error {
	var copied, single int64
	for _, x := range b.originals {
		copied += x.len()
	}
	for _, x := range b.moves {
		copied += x.len()
	}
	if b.current != 0 {
		single++
	}
	for _, s := range b.shadows {
		if s {
			single++
		}
	}
	if e.availableLocked() < copied+single {
		return ErrNoSpace
	}
	b.dests, _ = e.reserveLocked(nil, copied)
	b.pairUp()
	one := func() int64 {
		var err error
		if b.dests, err = e.reserveLocked(b.dests, 1); err != nil {
			panic("bow: the total of free blocks is wrong")
		}
		return b.dests[len(b.dests)-1].start
	}
	if b.current != 0 {
		b.newCurrent = one()
		b.copies = append(b.copies, copyJob{
			from: extent{start: b.current, end: b.current + 1},
			to:   extent{start: b.newCurrent, end: b.newCurrent + 1},
		})
	}
	for i, s := range b.shadows {
		if s {
			b.newShadows[i] = one()
		}
	}
	return nil
}

// pairUp cuts the blocks to be copied and the blocks reserved for them into
// pieces of equal length.
func (b *backup) pairUp() {
	to := b.dests
	var rest extent
	for _, list := range [][]extent{b.originals, b.moves} {
		for _, from := range list {
			for from.len() > 0 {
				if rest.len() == 0 {
					rest, to = to[0], to[1:]
				}
				n := min(from.len(), rest.len())
				b.copies = append(b.copies, copyJob{
					from:     extent{start: from.start, end: from.start + n},
					to:       extent{start: rest.start, end: rest.start + n},
					checksum: true,
				})
				from.start += n
				rest.start += n
			}
		}
	}
}

// save copies what b says, puts it into the log, and gives the blocks the types
// that follow from that.
func (e *Engine) save(b *backup) error {
	req := logRequest{shadows: b.newShadows, sector0: b.newCurrent, cut: len(b.cut) > 0, failures: e.dev.failures.Load()}
	for _, c := range b.copies {
		entry, err := e.copyBlocks(c)
		if err != nil {
			e.undo(b)
			return err
		}
		req.entries = append(req.entries, entry)
	}
	written, err := e.log.append(&req)
	if !written {
		// If a log names the copies, it makes no difference.
		e.undo(b)
		return err
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.mu.reserved.Broadcast()
	e.setAllLocked(b.dests, Backup)
	// If the log write failed, it may have reached the disk all the same. So
	// its copies stay and what it moved is where it says; but what is to be
	// overwritten must be kept as it is.
	// And what it took out of the reserve may still be in there.
	done, gone := Changed, Written
	if err != nil {
		done, gone = Unchanged, Backup
		e.setAllLocked(b.cut, Spare)
		e.setAllLocked(b.margin, Spare)
	} else {
		e.setAllLocked(b.margin, Free)
	}
	e.setAllLocked(b.originals, done)
	e.setAllLocked(b.moves, gone)
	for _, x := range b.moves {
		if err == nil {
			e.mu.moved += x.len() * e.blockSize
		}
	}
	if b.current != 0 {
		e.mu.types.Set(b.current, b.current+1, gone)
		e.mu.types.Set(b.newCurrent, b.newCurrent+1, Sector0Current)
		e.mu.sector0 = b.newCurrent
	}
	for i, s := range b.shadows {
		if s {
			e.mu.types.Set(e.mu.shadows[i], e.mu.shadows[i]+1, gone)
			e.mu.shadows[i] = b.newShadows[i]
		}
	}
	return err
}

// undo makes what prepare did undone, when no log names it.
func (e *Engine) undo(b *backup) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.giveBackLocked(b.dests)
	e.setAllLocked(b.cut, Spare)
	e.setAllLocked(b.margin, Spare)
	e.mu.reserved.Broadcast()
}

// copyBlocks copies c and returns the log entry for it.
func (e *Engine) copyBlocks(c copyJob) (bowlog.Entry, error) {
	length := c.from.len() * e.blockSize
	entry := bowlog.Entry{Source: e.sector(c.from.start), Dest: e.sector(c.to.start), Size: uint32(length)}
	crc := bowlog.Seed(entry.Source, int(e.blockSize))
	buf := copyBuffer(length)
	defer releaseCopyBuffer(buf)
	for done := int64(0); done < length; {
		p := (*buf)[:min(length-done, int64(len(*buf)))]
		if _, err := e.dev.ReadAt(p, c.from.start*e.blockSize+done); err != nil {
			return entry, fmt.Errorf("reading the old content: %w", err)
		}
		crc = bowlog.Checksum(crc, p)
		if _, err := e.dev.WriteAt(p, c.to.start*e.blockSize+done); err != nil {
			return entry, fmt.Errorf("writing the copy: %w", err)
		}
		done += int64(len(p))
	}
	if c.checksum {
		entry.Checksum = crc
	}
	return entry, nil
}

// Copies are made in pieces of up to largeCopy bytes; buffers are used again, until they
// have not been for a while. Most copies are short, and there are many.
const (
	smallCopy = 64 << 10
	largeCopy = 256 << 10
)

var smallCopies, largeCopies = copyBuffers(smallCopy), copyBuffers(largeCopy)

func copyBuffers(length int) *sync.Pool {
	memory := iomem.NewPool(length)
	return &sync.Pool{New: func() any {
		mem, err := memory.Get()
		if err != nil { // perhaps the heap has some
			mem = blockdev.Buffer(length)
			return &mem
		}
		buf := &mem
		runtime.AddCleanup(buf, memory.Put, mem)
		return buf
	}}
}

// copyBuffer returns a buffer for a copy of length bytes, in pieces if need be.
func copyBuffer(length int64) *[]byte {
	if length > smallCopy {
		return largeCopies.Get().(*[]byte)
	}
	return smallCopies.Get().(*[]byte)
}

func releaseCopyBuffer(buf *[]byte) {
	if len(*buf) == smallCopy {
		smallCopies.Put(buf)
	} else {
		largeCopies.Put(buf)
	}
}
