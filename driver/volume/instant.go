package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// Mapping is what a checkpoint needs of the mapping below a file system.
type Mapping interface {
	StartTrim(ctx context.Context) error
	MarkFree(ctx context.Context, extents []blockdev.Extent) error
	StopTrim(ctx context.Context) error
	Checkpoint(ctx context.Context) error
}

// maxFrozen is how long a file system stays frozen at the most.
const maxFrozen = 10 * time.Second

// CheckpointTimes says how long the parts of a checkpoint took.
type CheckpointTimes struct {
	Trim   time.Duration // finding free space, while the application goes on
	Frozen time.Duration // the file system was frozen
}

// Checkpoint opens a checkpoint on m, whose file system is mounted at
// mountpoint: it finds out what is free while the application goes on, then
// freezes the file system, switches, and thaws it. An empty mountpoint means that
// nothing is mounted; then what was discarded is free.
//
// When it fails, no checkpoint is open and the file system is not frozen, or the
// error says that it is.
func Checkpoint(ctx context.Context, m Mapping, mountpoint string) (t CheckpointTimes, err error) {
	began := time.Now()
	if err := m.StartTrim(ctx); err != nil {
		return t, fmt.Errorf("looking for free space: %w", err)
	}
	defer func() {
		if err != nil {
			// Also if ctx is done.
			err = errors.Join(err, m.StopTrim(context.WithoutCancel(ctx)))
		}
	}()
	if mountpoint == "" {
		return t, m.Checkpoint(ctx)
	}
	if err := FindFree(ctx, m, mountpoint); err != nil {
		return t, err
	}
	// What is dirty now would be written while the file system is frozen.
	if err := filesystem.Sync(mountpoint); err != nil {
		return t, err
	}
	t.Trim = time.Since(began)

	began = time.Now()
	if err := filesystem.Freeze(mountpoint); err != nil {
		return t, err
	}
	// A file system that stays frozen hangs its users, so nothing between
	// freezing and thawing waits for long, and the caller cannot get in here.
	switching, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxFrozen)
	defer cancel()
	err = m.Checkpoint(switching)
	err = errors.Join(err, filesystem.Thaw(mountpoint))
	t.Frozen = time.Since(began)
	return t, err
}

// FindFree reports the free space of the file system at mountpoint to m, once it is
// free on the device as well. File systems that cannot tell are asked to discard it,
// which m sees. It is part of Checkpoint, and to be done when a file system has been
// mounted on a mapping that carries on with a checkpoint: until then, that has only its
// reserve for backups.
func FindFree(ctx context.Context, m Mapping, mountpoint string) error {
	if err := reportFree(ctx, m, mountpoint); err != nil {
		return fmt.Errorf("looking for free space of %s: %w", mountpoint, err)
	}
	return nil
}

func reportFree(ctx context.Context, m Mapping, mountpoint string) error {
	var list []blockdev.Extent
	err := filesystem.FreeSpace(ctx, mountpoint, func(off, length int64) error {
		list = append(list, blockdev.Extent{Offset: off, Length: length})
		return nil
	})
	if errors.Is(err, filesystem.ErrNotSupported) {
		_, err = filesystem.Trim(ctx, mountpoint)
		return err
	}
	if err != nil {
		return err
	}
	// XFS tells of space that it has freed in memory only. If the machine stopped
	// before its log has that, the space would be in use again, and a backup in it.
	// That something cannot be written, for want of space for backups perhaps, does not
	// matter to others.
	if err := filesystem.Sync(mountpoint); err != nil && !freedWhenDurable(mountpoint) {
		return err
	}
	const batch = 4096 // extents in a message
	for part := range slices.Chunk(list, batch) {
		if err := m.MarkFree(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// freedWhenDurable tells whether a file system tells of space that it has freed only when
// its journal has that, as ext4 does.
func freedWhenDurable(mountpoint string) bool {
	var st unix.Statfs_t
	return unix.Statfs(mountpoint, &st) == nil && st.Type == unix.EXT4_SUPER_MAGIC
}
