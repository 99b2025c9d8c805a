package node

import (
	"context"
	"errors"
	"time"
)

// Volumes is what the reconciler needs of the volumes of its node. A volume is
// named by its CSI volume handle; id is the UID of a VolumeCheckpoint, which is
// kept on the volume, so that the volume itself tells whose checkpoint it has.
//
// All methods are idempotent and safe for concurrent use. Their errors wrap one
// of the sentinels of this package where it says more than that something went
// wrong.
type Volumes interface {
	// Facts returns how the volume stands. The error wraps ErrNotFound if the node
	// has no such volume, ErrMissing if it knows the volume but not where its device
	// is, and ErrDamaged if what is on it cannot be made out.
	Facts(ctx context.Context, volume string) (Facts, error)
	// Checkpoint opens a checkpoint on a volume in use.
	Checkpoint(ctx context.Context, volume, id string, o Options) error
	// Prepare finds out what is free on a volume in use, so that a Freeze that
	// follows takes no longer than it has to.
	Prepare(ctx context.Context, volume, id string) error
	// Freeze gets the volume ready for a checkpoint and freezes its file system.
	// It thaws by itself when hold has passed.
	Freeze(ctx context.Context, volume, id string, hold time.Duration) error
	// CheckpointFrozen opens a checkpoint on a volume that Freeze has frozen, and
	// thaws it. The error wraps ErrNotFrozen if it has thawed before.
	CheckpointFrozen(ctx context.Context, volume, id string, o Options) error
	// Thaw undoes Freeze. A volume that is not frozen is fine.
	Thaw(ctx context.Context, volume string) error
	// Commit ends the checkpoint and keeps the content of now.
	Commit(ctx context.Context, volume, id string) error
	// Rollback marks on the volume that the content of the checkpoint is to come
	// back, and returns at once. It happens as soon as nobody uses the volume, and
	// from the mark on without anybody's help.
	Rollback(ctx context.Context, volume, id string) error
	// Watch has changed called with a volume whenever its facts may have changed,
	// for as long as the process lives. changed returns quickly.
	Watch(changed func(volume string))
}

// Options are how a checkpoint behaves while it is open.
type Options struct {
	// CommitWhenFull drops the checkpoint when there is no space for backups;
	// otherwise writes fail then.
	CommitWhenFull bool
}

// What stands in the way of something asked of a volume. Whether that passes by
// itself is for the caller to say: see failure.
var (
	ErrNotFound        = errors.New("no such volume on this node")
	ErrMissing         = errors.New("the device of the volume is not there") // or not yet
	ErrNotStaged       = errors.New("the volume is not in use")
	ErrNotFrozen       = errors.New("the file system is not frozen")
	ErrBusy            = errors.New("another operation on the volume runs")
	ErrCheckpointOpen  = errors.New("another checkpoint is open")
	ErrRollbackPending = errors.New("a rollback is to be done first")
	ErrNoSpace         = errors.New("no free space for backups")
	ErrDamaged         = errors.New("the checkpoint on the volume is damaged")
	ErrEngineDown      = errors.New("the engine does not answer")
)

// Facts is how a volume stands on its node.
type Facts struct {
	// Staged tells that the volume is in use on the node, or ready to be.
	Staged bool
	// Publishers are the target paths at which pods have the volume.
	Publishers []string
	// Open is the checkpoint on the volume, nil if there is none.
	Open *Checkpoint
	// Last is how the checkpoint before ended, nil if that is not known.
	Last *Ended
	// Rollback is how far a rollback has come, nil if none is asked for.
	Rollback *Rollback
	// DeviceError is what an operation of the volume's backing device failed with
	// lately, "" if none has. That of a volume that is not in use is not known.
	DeviceError string
}

// Checkpoint is a checkpoint that has not ended. Sizes are in bytes.
type Checkpoint struct {
	ID     string // "" if it was not opened for a VolumeCheckpoint
	State  State
	Opened time.Time     // zero if not known
	Frozen time.Duration // how long opening it kept the file system frozen, 0 if not known

	// Measured tells that the sizes are known, and how the device does: those of a
	// volume that is not in use are not.
	Measured bool
	Free     int64 // space that is left for backups
	BackedUp int64 // old content kept
	Changed  int64 // written since the checkpoint
	Moved    int64 // number of backups that had to move again

	OutOfSpace bool // a write has failed because there was no space for its backup
}

// State is how a checkpoint on a volume stands.
type State string

const (
	Open              State = "Open"
	RollbackRequested State = "RollbackRequested" // waiting for the last user to go
	RollingBack       State = "RollingBack"
)

// Ended is how a checkpoint ended.
type Ended struct {
	ID      string
	Outcome Outcome
	Reason  string // for people, "" if it was asked for
	At      time.Time
}

// Outcome is what became of a checkpoint.
type Outcome string

const (
	Committed  Outcome = "Committed"
	RolledBack Outcome = "RolledBack"
	OutOfSpace Outcome = "OutOfSpace" // committed by the engine, which had no space left
	Lost       Outcome = "Lost"       // it is not there any more, and nobody ended it
)

// Rollback is how far a rollback has come. Sizes are in bytes.
type Rollback struct {
	WaitingFor  []string // target paths of the pods that use the volume still
	Done, Total int64    // 0 of 0 before it starts
	Err         error    // why it does not go on, nil if it does
}
