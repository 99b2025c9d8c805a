// Package restore gives a device the content back that it had when its
// checkpoint was opened. It needs nothing but the device: the log in block 0
// (package bowlog) says where everything is. It restores what Bowline's engine
// left, what the kernel's dm-bow left, and what Android's restore tool left
// half-done.
//
// # Why any order is right
//
// Copies are only ever put into blocks that were free at the checkpoint, and
// only blocks that were in use at the checkpoint are put back. So, once the
// moves of copies are resolved in memory, restoring is one copy for each block,
// and none of them destroys what another one, or the log, needs: they run in
// parallel, in the order of the device, and after an interruption all of it is
// simply done again. Block 0, which holds the log, is given back last, by
// bowlog.GiveBack, whose own interruption the log tells of.
//
// Before the first write, all of the log and every copy are read and checked. A
// checkpoint that fails that is left as it is; what to do then is for a person
// to decide, see RollForward.
package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

var (
	// ErrBlockSize says that the blocks of the log are smaller than the unit
	// of I/O of the device. Nothing is wrong with either; the device must be
	// opened in another way.
	ErrBlockSize = errors.New("log blocks are smaller than the device can write")

	// ErrDamaged says that a copy cannot be read or is not what was copied.
	// The checkpoint cannot be restored as a whole. Nothing has been written.
	ErrDamaged = errors.New("damaged copy")

	// ErrHalfRestored says that a device is neither in its current state nor
	// in that of the checkpoint, so that only restoring it makes sense.
	ErrHalfRestored = errors.New("device is half-restored")
)

// Options say how Restore goes about it.
type Options struct {
	// DryRun does everything up to the first write, and no write.
	DryRun bool

	// Progress is called now and then, by one goroutine at a time. May be nil.
	Progress func(Progress)

	// Copies is the device once more, for reading the copies. They are read
	// twice, to be verified and to be put back; if Copies is cached, as
	// blockdev.File.Cached, from the disk only once, as far as the cache reaches.
	// Nil means the device itself.
	Copies blockdev.Device
}

// Result says what Restore did, or would have done.
type Result struct {
	// Phase is PhaseOpen if there was a checkpoint to restore. Otherwise a
	// crash had interrupted its opening (the checkpoint never was) or its end
	// (committed or restored, all but for block 0), and all that was left to
	// do was to put block 0 right.
	Phase bowlog.Phase

	HalfRestored bool // an earlier restore, or Android's tool, had begun and not finished
	LogBlocks    int
	Entries      int
	Verified     int64 // bytes of copies read and checked
	PutBack      int64 // bytes that got their old content back, block 0 included
}

// Restore gives dev the content of its checkpoint back and ends the checkpoint.
// Nothing else may use dev in the meantime.
//
// It may be interrupted at any point, by ctx or by a crash, and called again.
// After an error the checkpoint is there as before, unless the error says
// otherwise. Errors wrap bowlog.ErrNoLog if there is no checkpoint,
// bowlog.ErrUnsupported, bowlog.ErrTorn, bowlog.ErrCorrupt, ErrDamaged,
// ErrBlockSize or the error of ctx, or are I/O errors.
func Restore(ctx context.Context, dev blockdev.Device, opts Options) (Result, error) {
	if !opts.DryRun {
		// What a process that died had not flushed may be in a cache only.
		if err := dev.Flush(); err != nil {
			return Result{}, fmt.Errorf("restoring: flushing what was written before: %w", err)
		}
	}
	head, err := load(dev)
	if err != nil {
		return Result{}, fmt.Errorf("restoring: %w", err)
	}
	if phase := phaseOf(head); phase != bowlog.PhaseOpen {
		r := Result{Phase: phase, PutBack: int64(head.BlockSize)}
		return r, finish(dev, opts.DryRun)
	}
	if head, err = bowlog.Prove(dev, head); err != nil {
		return Result{}, fmt.Errorf("restoring: %w", err)
	}
	p, err := makePlan(ctx, dev, head)
	if err != nil {
		return Result{}, fmt.Errorf("restoring: %w", err)
	}
	if p.from = opts.Copies; p.from == nil {
		p.from = dev
	}
	r := Result{
		HalfRestored: head.Partial,
		LogBlocks:    p.logBlocks,
		Entries:      p.entries,
		Verified:     p.checkBytes,
		PutBack:      p.copyBytes + int64(head.BlockSize),
	}
	if err := p.verify(ctx, opts.Progress); err != nil {
		return Result{}, fmt.Errorf("restoring: nothing has been written: %w", err)
	}
	if opts.DryRun {
		return r, nil
	}
	if err := bowlog.MarkHalfRestored(dev, head); err != nil {
		return Result{}, fmt.Errorf("restoring: nothing has been put back: %w", err)
	}
	if err := p.putBack(ctx, opts.Progress); err != nil {
		return Result{}, fmt.Errorf("restoring: not finished, but the checkpoint is whole; restore again: %w", err)
	}
	if err := bowlog.GiveBack(dev, head, p.original); err != nil {
		return Result{}, fmt.Errorf("restoring: all is done but for block 0; restore again: %w", err)
	}
	return r, nil
}

// Verify finds out whether the checkpoint of dev can be restored: it reads all
// of the log and every copy. It writes nothing. Errors are those of Restore.
func Verify(ctx context.Context, dev blockdev.Device, progress func(Progress)) error {
	_, err := Restore(ctx, dev, Options{DryRun: true, Progress: progress})
	return err
}

// RollForward ends the checkpoint of dev and keeps the current content: block 0
// becomes what its user wrote last. This is for a checkpoint that is damaged or
// not wanted any more; it cannot be undone. It needs no more than the log block
// in force, so it works when everything else of the log is lost.
//
// It refuses with ErrHalfRestored a device whose current content is lost
// already. If opening or ending the checkpoint was interrupted, it finishes
// that, as Restore does. Other errors are those of Restore.
func RollForward(ctx context.Context, dev blockdev.Device) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("rolling forward: %w", err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("rolling forward: flushing what was written before: %w", err)
	}
	head, err := load(dev)
	if err != nil {
		return fmt.Errorf("rolling forward: %w", err)
	}
	if phaseOf(head) != bowlog.PhaseOpen {
		return finish(dev, false)
	}
	if head.Partial {
		return fmt.Errorf("rolling forward: %w: part of the current content is overwritten; restore it", ErrHalfRestored)
	}
	if err := bowlog.GiveBack(dev, head, head.Sector0); err != nil {
		return fmt.Errorf("rolling forward: %w", err)
	}
	return nil
}

// load reads the log block in force and makes sure that dev can do I/O in its
// blocks.
func load(dev blockdev.Device) (*bowlog.Block, error) {
	head, err := bowlog.Load(dev)
	if err != nil {
		return nil, err
	}
	if head.BlockSize < dev.BlockSize() {
		return nil, fmt.Errorf("%w: log blocks have %d bytes, the device was opened for multiples of %d; open it buffered, without direct I/O",
			ErrBlockSize, head.BlockSize, dev.BlockSize())
	}
	return head, nil
}

func phaseOf(b *bowlog.Block) bowlog.Phase {
	if b.Ext == nil {
		return bowlog.PhaseOpen
	}
	return b.Ext.Phase
}

// finish puts block 0 right after opening or ending a checkpoint was
// interrupted.
func finish(dev blockdev.Device, dryRun bool) error {
	if dryRun {
		return nil
	}
	if _, err := bowlog.Recover(dev); err != nil {
		return fmt.Errorf("putting block 0 right after an interruption: %w", err)
	}
	return nil
}
