package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// deadPatience is how long passing users of a dead device have to close it.
const deadPatience = time.Second

// clearDead removes what an engine that was killed for good has left of a volume:
// mounts on a device that fails every request, and the device. The engine says
// that it does not have the volume, so nobody serves it, and what could have been
// written through those mounts cannot be any more.
//
// It fails with ErrInUse while pods have the volume, but for the one that it is
// about to be published to. They get errors in any case, but a container that is
// started again in such a pod would find an empty directory of the node in the
// place of the mount, and write there.
func (m *Manager) clearDead(ctx context.Context, p place) error {
	id, name := p.id, mappingName(p.id)
	wait, cancel := context.WithTimeout(ctx, deadPatience)
	defer cancel()
	left, err := fuse.Find(wait, name)
	if err != nil {
		return fmt.Errorf("volume %s: looking for what an engine left: %w", id, err)
	}
	if len(left) == 0 {
		return nil
	}
	r, err := m.loadRecord(id)
	if err != nil {
		return err
	}
	for _, e := range left {
		if e.State != fuse.Dead {
			return fmt.Errorf("volume %s: another process serves it at %s: %w", id, e.Path, ErrInUse)
		}
		users, err := m.users(e.Path, r.StagingPath)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		for _, u := range users {
			if u.Path != p.target {
				return fmt.Errorf("volume %s: its engine has died, and it is still published at %s: %w", id, u.Path, ErrInUse)
			}
		}
		m.log.Warn("removing a device whose engine has died", "volume", id, "device", e.Path)
		mounts, err := filesystem.Mounts(e.Path)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		binds, err := filesystem.Binds(e.Path)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		for _, mnt := range slices.Backward(append(binds, mounts...)) {
			// Whoever has files open there keeps getting errors; nothing can
			// be saved by waiting for them.
			if err := unix.Unmount(mnt.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("volume %s: unmounting what is dead at %s: %w", id, mnt.Path, err)
			}
		}
	}
	wait, cancel = context.WithTimeout(ctx, deadPatience)
	defer cancel()
	err = fuse.Detach(wait, name)
	switch {
	case errors.Is(err, export.ErrNotFound):
		return nil
	case errors.Is(err, export.ErrBusy):
		// It goes by itself when it is closed, and until then it is only a
		// device that fails.
		m.log.Warn("a dead device is still open", "volume", id, "error", err)
		return nil
	}
	return err
}
