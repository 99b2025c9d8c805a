package bow

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/rangemap"
	"golang.org/x/sys/unix"
)

var (
	// ErrNoSpace says that a write needs a backup and there is no free block
	// to put it; nothing was written and the checkpoint is as good as before.
	// It is ENOSPC to whoever looks for an errno.
	ErrNoSpace = fmt.Errorf("no free space left for backups: %w", unix.ENOSPC)

	// ErrState says that an operation does not fit the state of the engine.
	ErrState = errors.New("not possible in this state")

	// ErrCheckpointOpen says that the device has an open checkpoint that the
	// engine cannot carry on with: it is to be restored or rolled forward
	// first.
	ErrCheckpointOpen = errors.New("the device has an open checkpoint")
)

// minBlocks is the smallest device worth an engine: the log, its shadows, block
// 0 twice, and something to keep.
const minBlocks = 16

// Engine is the backup-on-write engine. It is a blockdev.Device.
type Engine struct {
	dev       *flusher
	blockSize int64 // bytes

	// neighbourhoods are the lengths of what may be backed up together, the longest
	// first; see withNeighbours.
	neighbourhoods []int64

	size atomic.Int64 // bytes, whole blocks

	// transition is held for reading by every request that depends on the
	// state or on where block 0 is, for as long as its I/O lasts, and for
	// writing by what changes the state. It guards state.
	transition sync.RWMutex
	state      State
	current    atomic.Int32 // state, for those who must not wait

	log logWriter

	// No I/O happens under mu.
	mu struct {
		sync.Mutex
		types    *typeMap
		locks    rangeLocks
		place    placement
		reserved *sync.Cond // waits for Reserved blocks to become something else
		scanning bool       // since StartTrim: writes make blocks Written

		sector0 int64    // block with the live content of block 0
		room    int64    // blocks that backups could use when the checkpoint was opened, or carried on with
		shadows [2]int64 // blocks with second copies of the log block
		opened  time.Time
		id      bowlog.ID
		policy  bool  // to be committed when there is no space for backups
		ended   Ended // the last checkpoint

		shown State // state, for Stats, which must not wait for I/O
		moved int64 // bytes of backups moved since the checkpoint
	}

	// told is the number of failures of flushes that the user knows of. Those of the
	// log's own flushes are told to the next user who asks for one.
	told atomic.Int64

	outOfSpace atomic.Int64 // requests that failed with ErrNoSpace since the checkpoint
}

// extent is a range of blocks, [start, end).
type extent struct {
	start, end int64
	spare      bool // of reserved blocks: they were Spare and not Free
}

func (x extent) len() int64 { return x.end - x.start }

// Open makes an engine of dev with blocks of blockSize bytes. The engine owns dev
// from then on and closes it; not so if Open fails. It is in state Trim, or in
// Checkpoint if dev has an open checkpoint: then it carries on with that.
//
// blockSize is what the engine announces to its user, so that every request is
// in whole blocks: 512, 1024, 2048 or 4096, not less than that of dev. A tail of
// dev that is not a whole block is left alone.
//
// If a crash interrupted the beginning or the end of a checkpoint, that is
// finished first. With an open checkpoint that it cannot carry on with, Open
// changes nothing and returns ErrCheckpointOpen: one that dm-bow made, one that is
// half-restored or to be rolled back, or one with other blocks. If dev has a log
// that is damaged or of an unknown format, the error wraps that of package bowlog.
func Open(dev blockdev.Device, blockSize int) (*Engine, error) {
	return open(dev, blockSize, nil)
}

// TakeOver is Open for the successor of an engine that died while its user goes
// on. mem is the memory of that (Remember), and the engine goes on with it; nothing
// may have changed on dev in between. Nil means that there is none, and what is
// free is not known. Without an open checkpoint the state is Committed, whatever it
// was.
//
// It carries on with a checkpoint that is to be rolled back as well: that comes
// when the user has let go of the device. And it does so on a device that has become
// larger since the checkpoint, in the size that the user knows.
func TakeOver(dev blockdev.Device, blockSize int, mem []byte) (*Engine, error) {
	old := newMemory(mem)
	e, err := open(dev, blockSize, &old)
	if err == nil {
		if old.flushFailed() {
			e.dev.failures.Add(1)
		}
		e.mu.ended = old.ended()
		e.Remember(mem)
	}
	return e, err
}

// open is Open, or TakeOver with the memory of the predecessor.
func open(dev blockdev.Device, blockSize int, old *memory) (*Engine, error) {
	size := dev.Size() &^ int64(blockSize-1)
	switch {
	case !blockdev.ValidBlockSize(blockSize):
		return nil, fmt.Errorf("block size %d is not 512, 1024, 2048 or 4096", blockSize)
	case blockSize < dev.BlockSize():
		return nil, fmt.Errorf("block size %d is smaller than that of the device, %d", blockSize, dev.BlockSize())
	case size < int64(minBlocks*blockSize):
		return nil, fmt.Errorf("device of %d bytes is smaller than %d blocks of %d bytes", dev.Size(), minBlocks, blockSize)
	}
	// Another process may have died in front of a flush, and what it has written is
	// in a cache: what is read here must not be gone after a power cut.
	if err := dev.Flush(); err != nil {
		return nil, fmt.Errorf("flushing what was written before: %w", err)
	}
	if _, err := bowlog.Recover(dev); err != nil {
		return nil, fmt.Errorf("looking for a log: %w", err)
	}
	log, err := bowlog.Load(dev)
	if err != nil && !errors.Is(err, bowlog.ErrNoLog) {
		return nil, fmt.Errorf("looking for a log: %w", err)
	}
	if log != nil && log.BlockSize == blockSize {
		if log, err = bowlog.Prove(dev, log); err != nil {
			return nil, fmt.Errorf("looking for the copies of a log: %w", err)
		}
	}
	if log != nil && log.Ext != nil && old != nil {
		// The device may have been made larger and its user not told yet, see Grow.
		if was := log.Ext.DeviceSize &^ int64(blockSize-1); was >= int64(minBlocks*blockSize) {
			size = min(size, was)
		}
	}
	e := &Engine{blockSize: int64(blockSize), neighbourhoods: neighbourhoods[:]}
	e.dev = newFlusher(dev, e.rememberFailure)
	e.size.Store(size)
	e.mu.types = &typeMap{Map: rangemap.New(size/e.blockSize, Unchanged)}
	e.mu.reserved = sync.NewCond(&e.mu)
	e.resetPlacementLocked()
	e.log.engine = e
	if log != nil {
		if err := e.resume(log, old); err != nil {
			return nil, fmt.Errorf("carrying on with a checkpoint: %w", err)
		}
	} else if old != nil {
		e.recall(old)
	}
	return e, nil
}

// Size implements blockdev.Device.
func (e *Engine) Size() int64 { return e.size.Load() }

// BlockSize implements blockdev.Device: the block size given to Open.
func (e *Engine) BlockSize() int { return int(e.blockSize) }

// Close closes the device below. An open checkpoint stays on it.
func (e *Engine) Close() error { return e.dev.Close() }

// Grow takes note that the device below has become larger; what is new is not
// free. It fails with ErrState while a checkpoint is open: a file system that
// has grown cannot be put back to its old size by putting back blocks.
func (e *Engine) Grow() error {
	e.transition.Lock()
	defer e.transition.Unlock()
	if e.state == Checkpoint {
		return fmt.Errorf("growing with a checkpoint open: %w", ErrState)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	blocks := e.dev.Size() / e.blockSize
	if blocks < e.mu.types.Size() {
		return fmt.Errorf("device has shrunk from %d to %d bytes", e.mu.types.Size()*e.blockSize, e.dev.Size())
	}
	e.mu.types.Resize(blocks, Unchanged)
	e.resetPlacementLocked()
	e.size.Store(blocks * e.blockSize)
	return nil
}

// errLostFlush is what a user gets whose writes may be lost because a flush failed
// that somebody else had asked for.
var errLostFlush = errors.New("an earlier flush failed: what was written before it may be lost")

// flush flushes the device below for the engine itself. It fails as well if any
// other flush has failed since the number of failures was that given.
func (e *Engine) flush(failures int64) error {
	if err := e.dev.Flush(); err != nil {
		return err
	}
	return e.noFailureSince(failures)
}

// writeFailed notes that the log or block 0 could not be written, or not flushed, since
// the number of failures was that given. It counts as a flush that failed.
func (e *Engine) writeFailed(failures int64) {
	if !e.dev.failedSince(failures) {
		e.dev.failures.Add(1)
		e.rememberFailure()
	}
}

func (e *Engine) noFailureSince(failures int64) error {
	if e.dev.failedSince(failures) {
		return errLostFlush
	}
	return nil
}

// sector is the address of a block in the log.
func (e *Engine) sector(block int64) uint64 {
	return uint64(block * (e.blockSize / blockdev.SectorSize))
}
