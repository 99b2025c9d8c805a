package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// poolBlockSize is the logical block size in bytes of the mappings of the pool's
// volumes. It is the same for the life of a volume, because partition tables
// depend on it, and the size in which file systems write.
const poolBlockSize = 4096

// StageOptions say how a volume is to be staged.
type StageOptions struct {
	Ref

	// StagingPath is the directory to mount the file system at. It is made if
	// only its last part is missing.
	StagingPath string

	// Block asks for the bare block device; nothing is mounted.
	Block bool

	// FSType is filesystem.Ext4 or filesystem.XFS; empty means what is there
	// already, or ext4 for a volume that was never used.
	FSType string

	MountOptions []string

	// IOUring asks for requests to be brought over io_uring, with fewer system
	// calls for each. Users of the volume get I/O errors then when the engine dies
	// (Status.SurvivesRestart). Where it cannot be had the volume does without.
	IOUring bool
}

func (o StageOptions) check() error {
	if !filepath.IsAbs(o.StagingPath) {
		return fmt.Errorf("volume %s: staging path %q is not absolute: %w", o.ID, o.StagingPath, ErrInvalid)
	}
	if o.FSType != "" && o.FSType != filesystem.Ext4 && o.FSType != filesystem.XFS {
		return fmt.Errorf("volume %s: file system %q: there are %s and %s: %w", o.ID, o.FSType, filesystem.Ext4, filesystem.XFS, ErrInvalid)
	}
	return nil
}

// Stage attaches a volume and mounts its file system, which it makes if the volume
// was never used. An open checkpoint is carried on with; a rollback that is due is
// done first.
func (m *Manager) Stage(ctx context.Context, o StageOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	s, err := m.enter(ctx, o.ID)
	if err != nil {
		return err
	}
	defer s.leave()
	p, err := m.locate(o.Ref)
	if err != nil {
		return err
	}
	if err := m.rememberStaging(o); err != nil {
		return err
	}
	if err := m.settle(ctx, s, p); err != nil {
		return err
	}
	_, err = m.stage(ctx, p, o)
	return err
}

// rememberStaging notes where a volume is staged if that has been lost: otherwise
// the mount there would pass for a user's, and a rollback wait for it for ever.
func (m *Manager) rememberStaging(o StageOptions) error {
	staging, err := realPath(o.StagingPath)
	if err != nil {
		return nil // nothing is mounted there
	}
	_, err = m.updateRecord(o.ID, func(r *record) {
		if r.StagingPath == "" {
			r.StagingPath = staging
		}
	})
	return err
}

func (m *Manager) stage(ctx context.Context, p place, o StageOptions) (*enginepb.Volume, error) {
	staging, err := realPath(o.StagingPath)
	if err != nil {
		return nil, fmt.Errorf("volume %s: staging path: %w: %w", o.ID, err, ErrInvalid)
	}
	o.StagingPath = staging
	if p.pool == nil {
		// Before the record says otherwise, by which a rollback would look for
		// the volume.
		v, err := m.attached(ctx, p.id)
		if err != nil {
			return nil, err
		}
		if v != nil && v.Path != p.path {
			return nil, fmt.Errorf("volume %s: it is attached to %s, and %s is asked for: %w", p.id, v.Path, p.path, ErrInvalid)
		}
	}
	_, err = m.updateRecord(o.ID, func(r *record) {
		r.StagingPath = staging
		r.IOUring = o.IOUring
		if p.pool == nil {
			r.Device = p.path
		}
	})
	if err != nil {
		return nil, err
	}
	v, err := m.attach(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := m.compatible(p, v, o); err != nil {
		return nil, err
	}
	if o.Block {
		return v, m.handOut(ctx, p, "")
	}
	if v, err = m.cleanSlate(ctx, p, v); err != nil {
		return nil, err
	}
	return v, m.mountAt(ctx, p, v, staging, o.FSType, o.MountOptions)
}

// attach returns the mapping of a volume, which it makes if there is none.
func (m *Manager) attach(ctx context.Context, p place) (*enginepb.Volume, error) {
	v, err := m.attached(ctx, p.id)
	if v != nil || err != nil {
		return v, err
	}
	if err := m.clearDead(ctx, p); err != nil {
		return nil, err
	}
	req := &enginepb.AttachRequest{Name: mappingName(p.id), Path: p.path}
	if p.pool != nil {
		req.BlockSize = poolBlockSize
		req.KeepAllocated = !p.pool.Thin
	}
	r, err := m.loadRecord(p.id)
	if err != nil {
		return nil, err
	}
	req.IoUring = r.IOUring
	v, err = m.engine.Attach(ctx, req)
	if req.IoUring && status.Code(err) == codes.Unimplemented {
		// It is a matter of speed, and no reason why a pod should not run on one node
		// of many.
		m.log.Warn("doing without io_uring", "volume", p.id, "error", status.Convert(err).Message())
		req.IoUring = false
		v, err = m.engine.Attach(ctx, req)
	}
	return v, fromEngine(p.id, "attaching", err)
}

// detach takes the mapping of a volume away. It fails with ErrInUse while anybody
// has it open or mounted, in whatever name space.
func (m *Manager) detach(ctx context.Context, id string) error {
	_, err := m.engine.Detach(ctx, &enginepb.DetachRequest{Name: mappingName(id)})
	return fromEngine(id, "detaching", err)
}

// cleanSlate makes a volume of the pool that was never used empty again, if an
// interrupted mkfs has left something on it.
func (m *Manager) cleanSlate(ctx context.Context, p place, v *enginepb.Volume) (*enginepb.Volume, error) {
	if p.pool == nil || p.pool.Used {
		return v, nil
	}
	// Mounted, it has been used; only the mark is missing.
	if mounts, err := filesystem.Mounts(v.Device); err != nil || len(mounts) > 0 {
		return v, err
	}
	content, err := filesystem.Probe(ctx, v.Device)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", p.id, err)
	}
	if content.Kind == filesystem.Empty {
		return v, nil
	}
	m.log.Info("removing what an interrupted mkfs left", "volume", p.id, "found", content.String())
	if err := m.detach(ctx, p.id); err != nil {
		return nil, err
	}
	if err := m.pool.Wipe(ctx, p.id); err != nil {
		return nil, err
	}
	return m.attach(ctx, p)
}

// handOut notes that the content of a volume is somebody's from now on.
func (m *Manager) handOut(ctx context.Context, p place, fsType string) error {
	if p.pool == nil {
		return m.endFormat(p.id)
	}
	if p.pool.Used {
		return nil
	}
	return m.pool.MarkUsed(ctx, p.id, fsType)
}

// mountAt mounts the file system of a mapping at target, and makes it first if the
// volume was never used.
func (m *Manager) mountAt(ctx context.Context, p place, v *enginepb.Volume, target, fsType string, options []string) error {
	held, err := hold(p.id, v)
	if err != nil {
		return err
	}
	defer held.Close()
	there, device, err := filesystem.MountedAt(target)
	switch {
	case err == nil && device == v.Device && fsType != "" && fsType != there.Type:
		return fmt.Errorf("volume %s: %s is asked for and %s is mounted at %s: %w", p.id, fsType, there.Type, target, ErrIncompatible)
	case err == nil && device == v.Device:
		return m.handOut(ctx, p, there.Type)
	case err == nil:
		return fmt.Errorf("volume %s: %s is mounted at %s already: %w", p.id, device, target, ErrInvalid)
	case !errors.Is(err, filesystem.ErrNotMounted):
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	content, err := filesystem.Probe(ctx, v.Device)
	if err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	switch {
	case content.Kind == filesystem.Filesystem:
		if fsType != "" && content.Type != fsType {
			return fmt.Errorf("volume %s: %s is asked for and %s is on it: %w", p.id, fsType, content.Type, ErrUnsupported)
		}
		fsType = content.Type
	case content.Kind == filesystem.Empty && (p.pool == nil || !p.pool.Used):
		if fsType == "" {
			fsType = filesystem.Ext4
		}
		if err := m.format(ctx, p, v, fsType); err != nil {
			return err
		}
	default:
		return fmt.Errorf("volume %s: a file system is expected on it, and there is: %s; nothing was changed: %w", p.id, content, ErrDamaged)
	}
	if err := m.handOut(ctx, p, fsType); err != nil {
		return err
	}
	if fsType == filesystem.XFS {
		if err := m.advanceLog(ctx, p.id, v); err != nil {
			return fmt.Errorf("volume %s: after its rollback: %w", p.id, err)
		}
	}
	if err := os.Mkdir(target, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	if fi, err := os.Stat(target); err != nil || !fi.IsDir() {
		return fmt.Errorf("volume %s: %s is not a directory: %w", p.id, target, errors.Join(err, ErrInvalid))
	}
	if fsType == filesystem.XFS && !slices.Contains(options, "nouuid") {
		// A clone has the UUID of its source, and both may be mounted.
		options = append(slices.Clone(options), "nouuid")
	}
	if err := filesystem.Mount(ctx, v.Device, target, fsType, options); err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	if v.Open == nil && p.pool != nil {
		// It may be smaller than its device: a clone that is larger than its
		// source, or an expansion that was interrupted. It is usable as it is.
		if err := filesystem.Grow(ctx, v.Device, target); err != nil {
			m.log.Warn("the file system is left as small as it is", "volume", p.id, "error", err)
		}
	}
	if v.Open != nil {
		// What was free at the checkpoint and what of it is so still; backups
		// have only a reserve until that is known.
		if err := FindFree(ctx, engine.Volume{Client: m.engine, Name: v.Name}, target); err != nil {
			m.log.Warn("free space is not known anew", "volume", p.id, "error", err)
		}
	}
	return nil
}

// advanceLog advances the log of an XFS that was rolled back, before it is mounted for
// the first time after that; filesystem.AdvanceLog tells why. For that the file system
// has to be clean, which it gets by being mounted and unmounted where nobody else looks.
// From then on until its log has been advanced nobody mounts it: a manager that was
// killed meanwhile, or has failed, begins anew there.
func (m *Manager) advanceLog(ctx context.Context, id string, v *enginepb.Volume) error {
	r, err := m.loadRecord(id)
	if err != nil {
		return err
	}
	c := r.Checkpoint
	if c == nil || c.XFSAdvanced || c.Stage != rolledBack && !c.Restoring || v.Open != nil {
		return nil
	}
	note := func(cycle int64, advanced bool) error {
		_, err := m.updateRecord(id, func(r *record) {
			if r.Checkpoint != nil && sameUID(r.Checkpoint.UID, c.UID) {
				r.Checkpoint.XFSCycle, r.Checkpoint.XFSAdvanced = cycle, advanced
			}
		})
		return err
	}
	missed := func(err error) {
		m.log.Warn("the log of the file system has not been advanced after the rollback; see 'XFS after a rollback' in the documentation of recovery",
			"volume", id, "error", err)
	}
	cycle, again := c.XFSCycle, c.XFSCycle != 0
	if !again {
		dir := filepath.Join(m.privateDir(), mappingName(id))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		err := filesystem.Mount(ctx, v.Device, dir, filesystem.XFS, []string{"nouuid"})
		if err := errors.Join(err, m.removePrivate(context.WithoutCancel(ctx), id, dir)); err != nil {
			return err
		}
		if cycle, err = filesystem.NextCycle(v.Device); err != nil {
			missed(err)
			return nil
		}
		if err := note(cycle, false); err != nil {
			return err
		}
	}
	err = filesystem.AdvanceLog(context.WithoutCancel(ctx), v.Device, cycle, again)
	if err == nil {
		return note(0, true)
	}
	if again || !filesystem.Untouched(v.Device, cycle) {
		return err
	}
	missed(err)
	return note(0, false)
}

// Unstage unmounts a volume and detaches it. A rollback that is due begins.
func (m *Manager) Unstage(ctx context.Context, id, stagingPath string) error {
	if !filepath.IsAbs(stagingPath) {
		return fmt.Errorf("volume %s: staging path %q is not absolute: %w", id, stagingPath, ErrInvalid)
	}
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	m.thaw(id, s)
	// From now on others may write to a device of theirs.
	if err := m.endFormat(id); err != nil {
		return err
	}
	staging, err := realPath(stagingPath)
	if errors.Is(err, os.ErrNotExist) {
		staging, err = filepath.Clean(stagingPath), nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: staging path: %w", id, err)
	}
	if err := m.unmountStaging(ctx, id, staging); err != nil {
		return err
	}
	v, err := m.attached(ctx, id)
	if err != nil {
		return err
	}
	if v == nil {
		if err := m.clearDead(ctx, place{id: id}); err != nil {
			return err
		}
	} else {
		users, err := m.users(v.Device, staging)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if len(users) > 0 {
			return fmt.Errorf("volume %s: it is published at %s: %w", id, users[0].Path, ErrInUse)
		}
		if err := m.detach(ctx, id); err != nil {
			return err
		}
	}
	m.changed(id)
	m.kick(id)
	return nil
}

// unmountDevice unmounts device from path, if that is what is mounted there.
func (m *Manager) unmountDevice(ctx context.Context, id, path, device string) error {
	return m.unmountWhile(ctx, id, path, func(at string) (bool, error) { return at == device, nil })
}

// unmountStaging unmounts the file system of a volume from its staging path, for
// real.
func (m *Manager) unmountStaging(ctx context.Context, id, staging string) error {
	return m.unmountWhile(ctx, id, staging, func(device string) (bool, error) {
		if device == "" {
			return false, fmt.Errorf("volume %s: what is mounted at %s is not on a block device: %w", id, staging, ErrInvalid)
		}
		return true, nil
	})
}

// unmountWhile unmounts what is mounted at path, one after the other, until
// nothing is or the device of the next one, "" if it has none, is not to be.
func (m *Manager) unmountWhile(ctx context.Context, id, path string, wanted func(device string) (bool, error)) error {
	for {
		_, device, err := filesystem.MountedAt(path)
		if errors.Is(err, filesystem.ErrNotMounted) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if ok, err := wanted(device); !ok || err != nil {
			return err
		}
		if err := m.unmount(ctx, id, path); err != nil {
			return err
		}
	}
}

func (m *Manager) unmount(ctx context.Context, id, path string) error {
	err := filesystem.Unmount(ctx, path)
	switch {
	case err == nil, errors.Is(err, filesystem.ErrNotMounted), errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, filesystem.ErrBusy):
		return fmt.Errorf("volume %s: %w: %w", id, err, ErrInUse)
	}
	return fmt.Errorf("volume %s: %w", id, err)
}

// realPath resolves the directories that lead to path, but asks nothing of path
// itself, which may be a mount that answers no more.
func realPath(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(filepath.Clean(path))), nil
}
