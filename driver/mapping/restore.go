package mapping

import (
	"context"
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// Restored says what Restore did.
type Restored struct {
	restore.Result
	ID bowlog.ID // of the checkpoint; zero if dm-bow made it
}

// Restore puts the backing device at path, which has no mapping, back to its
// checkpoint and ends that. Errors are those of restore.Restore, and
// blockdev.ErrInUse. progress is called now and then, by one goroutine at a time.
func Restore(ctx context.Context, path string, progress func(restore.Progress)) (Restored, error) {
	r, err := restoreAt(ctx, path, progress)
	if errors.Is(err, restore.ErrBlockSize) {
		// Direct I/O cannot do blocks as small as those of the log.
		r, err = restoreAt(ctx, path, progress, blockdev.Buffered)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func restoreAt(ctx context.Context, path string, progress func(restore.Progress), flags ...blockdev.Flag) (r Restored, err error) {
	dev, err := blockdev.Open(path, append(flags, blockdev.Exclusive)...)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	head, err := bowlog.Load(dev)
	if err != nil {
		return r, fmt.Errorf("restoring: %w", err)
	}
	if head.Ext != nil {
		r.ID = head.Ext.Checkpoint
	}
	copies, err := dev.Cached()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, copies.Close()) }()
	r.Result, err = restore.Restore(ctx, dev, restore.Options{Progress: progress, Copies: copies})
	return r, err
}
