package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/pool"
)

// Delete removes a volume of the pool and all that is remembered of it. It fails
// with ErrInUse while it is staged. An open checkpoint goes with it. A volume that
// does not exist is no error.
func (m *Manager) Delete(ctx context.Context, id string) error {
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	if _, err := m.pool.Get(id); err != nil {
		if errors.Is(err, pool.ErrNotFound) {
			return nil
		}
		return err
	}
	if s.rollback.running() {
		return fmt.Errorf("volume %s: %w", id, ErrRollbackPending)
	}
	v, err := m.attached(ctx, id)
	if err != nil {
		return err
	}
	if v != nil {
		users, err := m.users(v.Device, "") // the staging path counts
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if len(users) > 0 {
			return fmt.Errorf("volume %s: it is mounted at %s: %w", id, users[0].Path, ErrInUse)
		}
		if err := m.detach(ctx, id); err != nil {
			return err
		}
	} else if err := m.clearDead(ctx, place{id: id}); err != nil {
		return err
	}
	if err := m.pool.Delete(ctx, id); err != nil {
		return err
	}
	return m.forgetRecord(id)
}

// Clone makes a volume of the pool with the content that another one has now. A
// source in use is frozen meanwhile, which is short if the pool's file system can
// share blocks; if it cannot, Clone fails with ErrInUse. With a checkpoint open it
// fails with ErrCheckpointOpen.
func (m *Manager) Clone(ctx context.Context, source string, o pool.CreateOptions) (pool.Volume, error) {
	s, err := m.enter(ctx, source)
	if err != nil {
		return pool.Volume{}, err
	}
	defer s.leave()
	p, err := m.locate(Ref{ID: source})
	if err != nil {
		return pool.Volume{}, err
	}
	if p.pool == nil {
		return pool.Volume{}, fmt.Errorf("volume %s: only volumes of the pool can be cloned: %w", source, ErrInvalid)
	}
	m.thaw(source, s)
	if err := m.settle(ctx, s, p); err != nil {
		return pool.Volume{}, err
	}
	v, now, err := m.openOn(ctx, p)
	if err != nil {
		return pool.Volume{}, err
	}
	if now != nil {
		return pool.Volume{}, fmt.Errorf("volume %s: it can be cloned when its checkpoint has ended: %w", source, ErrCheckpointOpen)
	}
	if v == nil {
		return m.pool.Clone(ctx, source, o, m.cloneProgress(source))
	}
	if !m.pool.CanReflink() {
		return pool.Volume{}, fmt.Errorf("volume %s: the pool's file system cannot share blocks, so only volumes that are not in use can be cloned: %w", source, ErrInUse)
	}
	at, err := mountOf(source, v)
	if err != nil {
		return pool.Volume{}, err
	}
	if at == "" {
		return m.pool.Clone(ctx, source, o, m.cloneProgress(source))
	}
	return m.cloneFrozen(ctx, source, at, o)
}

func (m *Manager) cloneFrozen(ctx context.Context, source, mountpoint string, o pool.CreateOptions) (clone pool.Volume, err error) {
	if err := filesystem.Sync(mountpoint); err != nil {
		return clone, fmt.Errorf("volume %s: %w", source, err)
	}
	if _, err := m.updateRecord(source, func(r *record) { r.Frozen = true }); err != nil {
		return clone, err
	}
	defer func() {
		_, forget := m.updateRecord(source, func(r *record) { r.Frozen = false })
		err = errors.Join(err, forget)
	}()
	if err := filesystem.Freeze(mountpoint); err != nil {
		return clone, fmt.Errorf("volume %s: %w", source, err)
	}
	frozen, cancel := context.WithTimeout(ctx, maxFrozen)
	defer cancel()
	clone, err = m.pool.Clone(frozen, source, o, nil)
	return clone, errors.Join(err, filesystem.Thaw(mountpoint))
}

func (m *Manager) cloneProgress(source string) func(done, total int64) {
	last := int64(-1)
	return func(done, total int64) {
		if total == 0 {
			return
		}
		if tenth := done * 10 / total; tenth != last {
			last = tenth
			m.log.Info("cloning", "volume", source, "done", done, "total", total)
		}
	}
}

// Expand makes a volume, its mapping and its file system at least size bytes
// large, while it is in use; a size of 0 takes the backing device as it is. It
// returns the new size. While a checkpoint is open it fails with
// ErrCheckpointOpen: a file system that has grown cannot be rolled back.
func (m *Manager) Expand(ctx context.Context, ref Ref, size int64) (int64, error) {
	s, err := m.enter(ctx, ref.ID)
	if err != nil {
		return 0, err
	}
	defer s.leave()
	m.thaw(ref.ID, s)
	p, err := m.locate(ref)
	if err != nil {
		return 0, err
	}
	v, now, err := m.openOn(ctx, p)
	if err != nil {
		return 0, err
	}
	if now != nil || s.rollback.running() {
		return 0, fmt.Errorf("volume %s: it can grow when its checkpoint has ended: %w", p.id, ErrCheckpointOpen)
	}
	if p.pool != nil && size > p.pool.Size {
		grown, err := m.pool.Grow(ctx, p.id, size)
		if err != nil {
			return 0, err
		}
		p.pool = &grown
	}
	if v == nil {
		if p.pool == nil {
			return 0, fmt.Errorf("volume %s: %w", p.id, ErrNotStaged)
		}
		return p.pool.Size, nil
	}
	if v, err = m.engine.Grow(ctx, &enginepb.GrowRequest{Name: v.Name}); err != nil {
		return 0, fromEngine(p.id, "growing the mapping", err)
	}
	if size > v.Size {
		return 0, fmt.Errorf("volume %s: its device has %d bytes, %d are wanted: %w", p.id, v.Size, size, ErrInvalid)
	}
	at, err := mountOf(p.id, v)
	if err != nil {
		return 0, err
	}
	if at != "" {
		if err := filesystem.Grow(ctx, v.Device, at); err != nil {
			return 0, fmt.Errorf("volume %s: %w", p.id, err)
		}
	}
	m.changed(p.id)
	return v.Size, nil
}

// Usage is how full a volume is: bytes and, for a file system, inodes.
type Usage struct {
	Block                               bool
	Total, Used, Available              int64
	Inodes, InodesUsed, InodesAvailable int64
}

// Stats tells how full the volume at path is, where it was staged or published. It
// fails with ErrNotStaged if nothing of the volume is there.
func (m *Manager) Stats(ctx context.Context, id, path string) (Usage, error) {
	if !filepath.IsAbs(path) {
		return Usage{}, fmt.Errorf("volume %s: path %q is not absolute: %w", id, path, ErrInvalid)
	}
	if _, err := m.locate(Ref{ID: id}); err != nil {
		return Usage{}, err
	}
	v, err := m.ask(ctx, id)
	if err != nil {
		return Usage{}, err
	}
	if v == nil || !isExportOf(v.Device, id) {
		return Usage{}, fmt.Errorf("volume %s: %w", id, ErrNotStaged)
	}
	real, err := realPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return Usage{}, fmt.Errorf("volume %s: nothing of it is at %s: %w", id, path, ErrNotStaged)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("volume %s: %w", id, err)
	}
	_, device, err := filesystem.MountedAt(real)
	if err != nil && !errors.Is(err, filesystem.ErrNotMounted) {
		return Usage{}, fmt.Errorf("volume %s: %w", id, err)
	}
	if err != nil || device != v.Device {
		if sameDevice(real, v.Device) {
			return Usage{Block: true, Total: v.Size}, nil
		}
		return Usage{}, fmt.Errorf("volume %s: nothing of it is at %s: %w", id, path, ErrNotStaged)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(real, &st); err != nil {
		return Usage{}, fmt.Errorf("volume %s: statfs %s: %w", id, path, err)
	}
	unit := st.Bsize
	return Usage{
		Total:           int64(st.Blocks) * unit,
		Used:            int64(st.Blocks-st.Bfree) * unit,
		Available:       int64(st.Bavail) * unit,
		Inodes:          int64(st.Files),
		InodesUsed:      int64(st.Files - st.Ffree),
		InodesAvailable: int64(st.Ffree),
	}, nil
}

// sameDevice tells whether path is a node of the block device.
func sameDevice(path, device string) bool {
	var a, b unix.Stat_t
	return unix.Stat(path, &a) == nil && unix.Stat(device, &b) == nil &&
		a.Mode&unix.S_IFMT == unix.S_IFBLK && a.Rdev == b.Rdev
}
