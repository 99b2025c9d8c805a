package bow

import (
	"time"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// EndReason says why a checkpoint ended.
type EndReason int

const (
	Asked      EndReason = iota // Commit
	OutOfSpace                  // CheckpointOptions.CommitWhenFull
)

// Ended is a checkpoint that was committed.
type Ended struct {
	ID     bowlog.ID
	Reason EndReason
	At     time.Time
}

// Stats is what an engine tells of itself. Sizes are in bytes.
type Stats struct {
	State     State
	Size      int64
	BlockSize int

	// Free is what backups can use; in Trim and Committed, what is known to
	// be free so far.
	Free int64

	// Ended is the last checkpoint that this engine committed, or the process
	// before it for want of space; its ID is zero if there was none.
	Ended Ended

	// The rest is about the open checkpoint, and zero without one.

	ID     bowlog.ID // name of the checkpoint
	Opened time.Time // instant of the checkpoint

	RollbackRequested bool // see RequestRollback
	CommitWhenFull    bool // see CheckpointOptions

	BackedUp   int64 // old content that is kept: what a rollback puts back
	Changed    int64 // written since the checkpoint, or backed up with a neighbour that was; used and free blocks
	BackupUsed int64 // formerly free space that holds copies, old log blocks and shadows
	Moved      int64 // backups that had to move because the file system wanted their place
	Stale      int64 // formerly free, and nobody knows whether it was written before the checkpoint was resumed

	LogSequence uint32 // log blocks that became full
	LogWrites   int64  // batches of log entries written
	OutOfSpace  int64  // requests that failed with ErrNoSpace
	Unsettled   bool   // the last write of the log failed; the next one tries again
}

// Stats returns what is so now. It waits for no I/O.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	total := func(t Type) int64 { return e.mu.types.Total(t.Class()) * e.blockSize }
	s := Stats{
		State:     e.mu.shown,
		Size:      e.Size(),
		BlockSize: int(e.blockSize),
		Free:      total(Free) + total(Spare),
		Ended:     e.mu.ended,
	}
	if s.State != Checkpoint {
		return s
	}
	s.ID, s.Opened = e.mu.id, e.mu.opened
	s.RollbackRequested, s.CommitWhenFull = e.log.rollback.Load(), e.mu.policy
	s.BackedUp = total(Changed)
	s.Changed = total(Changed) + total(Written)
	s.BackupUsed = total(Backup) + total(Sector0Current)
	s.Moved, s.Stale = e.mu.moved, total(Stale)
	s.LogSequence = e.log.sequence.Load()
	s.LogWrites = e.log.batches.Load()
	s.OutOfSpace = e.outOfSpace.Load()
	s.Unsettled = e.log.unsettled.Load()
	return s
}

// State returns the state of the engine. It waits for nothing.
func (e *Engine) State() State { return State(e.current.Load()) }
