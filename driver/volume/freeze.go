package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// MaxHold is how long a volume may stay frozen for a group.
const MaxHold = maxFrozen

// ErrNotFrozen says that a volume is not frozen for the checkpoint that is meant,
// or not any more.
var ErrNotFrozen = errors.New("the volume is not frozen for this checkpoint")

// frozen is a file system that is frozen for a checkpoint, so that those of other
// volumes can be opened at the same instant.
type frozen struct {
	uid        string
	volume     *enginepb.Volume
	mountpoint string
	began      time.Time
	timer      *time.Timer
}

// Prepare finds out what is free on a volume, so that Freeze, which comes next,
// takes only as long as writing what is dirty. It fails with ErrInvalid for a
// volume that was never used. Thaw gives it up.
func (m *Manager) Prepare(ctx context.Context, id, uid string) error {
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		if sameUID(s.prepared, uid) || s.frozen != nil && sameUID(s.frozen.uid, uid) {
			return nil
		}
		if p.pool != nil && !p.pool.Used {
			return fmt.Errorf("volume %s: it was never used, so there is nothing to go back to: %w", id, ErrInvalid)
		}
		v, at, err := m.readyToFreeze(ctx, s, p, uid)
		if err != nil || at == "" {
			return err
		}
		if err := m.search(ctx, m.volumeOf(v, uid, CheckpointOptions{}), id, at); err != nil {
			return err
		}
		s.prepared = uid
		return nil
	})
}

// Freeze goes up to the point where only the switch is missing, and holds the file
// system frozen there, for hold (at most MaxHold) unless CheckpointFrozen or Thaw
// comes first. A volume without a mounted file system has nobody who writes through
// one, and there is nothing to freeze.
func (m *Manager) Freeze(ctx context.Context, id, uid string, hold time.Duration) error {
	if hold <= 0 || hold > MaxHold {
		return fmt.Errorf("volume %s: freezing it for %s, which is not between 0 and %s: %w", id, hold, MaxHold, ErrInvalid)
	}
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		if s.frozen != nil && sameUID(s.frozen.uid, uid) {
			return nil
		}
		prepared := sameUID(s.prepared, uid)
		v, at, err := m.readyToFreeze(ctx, s, p, uid)
		if err != nil {
			return err
		}
		f := &frozen{uid: uid, volume: v}
		if at != "" {
			if !prepared {
				if err := m.search(ctx, m.volumeOf(v, uid, CheckpointOptions{}), id, at); err != nil {
					return err
				}
			}
			s.prepared = ""
			if err := m.freezeAt(ctx, f, id, at); err != nil {
				return err
			}
		}
		s.frozen = f
		f.timer = time.AfterFunc(hold, func() { m.spawn(func() { m.expire(id, f) }) })
		return nil
	})
}

// readyToFreeze returns the mapping of a volume on which the checkpoint uid can be
// opened, nil if it is not attached, and where it is mounted, "" if it is not.
func (m *Manager) readyToFreeze(ctx context.Context, s *slot, p place, uid string) (*enginepb.Volume, string, error) {
	if !sameUID(s.prepared, uid) {
		m.thaw(p.id, s)
	}
	if err := m.settle(ctx, s, p); err != nil {
		return nil, "", err
	}
	_, v, _, err := m.refresh(ctx, p)
	if err != nil || v == nil {
		return nil, "", err
	}
	if open, err := isOpen(p.id, v, uid); open || err != nil {
		return v, "", err
	}
	if err := m.growMapping(ctx, p, v); err != nil {
		return v, "", err
	}
	at, err := mountOf(p.id, v)
	return v, at, err
}

// search finds out what is free on the file system mounted at the path at.
func (m *Manager) search(ctx context.Context, v engine.Volume, id, at string) error {
	if err := v.StartTrim(ctx); err != nil {
		return fromEngine(id, "looking for free space", err)
	}
	if err := FindFree(ctx, v, at); err != nil {
		return errors.Join(fmt.Errorf("volume %s: %w", id, err), v.StopTrim(context.WithoutCancel(ctx)))
	}
	return nil
}

func (m *Manager) freezeAt(ctx context.Context, f *frozen, id, at string) error {
	err := filesystem.Sync(at)
	if err == nil {
		_, err = m.updateRecord(id, func(r *record) { r.Frozen = true })
	}
	if err == nil {
		f.began = time.Now()
		err = filesystem.Freeze(at)
	}
	if err != nil {
		_, forget := m.updateRecord(id, func(r *record) { r.Frozen = false })
		stop := m.volumeOf(f.volume, f.uid, CheckpointOptions{}).StopTrim(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("volume %s: %w", id, err), forget, stop)
	}
	f.mountpoint = at
	return nil
}

// CheckpointFrozen opens the checkpoint that Freeze has prepared, and thaws.
func (m *Manager) CheckpointFrozen(ctx context.Context, id, uid string, o CheckpointOptions) error {
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		f := s.frozen
		if f == nil || !sameUID(f.uid, uid) {
			// Perhaps this was done and the answer was lost.
			if _, now, err := m.openOn(ctx, p); err == nil && now != nil && sameUID(now.uid, uid) {
				return nil
			}
			return fmt.Errorf("volume %s: checkpoint %s: %w", id, uid, ErrNotFrozen)
		}
		if f.mountpoint == "" {
			return m.checkpoint(ctx, s, p, uid, o)
		}
		return m.openCheckpoint(id, uid, func() (time.Duration, error) {
			// Not before: as long as this may not be reached, the timer thaws.
			f.timer.Stop()
			s.frozen = nil
			switching, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxFrozen)
			defer cancel()
			v := m.volumeOf(f.volume, uid, o)
			err := v.Checkpoint(switching)
			thawed := filesystem.Thaw(f.mountpoint)
			if err != nil {
				err = errors.Join(err, v.StopTrim(context.WithoutCancel(ctx)))
			}
			return time.Since(f.began), errors.Join(err, thawed)
		})
	})
}

// Thaw gives up what Prepare or Freeze began, if anything.
func (m *Manager) Thaw(ctx context.Context, id string) error {
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	m.thaw(id, s)
	return nil
}

// expire thaws a volume that nobody came back for.
func (m *Manager) expire(id string, f *frozen) {
	s := m.slot(id)
	s.sem <- struct{}{}
	defer s.leave()
	if s.frozen == f {
		m.log.Warn("a file system was frozen for too long and is thawed", "volume", id, "checkpoint", f.uid)
		m.thaw(id, s)
	}
}

// thaw ends what Freeze began. The slot is held.
func (m *Manager) thaw(id string, s *slot) {
	f := s.frozen
	if f == nil {
		m.unprepare(id, s)
		return
	}
	s.frozen = nil
	f.timer.Stop()
	if f.mountpoint == "" {
		return
	}
	if _, err := thawMounts(f.volume.Device, f.mountpoint); err != nil {
		m.log.Error("a file system cannot be thawed", "volume", id, "error", err)
		return
	}
	// Not the context of the Manager: this is also how it ends.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.volumeOf(f.volume, f.uid, CheckpointOptions{}).StopTrim(ctx); err != nil {
		m.log.Warn("the engine still looks for free space", "volume", id, "error", err)
	}
	if _, err := m.updateRecord(id, func(r *record) { r.Frozen = false }); err != nil {
		m.log.Warn("a record still says that the volume is frozen", "volume", id, "error", err)
	}
}

// unprepare ends what Prepare began. The slot is held.
func (m *Manager) unprepare(id string, s *slot) {
	if s.prepared == "" {
		return
	}
	s.prepared = ""
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	v, err := m.attached(ctx, id)
	if err == nil && v != nil && v.Open == nil {
		err = m.volumeOf(v, "", CheckpointOptions{}).StopTrim(ctx)
	}
	if err != nil {
		m.log.Warn("the engine still looks for free space", "volume", id, "error", err)
	}
}

// thawAll thaws everything, when no operation can begin any more.
func (m *Manager) thawAll() {
	m.mu.Lock()
	ids := make([]string, 0, len(m.slots))
	for id := range m.slots {
		ids = append(ids, id)
	}
	m.mu.Unlock()
	for _, id := range ids {
		s := m.slot(id)
		s.sem <- struct{}{}
		m.thaw(id, s)
		s.leave()
	}
}

// thawForgotten thaws what a Manager that was killed had frozen. Only marked
// volumes: others may be frozen by somebody else, for a reason.
func (m *Manager) thawForgotten(ctx context.Context, id string) error {
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	r, err := m.loadRecord(id)
	if err != nil || !r.Frozen || s.frozen != nil {
		return err
	}
	v, err := m.attached(ctx, id)
	if err != nil {
		return err
	}
	if v != nil {
		thawed, err := m.thawSomewhere(ctx, id, v)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if thawed {
			m.log.Warn("thawed a file system that was left frozen", "volume", id)
		}
		if v.Open == nil {
			if err := m.volumeOf(v, "", CheckpointOptions{}).StopTrim(ctx); err != nil {
				return fromEngine(id, "ending the search for free space", err)
			}
		}
	}
	_, err = m.updateRecord(id, func(r *record) { r.Frozen = false })
	return err
}

// thawSomewhere thaws the file system of a mapping, and tells whether it was
// frozen. One that was mounted only where nobody else looks may have no mount any
// more, with the container of the Manager that was killed. It is still there, keeps
// the device in use, and comes back when it is mounted.
func (m *Manager) thawSomewhere(ctx context.Context, id string, v *enginepb.Volume) (bool, error) {
	mounts, err := filesystem.Mounts(v.Device)
	if err != nil {
		return false, err
	}
	if len(mounts) > 0 {
		return thawMounts(v.Device, mounts[0].Path)
	}
	if used, err := filesystem.InUse(v.Device); err != nil || !used {
		return false, err
	}
	content, err := filesystem.Probe(ctx, v.Device)
	if err != nil || content.Kind != filesystem.Filesystem {
		return false, err
	}
	dir := filepath.Join(m.privateDir(), mappingName(id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	if err := filesystem.Mount(ctx, v.Device, dir, content.Type, nil); err != nil {
		return false, err
	}
	thawed, err := thawMounts(v.Device, dir)
	return thawed, errors.Join(err, m.removePrivate(ctx, id, dir))
}

// thawMounts thaws the file system on a device that was mounted at the path at, or
// is mounted elsewhere, and tells whether it was frozen.
func thawMounts(device, at string) (bool, error) {
	err := filesystem.Thaw(at)
	if err != nil && !errors.Is(err, filesystem.ErrNotFrozen) {
		mounts, listErr := filesystem.Mounts(device)
		err = errors.Join(err, listErr)
		for _, mnt := range mounts {
			if err = filesystem.Thaw(mnt.Path); err == nil || errors.Is(err, filesystem.ErrNotFrozen) {
				break
			}
		}
	}
	if errors.Is(err, filesystem.ErrNotFrozen) {
		return false, nil
	}
	return err == nil, err
}
