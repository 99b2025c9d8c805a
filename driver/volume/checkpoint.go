package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// CheckpointOptions say what kind of checkpoint to open.
type CheckpointOptions struct {
	// CommitWhenFull ends the checkpoint with a commit when there is no space
	// left for backups. Otherwise writes then fail with ENOSPC.
	CommitWhenFull bool
}

// Checkpoint opens the checkpoint uid, a UUID, on a volume, staged or not. If it
// is open already, that is no error. It fails with ErrCheckpointOpen if another
// one is.
func (m *Manager) Checkpoint(ctx context.Context, id, uid string, o CheckpointOptions) error {
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		return m.checkpoint(ctx, s, p, uid, o)
	})
}

// Commit ends the checkpoint uid and keeps the current content. That it has been
// committed already is no error. It fails with ErrRollbackPending if a rollback was
// asked for, unless that was tried and found impossible for damage: then it is given
// up.
func (m *Manager) Commit(ctx context.Context, id, uid string) error {
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		if err := m.commit(ctx, s, p, uid); err != nil {
			return err
		}
		m.changed(id)
		return nil
	})
}

func (m *Manager) withVolume(ctx context.Context, id, uid string, do func(*slot, place) error) error {
	if uid == "" {
		return fmt.Errorf("volume %s: a checkpoint without a name: %w", id, ErrInvalid)
	}
	s, err := m.enter(ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	p, err := m.locate(Ref{ID: id})
	if err != nil {
		return err
	}
	return do(s, p)
}

func (m *Manager) checkpoint(ctx context.Context, s *slot, p place, uid string, o CheckpointOptions) error {
	m.thaw(p.id, s)
	if err := m.settle(ctx, s, p); err != nil {
		return err
	}
	if p.pool != nil && !p.pool.Used {
		return fmt.Errorf("volume %s: it was never used, so there is nothing to go back to: %w", p.id, ErrInvalid)
	}
	if _, _, _, err := m.refresh(ctx, p); err != nil {
		return err
	}
	return m.withMapping(ctx, p, func(v *enginepb.Volume) error {
		open, err := isOpen(p.id, v, uid)
		if open || err != nil {
			return err
		}
		if err := m.growMapping(ctx, p, v); err != nil {
			return err
		}
		return m.withMount(ctx, p, v, func(mountpoint string) error {
			return m.openCheckpoint(p.id, uid, func() (time.Duration, error) {
				t, err := Checkpoint(ctx, m.volumeOf(v, uid, o), mountpoint)
				return t.Frozen, err
			})
		})
	})
}

// growMapping makes the mapping as large as its image, which an expansion that was
// interrupted may have left larger. A checkpoint is of a device of one size.
func (m *Manager) growMapping(ctx context.Context, p place, v *enginepb.Volume) error {
	if p.pool == nil || p.pool.Size <= v.Size {
		return nil
	}
	_, err := m.engine.Grow(ctx, &enginepb.GrowRequest{Name: v.Name})
	return fromEngine(p.id, "growing the mapping", err)
}

// openCheckpoint does what opens a checkpoint, and takes down before and after it
// what a successor needs to know.
func (m *Manager) openCheckpoint(id, uid string, do func() (time.Duration, error)) error {
	set := func(c *checkpointRecord, frozen bool) error {
		_, err := m.updateRecord(id, func(r *record) { r.Checkpoint, r.Frozen = c, frozen })
		return err
	}
	before, err := m.loadRecord(id)
	if err != nil {
		return err
	}
	if err := set(&checkpointRecord{UID: uid, Stage: opening, Since: time.Now()}, true); err != nil {
		return err
	}
	began := time.Now()
	took, err := do()
	if err != nil {
		return errors.Join(fromEngine(id, "opening a checkpoint", err), set(before.Checkpoint, false))
	}
	m.changed(id)
	return set(&checkpointRecord{UID: uid, Stage: opened, Since: began, Frozen: took}, false)
}

func (m *Manager) commit(ctx context.Context, s *slot, p place, uid string) error {
	m.thaw(p.id, s)
	r, _, open, err := m.refresh(ctx, p)
	if err != nil {
		return err
	}
	if open == nil || !sameUID(open.uid, uid) {
		if c := r.Checkpoint; c != nil && sameUID(c.UID, uid) && c.Stage == committed {
			return nil
		}
		return fmt.Errorf("volume %s: checkpoint %s: %w", p.id, uid, ErrNoCheckpoint)
	}
	rollback := open.rollback || r.asksForRollback(uid)
	if s.rollback.running() || rollback && !s.rollback.damaged() {
		return fmt.Errorf("volume %s: it cannot be committed any more: %w", p.id, ErrRollbackPending)
	}
	set := func(st stage) error {
		_, err := m.updateRecord(p.id, func(r *record) {
			if r.Checkpoint == nil || !sameUID(r.Checkpoint.UID, uid) {
				r.Checkpoint = &checkpointRecord{UID: uid}
			}
			r.Checkpoint.Stage, r.Checkpoint.Since = st, time.Now()
		})
		return err
	}
	if err := set(committing); err != nil {
		return err
	}
	if rollback {
		err = m.giveUp(ctx, p)
	} else {
		err = m.withMapping(ctx, p, func(v *enginepb.Volume) error {
			_, err := m.engine.Commit(ctx, &enginepb.CommitRequest{Name: v.Name})
			return fromEngine(p.id, "committing", err)
		})
		if errors.Is(err, ErrDamaged) {
			m.log.Warn("the log of a checkpoint that is committed is damaged", "volume", p.id, "error", err)
			err = m.giveUp(ctx, p)
		}
	}
	if err != nil {
		return err
	}
	return set(committed)
}

// giveUp ends a damaged checkpoint, which no engine serves, and keeps the current
// content. That does not depend on the log but for block 0.
func (m *Manager) giveUp(ctx context.Context, p place) error {
	v, err := m.attached(ctx, p.id)
	if err != nil {
		return err
	}
	if v != nil {
		return fmt.Errorf("volume %s: its damaged checkpoint can be given up when nobody uses it: %w", p.id, ErrInUse)
	}
	if err := m.clearDead(ctx, p); err != nil {
		return err
	}
	err = rollForward(ctx, p.path)
	if errors.Is(err, restore.ErrBlockSize) {
		// Direct I/O cannot do blocks as small as those of the log.
		err = rollForward(ctx, p.path, blockdev.Buffered)
	}
	switch {
	case err == nil:
		m.log.Warn("a damaged checkpoint was given up; the current content stays", "volume", p.id)
		return nil
	case errors.Is(err, blockdev.ErrInUse):
		return fmt.Errorf("volume %s: giving up its checkpoint: %w: %w", p.id, err, ErrInUse)
	}
	return fmt.Errorf("volume %s: giving up its checkpoint: %w: %w", p.id, err, ErrDamaged)
}

func rollForward(ctx context.Context, path string, flags ...blockdev.Flag) error {
	dev, err := blockdev.Open(path, append(flags, blockdev.Exclusive)...)
	if err != nil {
		return err
	}
	return errors.Join(restore.RollForward(ctx, dev), dev.Close())
}

// volumeOf is the mapping v as the checkpoint uid is to be opened on it.
func (m *Manager) volumeOf(v *enginepb.Volume, uid string, o CheckpointOptions) engine.Volume {
	return engine.Volume{Client: m.engine, Name: v.Name, ID: uid, CommitWhenFull: o.CommitWhenFull}
}

// isOpen tells whether the checkpoint uid is open on v; it fails if another one is.
func isOpen(id string, v *enginepb.Volume, uid string) (bool, error) {
	if v.Open == nil {
		return false, nil
	}
	if !sameUID(v.Open.Id, uid) {
		return false, fmt.Errorf("volume %s: %s, opened at %s: %w", id, v.Open.Id, v.Open.Opened.AsTime().Format(time.RFC3339), ErrCheckpointOpen)
	}
	return true, nil
}

// withMapping calls do with the mapping of a volume, and takes it away again if it
// was not there before.
func (m *Manager) withMapping(ctx context.Context, p place, do func(*enginepb.Volume) error) error {
	v, err := m.attached(ctx, p.id)
	if err != nil {
		return err
	}
	if v != nil {
		return do(v)
	}
	if v, err = m.attach(ctx, p); err != nil {
		return err
	}
	err = do(v)
	return errors.Join(err, m.detach(context.WithoutCancel(ctx), p.id))
}

// withMount calls do with a place where the file system of v is mounted. If it is
// not mounted anywhere it is, for that long, where nobody else looks. For what has
// no file system the place is "".
func (m *Manager) withMount(ctx context.Context, p place, v *enginepb.Volume, do func(mountpoint string) error) error {
	at, err := mountOf(p.id, v)
	if err != nil {
		return err
	}
	if at != "" {
		return do(at)
	}
	content, err := filesystem.Probe(ctx, v.Device)
	if err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	raw := p.pool != nil && p.pool.FSType == ""
	if content.Kind != filesystem.Filesystem || raw {
		return do("")
	}
	dir := filepath.Join(m.privateDir(), mappingName(p.id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	if err := m.mountAt(ctx, p, v, dir, "", nil); err != nil {
		return err
	}
	err = do(dir)
	return errors.Join(err, m.removePrivate(context.WithoutCancel(ctx), p.id, dir))
}

// mountOf returns where the file system of a mapping is mounted, "" if it is not. What
// is asked there about free space, or frozen, must be that one and no other: it fails
// with ErrBusy if something else is mounted over it.
func mountOf(id string, v *enginepb.Volume) (string, error) {
	at, err := filesystem.MountOf(v.Device)
	if errors.Is(err, filesystem.ErrHidden) {
		err = fmt.Errorf("%w: %w", err, ErrBusy)
	}
	if err != nil {
		return "", fmt.Errorf("volume %s: %w", id, err)
	}
	return at, nil
}

// privateDir is where volumes are mounted that nobody uses, to look at their free
// space.
func (m *Manager) privateDir() string { return filepath.Join(m.stateDir, "mnt") }

func (m *Manager) removePrivate(ctx context.Context, id, dir string) error {
	if err := m.releaseTarget(ctx, id, dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

// current is what is known of the checkpoint that is open on a volume.
type current struct {
	uid      string
	opened   time.Time
	rollback bool // asked for or begun
}

// openOn finds out whether a checkpoint is open, by the engine or, if the volume is
// not attached, by what is on it. Nil means that none is. It returns the mapping as
// well, nil if there is none.
func (m *Manager) openOn(ctx context.Context, p place) (*enginepb.Volume, *current, error) {
	v, err := m.attached(ctx, p.id)
	if err != nil {
		return nil, nil, err
	}
	if v == nil {
		now, err := openOnDisk(p)
		return nil, now, err
	}
	return v, openInEngine(v), nil
}

// openInEngine is the checkpoint that is open on a mapping; nil if none is.
func openInEngine(v *enginepb.Volume) *current {
	if v.Open == nil {
		return nil
	}
	return &current{uid: v.Open.Id, opened: v.Open.Opened.AsTime(), rollback: v.Open.RollbackRequested}
}

// openOnDisk reads block 0 of a volume that is not attached.
func openOnDisk(p place) (*current, error) {
	dev, err := blockdev.Open(p.path, blockdev.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", p.id, err)
	}
	if dev.Size() < blockdev.SectorSize { // a device that nothing has been connected to yet
		err := fmt.Errorf("volume %s: %s has %d bytes: %w", p.id, p.path, dev.Size(), ErrMissing)
		return nil, errors.Join(err, dev.Close())
	}
	head, err := bowlog.Load(dev)
	err = errors.Join(err, dev.Close())
	if errors.Is(err, bowlog.ErrNoLog) {
		return nil, nil
	}
	for _, damage := range []error{bowlog.ErrTorn, bowlog.ErrCorrupt, bowlog.ErrUnsupported} {
		if errors.Is(err, damage) {
			err = fmt.Errorf("%w: %w", err, ErrDamaged)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: the log of its checkpoint: %w", p.id, err)
	}
	if head.Ext == nil {
		return &current{rollback: head.Partial}, nil // dm-bow's
	}
	if head.Ext.Phase != bowlog.PhaseOpen {
		return nil, nil // opened or ended but for block 0, which attaching puts right
	}
	return &current{
		uid:      head.Ext.Checkpoint.String(),
		opened:   head.Ext.Opened,
		rollback: head.Partial || head.Ext.RollbackRequested,
	}, nil
}

// refresh brings the record of the last checkpoint up to date with what the volume
// itself says, so that an operation that was interrupted after it was done is known
// to be done. It returns the record and what openOn does.
func (m *Manager) refresh(ctx context.Context, p place) (record, *enginepb.Volume, *current, error) {
	v, now, err := m.openOn(ctx, p)
	if err != nil {
		return record{}, nil, nil, err
	}
	r, err := m.updateRecord(p.id, func(r *record) { r.Checkpoint = settled(r.Checkpoint, now, v.GetEnded()) })
	return r, v, now, err
}

// settled is what became of the checkpoint that the record c tells of, given the
// one that is open now, if any, and the one that the engine saw end, if it did.
func settled(c *checkpointRecord, now *current, ended *enginepb.Ended) *checkpointRecord {
	if c == nil || now != nil && sameUID(now.uid, c.UID) {
		if c != nil && c.Stage == opening {
			c := *c
			c.Stage = opened
			return &c
		}
		return c
	}
	next := *c
	switch c.Stage {
	case opening:
		return nil
	case opened:
		next.Stage, next.Reason = committed, ReasonOutside
		if ended != nil && sameUID(ended.Id, c.UID) {
			next.Since = ended.At.AsTime()
			if ended.Reason == enginepb.Ended_OUT_OF_SPACE {
				next.Reason = ReasonOutOfSpace
			}
		}
	case committing:
		next.Stage = committed
	case rollingBack:
		next.Stage, next.Restoring = rolledBack, false
		if !c.Restoring {
			next.Stage, next.Reason = committed, ReasonOutside
		}
	}
	return &next
}

// sameUID compares names of checkpoints, with or without dashes.
func sameUID(a, b string) bool {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
	return a != "" && plain(a) == plain(b)
}
