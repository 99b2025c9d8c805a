package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// PublishOptions say how a staged volume is to be shown to a pod. Those of staging
// are needed too, because a rollback or a crash may have ended that.
type PublishOptions struct {
	StageOptions

	// TargetPath is where the pod wants it: a directory, or a file for a block
	// device. It is made if only its last part is missing.
	TargetPath string

	// ReadOnly makes the mount at the target path read-only. That keeps nobody from
	// writing to a block device; the kubelet has the runtime of the containers do it.
	ReadOnly bool

	// Exclusive refuses if there is another user.
	Exclusive bool
}

// Publish makes a volume appear at the target path. It fails with
// ErrRollbackPending until a rollback that was asked for is done.
func (m *Manager) Publish(ctx context.Context, o PublishOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if !filepath.IsAbs(o.TargetPath) {
		return fmt.Errorf("volume %s: target path %q is not absolute: %w", o.ID, o.TargetPath, ErrInvalid)
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
	if err := m.rememberStaging(o.StageOptions); err != nil {
		return err
	}
	if err := m.settle(ctx, s, p); err != nil {
		return err
	}
	target, err := realPath(o.TargetPath)
	if err != nil {
		return fmt.Errorf("volume %s: target path: %w: %w", o.ID, err, ErrInvalid)
	}
	p.target = target
	v, err := m.stage(ctx, p, o.StageOptions)
	if err != nil {
		return err
	}
	source := v.Device
	if !o.Block {
		if source, err = realPath(o.StagingPath); err != nil {
			return fmt.Errorf("volume %s: %w", o.ID, err)
		}
	}
	users, err := m.users(v.Device, source)
	if err != nil {
		return fmt.Errorf("volume %s: %w", o.ID, err)
	}
	for _, u := range users {
		if u.Path != target {
			if o.Exclusive {
				return fmt.Errorf("volume %s: at %s: %w", o.ID, u.Path, ErrPublished)
			}
			continue
		}
		if o.Block || u.ReadOnly == o.ReadOnly {
			return nil
		}
		// Of a file system that is read-only as a whole, by a mount option or
		// after an error, every mount is.
		if whole, _, err := filesystem.MountedAt(source); err == nil && whole.ReadOnly && !o.ReadOnly {
			return nil
		}
		return fmt.Errorf("volume %s: it is published at %s already, with other rights to write: %w", o.ID, target, ErrIncompatible)
	}
	if err := m.releaseTarget(ctx, o.ID, target); err != nil {
		return err
	}
	if err := makeTarget(target, o.Block); err != nil {
		return fmt.Errorf("volume %s: target path: %w", o.ID, err)
	}
	if err := filesystem.Bind(ctx, source, target, o.ReadOnly); err != nil {
		return fmt.Errorf("volume %s: %w", o.ID, err)
	}
	m.changed(o.ID)
	return nil
}

// compatible refuses to use a volume raw while its file system is mounted, or that
// while somebody has it raw: each would change the other's blocks. What is not
// mounted at the paths of this request makes it ErrInUse.
func (m *Manager) compatible(p place, v *enginepb.Volume, o StageOptions) error {
	look, as := filesystem.Binds, "raw"
	if o.Block {
		look, as = filesystem.Mounts, "with its file system"
	}
	all, err := look(v.Device)
	if err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	kind := ErrInUse
	users := m.others(all, v.Device, "")
	if i := slices.IndexFunc(users, func(u filesystem.MountPoint) bool {
		return u.Path == o.StagingPath || u.Path == p.target
	}); i >= 0 {
		kind, users = ErrIncompatible, users[i:]
	}
	if len(users) == 0 {
		return nil
	}
	return fmt.Errorf("volume %s: it is used %s at %s: %w", p.id, as, users[0].Path, kind)
}

// Unpublish takes away what Publish made. If it was the last user of a volume
// that is to be rolled back, the rollback begins.
func (m *Manager) Unpublish(ctx context.Context, id, targetPath string) error {
	if !filepath.IsAbs(targetPath) {
		return fmt.Errorf("volume %s: target path %q is not absolute: %w", id, targetPath, ErrInvalid)
	}
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	m.thaw(id, s)
	target, err := realPath(targetPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: target path: %w", id, err)
	}
	if err := m.releaseTarget(ctx, id, target); err != nil {
		return err
	}
	if err := removeTarget(target); err != nil {
		return fmt.Errorf("volume %s: target path: %w", id, err)
	}
	m.changed(id)
	m.kick(id)
	return nil
}

// releaseTarget unmounts all that is mounted at a target path.
func (m *Manager) releaseTarget(ctx context.Context, id, target string) error {
	return m.unmountWhile(ctx, id, target, func(string) (bool, error) { return true, nil })
}

func makeTarget(target string, block bool) error {
	if !block {
		err := os.Mkdir(target, 0o750)
		if errors.Is(err, os.ErrExist) {
			if fi, err := os.Lstat(target); err != nil || !fi.IsDir() {
				return errors.Join(err, fmt.Errorf("%s is not a directory: %w", target, ErrInvalid))
			}
			return nil
		}
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o640)
	if errors.Is(err, os.ErrExist) {
		if fi, err := os.Lstat(target); err != nil || !fi.Mode().IsRegular() {
			return errors.Join(err, fmt.Errorf("%s is not a regular file: %w", target, ErrInvalid))
		}
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// removeTarget removes an empty directory or file; what has content is not ours.
func removeTarget(target string) error {
	fi, err := os.Lstat(target)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() && (!fi.Mode().IsRegular() || fi.Size() > 0) {
		return fmt.Errorf("%s is neither a directory nor an empty file: %w", target, ErrInvalid)
	}
	return os.Remove(target)
}

// users returns where a mapped device is in use in this mount namespace, besides
// at its staging path and where the Manager itself looks at it: mounts of its file
// system and binds of its node.
func (m *Manager) users(device, staging string) ([]filesystem.MountPoint, error) {
	mounts, err := filesystem.Mounts(device)
	if err != nil {
		return nil, err
	}
	binds, err := filesystem.Binds(device)
	if err != nil {
		return nil, err
	}
	return m.others(append(mounts, binds...), device, staging), nil
}

// others returns those mounts that are users; see there.
func (m *Manager) others(mounts []filesystem.MountPoint, device, staging string) (users []filesystem.MountPoint) {
	for _, mnt := range mounts {
		if mnt.Path != staging && mnt.Path != device && !strings.HasPrefix(mnt.Path, m.privateDir()+"/") {
			users = append(users, mnt)
		}
	}
	return users
}
