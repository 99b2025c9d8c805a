package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/pool"
)

const (
	// settlePatience is how long staging and publishing wait for a rollback.
	// It is long, because who calls them waits longer after each refusal.
	settlePatience = 20 * time.Second

	// checkInterval is how often it is tried whether a volume that is to be
	// rolled back is free; container runtimes let go of mounts without telling.
	checkInterval = 500 * time.Millisecond

	// retryInterval is how long to wait after a rollback that has failed.
	retryInterval = 30 * time.Second
)

// rollback is a restore that is under way or over.
type rollback struct {
	done chan struct{} // closed when it is over

	mu     sync.Mutex
	phase  enginepb.RestoreProgress_Phase // guarded by mu
	copied int64                          // bytes of the phase; guarded by mu
	total  int64                          // guarded by mu

	err   error     // after done
	ended time.Time // after done
}

func (r *rollback) running() bool {
	if r == nil {
		return false
	}
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// damaged tells whether it is over and impossible.
func (r *rollback) damaged() bool {
	return r != nil && !r.running() && errors.Is(r.err, ErrDamaged)
}

// failed tells whether it is over, in vain, and too early for another try.
func (r *rollback) failed() bool {
	if r == nil || r.running() || r.err == nil {
		return false
	}
	wait := retryInterval
	if errors.Is(r.err, ErrInUse) || errors.Is(r.err, ErrEngineDown) {
		wait = checkInterval
	}
	return time.Since(r.ended) < wait
}

// Rollback asks for the volume to be put back to the checkpoint uid: it notes that
// on the volume and returns. It is done as soon as nobody uses the volume; Status
// tells how far it is. That it has been asked for already, or done, is no error.
// It cannot be taken back.
func (m *Manager) Rollback(ctx context.Context, id, uid string) error {
	return m.withVolume(ctx, id, uid, func(s *slot, p place) error {
		m.thaw(id, s)
		r, v, now, err := m.refresh(ctx, p)
		if err != nil {
			return err
		}
		if now == nil || !sameUID(now.uid, uid) {
			if c := r.Checkpoint; c != nil && sameUID(c.UID, uid) && (c.Stage == rolledBack || c.Stage == rollingBack) {
				return nil
			}
			return fmt.Errorf("volume %s: checkpoint %s: %w", id, uid, ErrNoCheckpoint)
		}
		if v != nil && !now.rollback {
			if _, err := m.engine.RequestRollback(ctx, &enginepb.RequestRollbackRequest{Name: v.Name}); err != nil {
				return fromEngine(id, "noting the rollback on the volume", err)
			}
		}
		if err := m.noteRollback(id, uid); err != nil {
			return err
		}
		m.changed(id)
		m.kick(id)
		return nil
	})
}

func (m *Manager) noteRollback(id, uid string) error {
	_, err := m.updateRecord(id, func(r *record) {
		if c := r.Checkpoint; c != nil && sameUID(c.UID, uid) {
			if c.Stage != rollingBack {
				c.Stage, c.Since = rollingBack, time.Now()
			}
			return
		}
		r.Checkpoint = &checkpointRecord{UID: uid, Stage: rollingBack, Since: time.Now()}
	})
	return err
}

func (m *Manager) noteRestoring(id string, restoring bool) error {
	_, err := m.updateRecord(id, func(r *record) {
		if c := r.Checkpoint; c != nil && c.Stage == rollingBack {
			c.Restoring = restoring
		}
	})
	return err
}

// settle does a rollback that is due and returns when nothing stands in the way
// of using the volume. If that takes too long, or somebody still uses the volume,
// it fails with ErrRollbackPending. The slot is held.
func (m *Manager) settle(ctx context.Context, s *slot, p place) error {
	if !s.rollback.running() {
		due, err := m.due(ctx, p)
		if err != nil || !due {
			return err
		}
		if s.rollback.failed() {
			return s.rollback.err
		}
		m.startRollback(s, p)
	}
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	select {
	case <-s.rollback.done:
		return s.rollback.err
	case <-ctx.Done():
		return fmt.Errorf("volume %s: %w", p.id, ErrRollbackPending)
	}
}

// due tells whether the volume is to be rolled back now. If it is and is still
// attached, it is withdrawn from use first; that fails with ErrRollbackPending
// while it is used.
func (m *Manager) due(ctx context.Context, p place) (bool, error) {
	v, err := m.attached(ctx, p.id)
	if err != nil {
		return false, err
	}
	if v != nil {
		if !v.Open.GetRollbackRequested() {
			return false, nil
		}
		return true, m.withdraw(ctx, p, v)
	}
	now, err := openOnDisk(p)
	if err != nil || now == nil {
		return false, err
	}
	if !now.rollback {
		r, err := m.loadRecord(p.id)
		if err != nil || !r.asksForRollback(now.uid) {
			return false, err
		}
	}
	return true, pendingIfInUse(m.clearDead(ctx, p))
}

// withdraw unmounts and detaches a volume that nobody uses.
func (m *Manager) withdraw(ctx context.Context, p place, v *enginepb.Volume) error {
	r, err := m.loadRecord(p.id)
	if err != nil {
		return err
	}
	users, err := m.users(v.Device, r.StagingPath)
	if err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	if len(users) > 0 {
		return fmt.Errorf("volume %s: it is still published at %s: %w", p.id, users[0].Path, ErrRollbackPending)
	}
	if r.StagingPath != "" {
		if err := m.unmountDevice(ctx, p.id, r.StagingPath, v.Device); err != nil {
			return pendingIfInUse(err)
		}
	}
	if err := m.removePrivate(ctx, p.id, filepath.Join(m.privateDir(), mappingName(p.id))); err != nil {
		return pendingIfInUse(err)
	}
	return pendingIfInUse(m.detach(ctx, p.id))
}

// pendingIfInUse makes of an error that says that the volume is in use one that
// says to try again: a container that is about to end still has the mount, or
// somebody looks at a directory of it.
func pendingIfInUse(err error) error {
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w: %w", err, ErrRollbackPending)
	}
	return err
}

// startRollback starts to restore a volume that due says is to be. The slot is
// held.
func (m *Manager) startRollback(s *slot, p place) {
	r := &rollback{done: make(chan struct{})}
	m.mu.Lock()
	s.rollback = r
	m.mu.Unlock()
	started := m.spawn(func() {
		r.err = m.restore(r, p)
		r.ended = time.Now()
		close(r.done)
		m.changed(p.id)
		if r.err != nil && !errors.Is(r.err, ErrDamaged) {
			m.kick(p.id)
		}
	})
	if !started {
		r.err = fmt.Errorf("volume %s: shutting down: %w", p.id, ErrRollbackPending)
		close(r.done)
	}
}

// restore puts a volume that is not attached back to its checkpoint.
func (m *Manager) restore(r *rollback, p place) error {
	now, err := openOnDisk(p)
	if err != nil {
		return err
	}
	if now != nil && now.uid != "" {
		if err := m.noteRollback(p.id, now.uid); err != nil {
			return err
		}
	}
	if err := m.noteRestoring(p.id, true); err != nil {
		return err
	}
	began := time.Now()
	m.log.Info("rolling back", "volume", p.id)
	m.changed(p.id)
	result, err := engine.Restore(m.ctx, m.engine, mappingName(p.id), p.path, func(now *enginepb.RestoreProgress) {
		r.mu.Lock()
		r.phase, r.copied, r.total = now.Phase, now.Done, now.Total
		r.mu.Unlock()
		m.changed(p.id)
	})
	if err != nil {
		err = fromEngine(p.id, "rolling back", err)
		m.log.Error("the rollback has not been done", "volume", p.id, "error", err)
		if errors.Is(err, ErrDamaged) { // what remains to be done is a person's
			err = errors.Join(err, m.noteRestoring(p.id, false))
		}
		return err
	}
	if result.Outcome != enginepb.RestoreResult_RESTORED {
		m.log.Warn("there was nothing to roll back", "volume", p.id, "outcome", result.Outcome)
		return m.noteRestoring(p.id, false)
	}
	m.log.Info("rolled back", "volume", p.id, "bytes", result.PutBack, "duration", time.Since(began))
	_, err = m.updateRecord(p.id, func(r *record) {
		if c := r.Checkpoint; c != nil && c.Stage == rollingBack {
			c.Stage, c.Since, c.Bytes, c.Restoring = rolledBack, time.Now(), result.PutBack, false
		}
	})
	return err
}

// kick makes the Manager look after a volume that may have a rollback that is due.
func (m *Manager) kick(id string) {
	m.mu.Lock()
	m.waiting[id] = struct{}{}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run takes care of rollbacks while nobody calls.
func (m *Manager) run() {
	left, wait := m.recoverAll(), checkInterval
	for {
		m.mu.Lock()
		ids := make([]string, 0, len(m.waiting))
		for id := range m.waiting {
			ids = append(ids, id)
		}
		m.mu.Unlock()
		slices.Sort(ids)
		var tick <-chan time.Time
		for _, id := range ids {
			if m.advance(id) {
				tick = time.After(checkInterval)
			}
		}
		var retry <-chan time.Time
		if len(left) > 0 {
			retry = time.After(wait)
		}
		select {
		case <-m.ctx.Done():
			return
		case <-m.wake:
		case <-tick:
		case <-retry:
			left, wait = m.recoverThese(left), min(2*wait, retryInterval)
		}
	}
}

// advance does the next step of a rollback, if one is due, and tells whether there
// is more to do.
func (m *Manager) advance(id string) (more bool) {
	s := m.slot(id)
	select {
	case s.sem <- struct{}{}:
	default:
		return true
	}
	defer s.leave()
	// From here on, what others find to do they tell by another kick.
	m.mu.Lock()
	delete(m.waiting, id)
	m.mu.Unlock()
	again := func() bool {
		m.mu.Lock()
		m.waiting[id] = struct{}{}
		m.mu.Unlock()
		return true
	}
	if s.rollback.running() {
		return false
	}
	p, err := m.locate(Ref{ID: id})
	if err != nil {
		if !errors.Is(err, pool.ErrNotFound) {
			level := slog.LevelWarn
			if errors.Is(err, ErrMissing) {
				level = slog.LevelDebug // as of a static volume that nobody needs any more
			}
			m.log.Log(m.ctx, level, "looking for a rollback that is due", "volume", id, "error", err, "again after", retryInterval)
			time.AfterFunc(retryInterval, func() { m.kick(id) })
		}
		return false
	}
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	defer cancel()
	due, err := m.due(ctx, p)
	switch {
	case errors.Is(err, ErrRollbackPending), errors.Is(err, ErrEngineDown), errors.Is(err, ErrBusy), errors.Is(err, context.DeadlineExceeded):
		return again()
	case errors.Is(err, ErrDamaged): // until a person has seen to it
		m.log.Error("looking for a rollback that is due", "volume", id, "error", err)
		return false
	case err != nil:
		m.log.Error("looking for a rollback that is due", "volume", id, "error", err, "again after", retryInterval)
		time.AfterFunc(retryInterval, func() { m.kick(id) })
		return false
	case !due:
		return false
	}
	if s.rollback.failed() {
		// What is damaged is tried again when somebody wants the volume.
		return !s.rollback.damaged() && again()
	}
	m.startRollback(s, p)
	return false // when it fails it says so
}

// recoverAll finishes what an earlier Manager was doing when it ended. It returns
// the volumes with which that is to be tried again.
func (m *Manager) recoverAll() (left []string) {
	for m.ctx.Err() == nil {
		if _, err := m.engine.List(m.ctx, &enginepb.ListRequest{}); err == nil {
			break
		}
		select {
		case <-m.ctx.Done():
		case <-time.After(checkInterval):
		}
	}
	ids, err := m.recorded()
	if err != nil {
		m.log.Error("recovering", "error", err)
	}
	left = m.recoverThese(ids)
	m.recoverPool()
	return left
}

// recoverPool looks for rollbacks that are due in the pool, when it is there.
func (m *Manager) recoverPool() {
	problems, err := m.pool.Problems()
	for _, problem := range append(problems, err) {
		if problem != nil {
			m.log.Warn("the pool has something that cannot be used", "error", problem)
		}
	}
	all, err := m.pool.List()
	if errors.Is(err, pool.ErrUnavailable) {
		time.AfterFunc(retryInterval, func() { m.spawn(m.recoverPool) })
		return
	}
	if err != nil {
		m.log.Error("recovering", "error", err)
	}
	for _, v := range all {
		m.kick(v.ID)
	}
}

func (m *Manager) recoverThese(ids []string) (left []string) {
	for _, id := range ids {
		if m.ctx.Err() != nil {
			return nil
		}
		if err := m.recover(id); err != nil {
			m.log.Error("recovering; it is tried again", "volume", id, "error", err)
			left = append(left, id)
		}
	}
	return left
}

func (m *Manager) recover(id string) error {
	if err := m.thawForgotten(m.ctx, id); err != nil {
		return err
	}
	s, err := m.enter(m.ctx, id)
	if err != nil {
		return err
	}
	defer s.leave()
	dir := filepath.Join(m.privateDir(), mappingName(id))
	if _, err := os.Lstat(dir); err == nil {
		if err := m.removePrivate(m.ctx, id, dir); err != nil {
			return err
		}
	}
	m.kick(id)
	return nil
}
