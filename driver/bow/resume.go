package bow

import (
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// resume makes a new engine one in state Checkpoint, with the checkpoint whose log
// block in force, as proven, is head.
//
// Everything follows from the device. What the log names as a source and was in
// use has a backup; what holds a copy now is a Backup; what else was in use has
// not been written, because the log comes before the overwrite. Of what was free
// (the free map) some may have been written, nobody knows which, except for the
// reserve: nobody but the log writes there. So the reserve can take backups at
// once, and the rest when the file system says that it is free (MarkFree).
//
// When only the process of another engine died, old is its memory, which tells that
// as well.
func (e *Engine) resume(head *bowlog.Block, old *memory) error {
	switch {
	case head.Ext == nil:
		return fmt.Errorf("%w, which dm-bow made; restore it or roll it forward", ErrCheckpointOpen)
	case head.Partial:
		return fmt.Errorf("%w, which is half-restored; restore it", ErrCheckpointOpen)
	case head.Ext.RollbackRequested && old == nil:
		return fmt.Errorf("%w, which is to be rolled back; restore it", ErrCheckpointOpen)
	case head.BlockSize != int(e.blockSize):
		return fmt.Errorf("%w with blocks of %d bytes, not %d", ErrCheckpointOpen, head.BlockSize, e.blockSize)
	case head.Ext.DeviceSize/e.blockSize != e.mu.types.Size():
		return fmt.Errorf("%w of a device of %d bytes, which has %d now; restore it or roll it forward", ErrCheckpointOpen, head.Ext.DeviceSize, e.dev.Size())
	}
	live, shadows := head.Sector0, head.Ext.Shadows
	if shadows[0] == 0 || shadows[1] == 0 || shadows[0] == shadows[1] || shadows[0] == live || shadows[1] == live {
		return fmt.Errorf("%w, with two uses for a block: shadows at sectors %d and %d, block 0 at %d: %w", ErrCheckpointOpen, shadows[0], shadows[1], live, bowlog.ErrCorrupt)
	}
	// Nobody else knows the engine yet.
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.readLogLocked(head, old); err != nil {
		return fmt.Errorf("%s of %s: %w", head.Ext.Checkpoint, head.Ext.Opened.Format(time.RFC3339), err)
	}
	head, err := bowlog.Settle(e.dev.Device, head) // mu is held
	if err != nil {
		return err
	}
	e.enterCheckpointLocked(head)
	e.startLog(head, false)
	return nil
}

// recall makes a new engine of a device without a checkpoint one in Committed that
// knows what its predecessor knew to be free.
func (e *Engine) recall(old *memory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	types := e.mu.types
	types.recall(*old, 1, types.Size())
	types.Replace(func(t Type) Type {
		if t == Free {
			return Free
		}
		return Unchanged
	})
	e.setStateLocked(Committed)
}

// readLogLocked gives the blocks their types.
func (e *Engine) readLogLocked(head *bowlog.Block, old *memory) error {
	types, perBlock := e.mu.types, uint64(e.blockSize/blockdev.SectorSize)
	var held []extent
	chain, err := bowlog.Walk(e.dev, head, func(s bowlog.Step) error {
		for _, p := range s.Pieces {
			start := int64(p.Sector / perBlock)
			held = append(held, extent{start: start, end: start + p.Size/e.blockSize})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for c := range chain.PutBack() {
		start := int64(c.To / perBlock)
		types.Set(start, start+c.Size/e.blockSize, Changed)
	}
	// After that: a block of the free map that had to move looks like one that
	// was in use.
	err = bowlog.ReadFreeMap(e.dev, chain,
		func(sector uint64) {
			start := int64(sector / perBlock)
			held = append(held, extent{start: start, end: start + 1})
		},
		func(start, end int64) {
			if old != nil && old.free.size() > 0 {
				types.recall(*old, start, end)
				return
			}
			types.Set(start, end, Stale)
		})
	if err != nil {
		return err
	}
	for _, r := range head.Ext.Reserve {
		if r.Sectors == 0 {
			continue // wherever it begins
		}
		start := int64(r.Start / perBlock)
		types.Set(start, start+int64(r.Sectors/perBlock), Spare)
	}
	e.setAllLocked(held, Backup)
	for _, s := range head.Ext.Shadows {
		if t := types.Get(int64(s / perBlock)).Value; t != Stale && t != Spare && t != Free && t != Written {
			return fmt.Errorf("%w: shadow at sector %d, which is %s", bowlog.ErrCorrupt, s, t)
		}
	}
	return nil
}
