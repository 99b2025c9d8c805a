package bow

import (
	"context"
	"crypto/rand"
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
// count, and of these only what has not been written since StartTrim. It fails
// with ErrState without StartTrim.
func (e *Engine) MarkFree(off, length int64) error {
	if err := blockdev.CheckRange(off, length, e.dev.Size(), 1); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mu.scanning {
		return fmt.Errorf("free space reported without asking for it: %w", ErrState)
	}
	start := max((off+e.blockSize-1)/e.blockSize, 1)
	end := min((off+length)/e.blockSize, e.mu.types.Size())
	e.setAllLocked(e.extentsLocked(start, end, Unchanged), Free)
	return nil
}

// Checkpoint opens a checkpoint: from now on the content of this instant can be
// had back. The file system should be frozen. It fails with ErrState if the
// engine is not in Trim and with ErrNoSpace if hardly anything is free. ctx is
// obeyed until the requests under way have ended; from then on writes wait, and
// what is written after that instant is not in the checkpoint.
//
// If I/O fails, the engine is as before; but if not even block 0 can be put
// back, it is in Checkpoint, where block 0 is served from its copy, and Commit
// tries again to put it back.
func (e *Engine) Checkpoint(ctx context.Context) error {
	e.transition.Lock()
	defer e.transition.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	if e.state != Trim {
		return fmt.Errorf("opening a checkpoint in state %s: %w", e.state, ErrState)
	}
	places, err := e.reserveMetadata()
	if err != nil {
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	current, original, shadows := places[0], places[1], places[2:]

	b := &bowlog.Block{
		BlockSize: int(e.blockSize),
		Sector0:   e.sector(current),
		Ext: &bowlog.Extension{
			Shadows:    [2]uint64{e.sector(shadows[0]), e.sector(shadows[1])},
			Opened:     time.Now(),
			Generation: 1,
			DeviceSize: e.dev.Size(),
		},
	}
	rand.Read(b.Ext.Checkpoint[:])
	if err := e.takeBlock0(b, current, original); err != nil {
		return fmt.Errorf("opening a checkpoint: %w", err)
	}
	return nil
}

// reserveMetadata reserves the four blocks that a checkpoint needs from the
// beginning.
func (e *Engine) reserveMetadata() ([4]int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var places [4]int64
	e.resetPlacementLocked()
	if e.mu.types.Total(Free.Class()) < int64(len(places)) {
		return places, ErrNoSpace
	}
	for i := range places {
		x, _ := e.takeLocked(1)
		places[i] = x.start
	}
	return places, nil
}

// takeBlock0 copies block 0 to current and original, puts the log b in its place,
// and enters Checkpoint.
func (e *Engine) takeBlock0(b *bowlog.Block, current, original int64) error {
	giveUp := func(err error) error {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.setAllLocked(e.extentsLocked(0, e.mu.types.Size(), Reserved), Free)
		return err
	}
	buf := blockdev.Buffer(b.BlockSize)
	if _, err := e.dev.ReadAt(buf, 0); err != nil {
		return giveUp(fmt.Errorf("reading block 0: %w", err))
	}
	b.Entries = []bowlog.Entry{{
		Dest:     e.sector(original),
		Size:     uint32(b.BlockSize),
		Checksum: bowlog.Checksum(0, buf),
	}}
	for _, at := range []int64{current, original} {
		if _, err := e.dev.WriteAt(buf, at*e.blockSize); err != nil {
			return giveUp(fmt.Errorf("copying block 0: %w", err))
		}
	}
	if err := writeShadow(e.dev, b); err != nil {
		return giveUp(err)
	}
	if err := e.dev.Flush(); err != nil {
		return giveUp(fmt.Errorf("flushing the copies of block 0: %w", err))
	}
	err := bowlog.Take(e.dev, b)
	if err != nil {
		if bowlog.GiveBack(e.dev, b, b.Sector0) == nil {
			return giveUp(err)
		}
	}

	e.log.block = b
	e.log.unsettled.Store(err != nil)
	e.log.sequence.Store(0)
	e.log.batches.Store(0)
	e.outOfSpace.Store(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.Replace(func(t Type) Type {
		switch t {
		case Written:
			return Unchanged
		case Reserved:
			return Backup
		}
		return t
	})
	e.mu.types.Set(0, 1, Sector0)
	e.mu.types.Set(current, current+1, Sector0Current)
	e.mu.sector0 = current
	for i, s := range b.Ext.Shadows {
		e.mu.shadows[i] = int64(s) / (e.blockSize / blockdev.SectorSize)
	}
	e.mu.scanning = false
	e.mu.opened, e.mu.id, e.mu.moved = b.Ext.Opened, b.Ext.Checkpoint, 0
	e.setStateLocked(Checkpoint)
	return err
}

// Commit ends the checkpoint and keeps the current content. It fails with
// ErrState if none is open. If I/O fails, the checkpoint stays open and Commit
// can be called again; but a crash may then end in the commit.
//
// What is known to be free stays known, so that the next checkpoint has at least
// that, with or without a file system to ask.
func (e *Engine) Commit() error {
	e.transition.Lock()
	defer e.transition.Unlock()
	if e.state != Checkpoint {
		return fmt.Errorf("committing in state %s: %w", e.state, ErrState)
	}
	// Block 0 may have been written and not flushed.
	if err := e.dev.Flush(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if err := bowlog.GiveBack(e.dev, e.log.block, e.log.block.Sector0); err != nil {
		e.log.unsettled.Store(true)
		return fmt.Errorf("committing: %w", err)
	}
	e.log.block = nil
	e.log.unsettled.Store(false)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.Replace(func(t Type) Type {
		switch t {
		case Free, Backup, Sector0Current:
			return Free
		}
		return Unchanged
	})
	e.mu.sector0, e.mu.shadows = 0, [2]int64{}
	e.setStateLocked(Committed)
	return nil
}

// setStateLocked changes the state; the caller holds transition as well.
func (e *Engine) setStateLocked(s State) {
	e.state = s
	e.mu.shown = s
}
