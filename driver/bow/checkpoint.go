package bow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// StartTrim begins to find out what is free. After it, discards are collected
// and MarkFree is believed for what has not been written since. What is known to
// be free from before stays so. It fails with ErrState while a checkpoint is
// open; otherwise it may be called again at any time, which begins anew.
func (e *Engine) StartTrim() error {
	e.transition.Lock()
	defer e.transition.Unlock()
	if e.state == Checkpoint {
		return fmt.Errorf("starting to look for free space with a checkpoint open: %w", ErrState)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.Replace(writtenToUnchanged)
	e.mu.scanning = true
	e.setStateLocked(Trim)
	return nil
}

// StopTrim ends what StartTrim began, when no checkpoint came of it: the engine
// goes on to Committed and no longer remembers every write. In other states it
// does nothing.
func (e *Engine) StopTrim() {
	e.transition.Lock()
	defer e.transition.Unlock()
	if e.state != Trim {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.Replace(writtenToUnchanged)
	e.mu.scanning = false
	e.setStateLocked(Committed)
}

func writtenToUnchanged(t Type) Type {
	if t == Written {
		return Unchanged
	}
	return t
}

// MarkFree says that the file system does not use [off, off+length), bytes, or
// did not at some moment after StartTrim. Only whole blocks inside of the range
// count, and of these only what has not been written since StartTrim.
//
// With a checkpoint open it counts for what was free at the checkpoint already;
// that is of use after the checkpoint was resumed, and the moment is one after
// that. Otherwise it fails with ErrState without StartTrim.
func (e *Engine) MarkFree(off, length int64) error {
	if err := blockdev.CheckRange(off, length, e.dev.Size(), 1); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	from := Unchanged
	if e.mu.shown == Checkpoint {
		from = Stale
	} else if !e.mu.scanning {
		return fmt.Errorf("free space reported without asking for it: %w", ErrState)
	}
	start := max((off+e.blockSize-1)/e.blockSize, 1)
	end := min((off+length)/e.blockSize, e.mu.types.Size())
	if start >= end {
		return nil
	}
	e.setAllLocked(e.extentsLocked(start, end, from), Free)
	return nil
}

// CheckpointOptions say how a checkpoint is opened.
type CheckpointOptions struct {
	// ID is the name of the checkpoint; zero means a random one.
	ID bowlog.ID

	// CommitWhenFull ends the checkpoint with a commit when a write needs a
	// backup and there is no space for it, instead of failing the write with
	// ErrNoSpace. It stays with the checkpoint on the device. Once a rollback was
	// asked for, writes fail all the same: they will be thrown away anyway.
	CommitWhenFull bool
}

// Checkpoint opens a checkpoint: from now on the content of this instant can be
// had back. The file system should be frozen. It fails with ErrState if the
// engine is not in Trim and with ErrNoSpace if hardly anything is free. ctx is
// obeyed until the requests under way have ended; from then on writes wait, and
// what is written after that instant is not in the checkpoint. If the checkpoint
// o.ID is open already, there is nothing to do.
//
// If I/O fails, the engine is as before; but if not even block 0 can be put
// back, it is in Checkpoint, where block 0 is served from its copy, and Commit
// tries again to put it back.
func (e *Engine) Checkpoint(ctx context.Context, o CheckpointOptions) error {
	e.transition.Lock()
	defer e.transition.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	if e.state == Checkpoint && o.ID != (bowlog.ID{}) && o.ID == e.log.block.Ext.Checkpoint {
		if err := e.log.resettle(); err != nil {
			return fmt.Errorf("opening a checkpoint: %w", err)
		}
		return nil
	}
	if e.state != Trim {
		return fmt.Errorf("opening a checkpoint in state %s: %w", e.state, ErrState)
	}
	c, err := e.planCheckpoint(o)
	if err != nil {
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	err = e.takeBlock0(c)
	if err != nil && !c.taken {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.giveBackLocked(c.places)
		e.setAllLocked(e.extentsLocked(0, e.mu.types.Size(), Spare), Free)
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	e.enterCheckpoint(c, err != nil)
	if err != nil {
		return fmt.Errorf("opening a checkpoint, which cannot be undone either: %w", err)
	}
	return nil
}

// newCheckpoint is a checkpoint that is being opened.
type newCheckpoint struct {
	block    *bowlog.Block
	freeMap  *bowlog.FreeMap
	places   []extent // all blocks that it needs
	current  int64    // for the live content of block 0
	original int64    // for the copy of block 0
	mapAt    []int64  // for the free map
	taken    bool     // block 0 is the log's
}

// planCheckpoint decides where everything goes that a checkpoint needs from the
// beginning, and reserves that.
func (e *Engine) planCheckpoint(o CheckpointOptions) (*newCheckpoint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ext := &bowlog.Extension{
		Checkpoint: o.ID, CommitWhenFull: o.CommitWhenFull,
		Opened: time.Now(), Generation: 1, DeviceSize: e.dev.Size(),
	}
	if o.ID == (bowlog.ID{}) {
		ext.Checkpoint = bowlog.NewID()
	}
	c := &newCheckpoint{
		block:   &bowlog.Block{BlockSize: int(e.blockSize), Ext: ext},
		freeMap: &bowlog.FreeMap{BlockSize: int(e.blockSize), Checkpoint: ext.Checkpoint},
	}
	for x, ok := e.mu.types.Next(0, Free.Class()); ok; x, ok = e.mu.types.Next(x.End, Free.Class()) {
		c.freeMap.Add(x.Start, x.End)
	}
	e.resetPlacementLocked()
	var err error
	if c.places, err = e.reserveLocked(nil, int64(4+c.freeMap.Len())); err != nil {
		return nil, err
	}
	var blocks []int64
	for _, x := range c.places {
		for b := x.start; b < x.end; b++ {
			blocks = append(blocks, b)
		}
	}
	c.current, c.original, c.mapAt = blocks[0], blocks[1], blocks[4:]
	c.block.Sector0 = e.sector(c.current)
	ext.Shadows = [2]uint64{e.sector(blocks[2]), e.sector(blocks[3])}
	ext.FreeMap = e.sector(c.mapAt[0])
	e.chooseReserveLocked()
	ext.Reserve = e.reserveRunsLocked()
	return c, nil
}

// takeBlock0 writes what a checkpoint needs, and at last its log to block 0. If
// it fails, block 0 is as it was, unless c.taken is set.
func (e *Engine) takeBlock0(c *newCheckpoint) error {
	b := c.block
	buf := blockdev.Buffer(b.BlockSize)
	if _, err := e.dev.ReadAt(buf, 0); err != nil {
		return fmt.Errorf("reading block 0: %w", err)
	}
	b.Entries = []bowlog.Entry{{
		Dest:     e.sector(c.original),
		Size:     uint32(b.BlockSize),
		Checksum: bowlog.Checksum(0, buf),
	}}
	for _, at := range []int64{c.current, c.original} {
		if _, err := e.dev.WriteAt(buf, at*e.blockSize); err != nil {
			return fmt.Errorf("copying block 0: %w", err)
		}
	}
	if err := e.writeFreeMap(c); err != nil {
		return err
	}
	if err := bowlog.WriteShadow(e.dev, b); err != nil {
		return err
	}
	if err := e.dev.Flush(); err != nil {
		return fmt.Errorf("flushing the copies of block 0: %w", err)
	}
	err := bowlog.Take(e.dev, b)
	c.taken = err == nil || bowlog.GiveBack(e.dev, b, b.Sector0) != nil
	return err
}

// writeFreeMap writes the free map, neighbouring blocks of it at once.
func (e *Engine) writeFreeMap(c *newCheckpoint) error {
	for i := 0; i < len(c.mapAt); {
		n := 1
		for i+n < len(c.mapAt) && c.mapAt[i+n] == c.mapAt[i]+int64(n) && int64(n+1)*e.blockSize <= largeCopy {
			n++
		}
		buf := blockdev.Buffer(n * int(e.blockSize))
		for k := range n {
			next := uint64(0)
			if i+k+1 < len(c.mapAt) {
				next = e.sector(c.mapAt[i+k+1])
			}
			c.freeMap.Marshal(buf[k*int(e.blockSize):(k+1)*int(e.blockSize)], i+k, next)
		}
		if _, err := e.dev.WriteAt(buf, c.mapAt[i]*e.blockSize); err != nil {
			return fmt.Errorf("writing the map of free space: %w", err)
		}
		i += n
	}
	return nil
}

// enterCheckpoint changes the state, after block 0 was taken or, if unsettled is
// set, is in an unknown state.
func (e *Engine) enterCheckpoint(c *newCheckpoint, unsettled bool) {
	e.startLog(c.block, unsettled)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.setAllLocked(c.places, Backup)
	e.mu.types.Replace(writtenToUnchanged)
	e.enterCheckpointLocked(c.block)
}

// startLog makes b the log block in force.
func (e *Engine) startLog(b *bowlog.Block, unsettled bool) {
	e.log.block, e.log.skip = b, 0
	e.log.unsettled.Store(unsettled)
	e.log.rollback.Store(b.Ext.RollbackRequested)
	e.log.sequence.Store(b.Sequence)
	e.log.batches.Store(0)
	e.outOfSpace.Store(0)
}

// enterCheckpointLocked makes block 0, its live content and the shadows what the
// log block b says, and changes the state.
func (e *Engine) enterCheckpointLocked(b *bowlog.Block) {
	block := func(sector uint64) int64 { return int64(sector) / (e.blockSize / blockdev.SectorSize) }
	e.mu.sector0 = block(b.Sector0)
	e.mu.types.Set(0, 1, Sector0)
	e.mu.types.Set(e.mu.sector0, e.mu.sector0+1, Sector0Current)
	for i, s := range b.Ext.Shadows {
		e.mu.shadows[i] = block(s)
		e.mu.types.Set(e.mu.shadows[i], e.mu.shadows[i]+1, Backup)
	}
	e.mu.scanning = false
	e.mu.opened, e.mu.id, e.mu.moved = b.Ext.Opened, b.Ext.Checkpoint, 0
	e.mu.policy = b.Ext.CommitWhenFull
	e.mu.room = e.availableLocked()
	e.setStateLocked(Checkpoint)
}

// Commit ends the checkpoint and keeps the current content. It fails with
// ErrState if none is open, or if a rollback was asked for. If I/O fails, the
// checkpoint stays open and Commit can be called again; but a crash may then end
// in the commit.
//
// What is known to be free stays known, so that the next checkpoint has at least
// that, with or without a file system to ask.
func (e *Engine) Commit() error {
	e.transition.Lock()
	defer e.transition.Unlock()
	switch {
	case e.state != Checkpoint:
		return fmt.Errorf("committing in state %s: %w", e.state, ErrState)
	case e.log.rollback.Load():
		return fmt.Errorf("committing a checkpoint that is to be rolled back: %w", ErrState)
	}
	return e.commit(Asked)
}

// commitWhenFull ends the checkpoint if that is what is to be done when there is
// no space for backups. It tells whether a write that failed for that reason is to
// be tried again.
func (e *Engine) commitWhenFull() (again bool, err error) {
	e.transition.Lock()
	defer e.transition.Unlock()
	switch {
	case e.state != Checkpoint:
		return true, nil // another write was faster
	case !e.log.block.Ext.CommitWhenFull || e.log.rollback.Load():
		return false, nil
	}
	return true, e.commit(OutOfSpace)
}

// commit is Commit. The caller holds transition.
func (e *Engine) commit(reason EndReason) error {
	// Block 0 may have been written and not flushed. That an earlier flush failed
	// is for the user to hear, who asks for one himself.
	failures := e.dev.failures.Load()
	if err := e.flush(failures); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if err := bowlog.GiveBack(e.dev, e.log.block, e.log.block.Sector0); err != nil {
		// Block 0 may already say that this was a commit.
		e.writeFailed(failures)
		e.log.unsettled.Store(true)
		return fmt.Errorf("committing: %w", errors.Join(err, e.log.resettle()))
	}
	e.log.block = nil
	e.log.unsettled.Store(false)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.Replace(func(t Type) Type {
		switch t {
		case Free, Spare, Backup, Sector0Current:
			return Free
		}
		return Unchanged
	})
	e.mu.sector0, e.mu.shadows = 0, [2]int64{}
	e.mu.ended = Ended{ID: e.mu.id, Reason: reason, At: time.Now()}
	e.setStateLocked(Committed)
	return nil
}

// RequestRollback notes on the device that the checkpoint is to be rolled back:
// when it returns nil, the log says so durably, and from then on Open refuses the
// device until it was restored. The engine itself goes on as before, but for
// Commit. There is no way back; asking again is no error. It fails with ErrState
// if no checkpoint is open. If I/O fails, the device may say so or not, and a
// later write of the log makes it say so.
func (e *Engine) RequestRollback() error {
	e.transition.RLock()
	defer e.transition.RUnlock()
	if e.state != Checkpoint {
		return fmt.Errorf("asking for a rollback in state %s: %w", e.state, ErrState)
	}
	if e.log.rollback.Load() && !e.log.unsettled.Load() {
		return nil
	}
	if _, err := e.log.append(&logRequest{rollback: true, failures: e.dev.failures.Load()}); err != nil {
		return fmt.Errorf("asking for a rollback: %w", err)
	}
	return nil
}

// setStateLocked changes the state; the caller holds transition as well.
func (e *Engine) setStateLocked(s State) {
	e.state = s
	e.mu.shown = s
	e.current.Store(int32(s))
}
