package volume

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// Status is what is so with a volume. Sizes are in bytes.
type Status struct {
	ID   string
	Path string // backing image or device
	Size int64  // of the mapping, or of the image

	Attached bool
	Device   string // mapped block device, while attached

	// Dead says that an engine was killed for good while the volume was in use:
	// every request of its users fails until they are gone.
	Dead bool

	// Failures are the operations of the backing device that failed.
	Failures Failures

	// SurvivesRestart says that the engine can be killed without an I/O error.
	SurvivesRestart bool

	// IOUring says that requests come over io_uring.
	IOUring bool

	Staged     bool
	Publishers []string // target paths

	// Open is the checkpoint that is open, and Last the last one that is known,
	// which is the same one while it is open.
	Open *OpenCheckpoint
	Last *LastCheckpoint

	// Rollback is set from when one was asked for until it is done.
	Rollback *RollbackStatus
}

// Failures are operations of a backing device that failed: those of users, and those
// for backups and the log. They are counted anew when another process serves the
// volume, or when it is attached again.
type Failures struct {
	Count uint64
	Last  string    // what the last one failed with
	At    time.Time // when that was
}

// failureMemory is for how long after a failure a backing device is taken to be
// failing.
const failureMemory = 10 * time.Minute

// Recent tells whether an operation has failed within the last ten minutes.
func (f Failures) Recent() bool {
	return f.Count > 0 && time.Since(f.At) < failureMemory
}

// OpenCheckpoint is a checkpoint that is open. What the engine knows of it is zero
// while the volume is not attached.
type OpenCheckpoint struct {
	UID               string
	Opened            time.Time
	RollbackRequested bool
	CommitWhenFull    bool

	Free        int64 // usable for backups
	BackedUp    int64
	Changed     int64
	BackupUsed  int64
	Moved       int64 // backups that had to make way for the file system
	LogSequence int64
	OutOfSpace  int64 // requests that failed for want of space
	Unsettled   bool  // the last write of the log failed
}

// Outcome is what became of a checkpoint.
type Outcome string

// Outcomes.
const (
	Open       Outcome = "Open"
	Committed  Outcome = "Committed"
	RolledBack Outcome = "RolledBack"
)

// Reasons for an outcome that was not asked for here.
const (
	// ReasonOutOfSpace: the engine committed it, as it was told for that case.
	ReasonOutOfSpace = "OutOfSpace"
	// ReasonOutside: it was ended by other means, by hand for instance.
	ReasonOutside = "EndedOutside"
)

// LastCheckpoint is the last checkpoint of a volume.
type LastCheckpoint struct {
	UID     string
	Outcome Outcome
	Reason  string // "" if it was asked for
	At      time.Time

	// Frozen is for how long the file system was frozen when it was opened.
	Frozen time.Duration
	// PutBack is how many bytes a rollback has put back.
	PutBack int64
}

// RollbackStatus is a rollback that was asked for.
type RollbackStatus struct {
	// WaitingFor are the target paths of those who still use the volume.
	WaitingFor []string

	// Running says that old content is being checked (Verifying) or put back.
	Running   bool
	Verifying bool
	Done      int64 // bytes of this step
	Total     int64 // bytes

	// Err is why the last try failed. It is tried again.
	Err error
}

// Status tells what is so with a volume. It waits for no other operation.
func (m *Manager) Status(ctx context.Context, id string) (Status, error) {
	p, err := m.locate(Ref{ID: id})
	if err != nil {
		return Status{}, err
	}
	return m.look(ctx, p)
}

// look is read, but what looks damaged is looked at again while nothing else is
// under way: half of what an operation writes may look like that.
func (m *Manager) look(ctx context.Context, p place) (Status, error) {
	found, err := m.read(ctx, p)
	if !errors.Is(err, ErrDamaged) {
		return found, err
	}
	s := m.slot(p.id)
	select {
	case s.sem <- struct{}{}:
		defer s.leave()
	default:
		return Status{}, fmt.Errorf("volume %s: %w", p.id, ErrBusy)
	}
	if s.rollback.running() {
		return Status{}, fmt.Errorf("volume %s: it is being rolled back: %w", p.id, ErrBusy)
	}
	return m.read(ctx, p)
}

// read reads the record of a volume and what it tells of until one fits the other:
// something else may be under way. An old record and a new volume would look like a
// checkpoint that was ended by nobody.
func (m *Manager) read(ctx context.Context, p place) (Status, error) {
	r, err := m.loadRecord(p.id)
	for err == nil {
		v, err := m.ask(ctx, p.id)
		if err != nil {
			return Status{}, err
		}
		s, err := m.status(p, v, r)
		if err != nil {
			return s, err
		}
		after, err := m.loadRecord(p.id)
		if err != nil || reflect.DeepEqual(r, after) {
			return s, err
		}
		r = after
	}
	return Status{}, err
}

// List tells of all volumes of the pool and of those that were staged, by ID.
func (m *Manager) List(ctx context.Context) ([]Status, error) {
	ids, err := m.recorded()
	if err != nil {
		return nil, err
	}
	volumes, err := m.pool.List()
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		ids = append(ids, v.ID)
	}
	slices.Sort(ids)
	var list []Status
	for _, id := range slices.Compact(ids) {
		p, err := m.locate(Ref{ID: id})
		if err != nil {
			continue // deleted in the meantime, or a record of what is gone
		}
		s, err := m.look(ctx, p)
		if errors.Is(err, ErrEngineDown) || ctx.Err() != nil {
			return nil, err
		}
		if err != nil {
			m.log.Warn("a volume cannot be looked at", "volume", id, "error", err)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

func (m *Manager) status(p place, v *enginepb.Volume, r record) (s Status, err error) {
	s = Status{ID: p.id, Path: p.path}
	if v != nil && !isExportOf(v.Device, p.id) {
		v = nil // on its way out, see attached
	}
	if p.pool != nil {
		s.Size = p.pool.Size
	}
	var now *current
	if v != nil {
		s.Attached, s.Device, s.Size = true, v.Device, v.Size
		s.SurvivesRestart, s.IOUring = v.SurvivesRestart, v.IoUring
		if f := v.Failures; f != nil {
			s.Failures = Failures{Count: f.Count, Last: f.Last, At: f.At.AsTime()}
		}
		now = openInEngine(v)
		if err := m.addPublishers(&s, v.Device, r.StagingPath); err != nil {
			return s, err
		}
	} else if now, err = openOnDisk(p); err != nil {
		return s, err
	}
	if r.StagingPath != "" {
		_, device, err := filesystem.MountedAt(r.StagingPath)
		if err != nil && !errors.Is(err, filesystem.ErrNotMounted) {
			return s, fmt.Errorf("volume %s: %w", p.id, err)
		}
		s.Staged = err == nil && v != nil && device == v.Device
		s.Dead = err == nil && v == nil && isExportOf(device, p.id)
		if s.Dead {
			if err := m.addPublishers(&s, device, r.StagingPath); err != nil {
				return s, err
			}
		}
	}
	if now != nil {
		s.Open = describeOpen(now, v)
	}
	s.Last = describeLast(settled(r.Checkpoint, now, v.GetEnded()))
	s.Rollback = m.describeRollback(p.id, s, r)
	return s, nil
}

func (m *Manager) addPublishers(s *Status, device, staging string) error {
	users, err := m.users(device, staging)
	if err != nil {
		return fmt.Errorf("volume %s: %w", s.ID, err)
	}
	for _, u := range users {
		s.Publishers = append(s.Publishers, u.Path)
	}
	return nil
}

// isExportOf tells whether a device is, or was, the mapping of the volume.
func isExportOf(device, id string) bool {
	return fuse.NameOf(device) == mappingName(id)
}

func describeOpen(now *current, v *enginepb.Volume) *OpenCheckpoint {
	o := &OpenCheckpoint{UID: now.uid, Opened: now.opened, RollbackRequested: now.rollback}
	if v.GetOpen() == nil {
		return o
	}
	o.CommitWhenFull = v.Open.CommitWhenFull
	o.Free = v.Free
	o.BackedUp = v.Open.BackedUp
	o.Changed = v.Open.Changed
	o.BackupUsed = v.Open.BackupUsed
	o.Moved = v.Open.Moved
	o.LogSequence = int64(v.Open.LogSequence)
	o.OutOfSpace = v.Open.OutOfSpace
	o.Unsettled = v.Open.Unsettled
	return o
}

func describeLast(c *checkpointRecord) *LastCheckpoint {
	if c == nil || c.Stage == opening {
		return nil
	}
	l := &LastCheckpoint{UID: c.UID, Outcome: Open, Reason: c.Reason, At: c.Since, Frozen: c.Frozen, PutBack: c.Bytes}
	switch c.Stage {
	case committed:
		l.Outcome = Committed
	case rolledBack:
		l.Outcome = RolledBack
	}
	return l
}

func (m *Manager) describeRollback(id string, s Status, r record) *RollbackStatus {
	m.mu.Lock()
	var job *rollback
	if slot := m.slots[id]; slot != nil {
		job = slot.rollback
	}
	m.mu.Unlock()
	if job.running() {
		job.mu.Lock()
		defer job.mu.Unlock()
		return &RollbackStatus{
			Running:   true,
			Verifying: job.phase == enginepb.RestoreProgress_VERIFY,
			Done:      job.copied,
			Total:     job.total,
		}
	}
	asked := s.Open != nil && (s.Open.RollbackRequested || !s.Attached && r.asksForRollback(s.Open.UID))
	if !asked {
		return nil
	}
	status := &RollbackStatus{WaitingFor: s.Publishers}
	if job != nil {
		status.Err = job.err
	}
	return status
}

// Health is whether a volume can be used.
type Health struct {
	Abnormal bool
	Reason   string // CamelCase; one of the Reason constants of health
	Message  string
}

// Reasons why a volume is not healthy.
const (
	HealthRollback   = "RollbackInProgress"
	HealthEngineLost = "EngineLost"
	HealthDamaged    = "CheckpointLogCorrupt"
	HealthNoSpace    = "CheckpointOutOfSpace"
	HealthUnsettled  = "CheckpointWriteFailed"
	HealthDevice     = "BackingDeviceFailed"
)

// Health tells whether a volume can be used. An error means that it cannot be
// told, or that there is no such volume.
func (m *Manager) Health(ctx context.Context, id string) (Health, error) {
	s, err := m.Status(ctx, id)
	bad := func(reason, format string, args ...any) (Health, error) {
		return Health{Abnormal: true, Reason: reason, Message: fmt.Sprintf(format, args...)}, nil
	}
	switch {
	case errors.Is(err, ErrDamaged):
		return bad(HealthDamaged, "%v", err)
	case err != nil:
		return Health{}, err
	case s.Dead:
		return bad(HealthEngineLost, "the process that served the volume was killed; its users get I/O errors until their pods are deleted and made anew")
	case s.Rollback != nil && s.Rollback.Err != nil:
		return bad(HealthRollback, "the volume is to be rolled back, and that fails: %v", s.Rollback.Err)
	case s.Rollback != nil && s.Rollback.Running:
		return bad(HealthRollback, "the volume is being rolled back: %d of %d bytes", s.Rollback.Done, s.Rollback.Total)
	case s.Open != nil && s.Open.Unsettled:
		return bad(HealthUnsettled, "the log of the checkpoint could not be written; the next write tries again")
	case s.Open != nil && s.Open.OutOfSpace > 0:
		return bad(HealthNoSpace, "%d writes failed because there was no free space for backups: commit or roll back the checkpoint, or delete files", s.Open.OutOfSpace)
	case s.Failures.Recent():
		return bad(HealthDevice, "%d operations of the backing device failed, the last one %s: %s",
			s.Failures.Count, s.Failures.At.UTC().Format(time.RFC3339), s.Failures.Last)
	}
	return Health{Message: "the volume is usable"}, nil
}
