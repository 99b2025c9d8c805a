// Package volume is the life of a volume on a node: attach, stage, publish,
// checkpoint, commit, roll back, and back again. It knows nothing of CSI's
// messages nor of the Kubernetes API; package csi and the node's reconciler are
// thin layers above it.
//
// # Where the truth is
//
// In the kernel (what is mounted where), in the engine (what is attached, in
// which state), on the volume (whose checkpoint is open, whether it is to be
// rolled back) and in the pool. A Manager asks them anew for each operation, so
// it can be killed and replaced at any time. What none of them can tell is in a
// small record of each volume, see record.
//
// # Rolling back
//
// A rollback is first written into the log on the volume itself. From then on
// nobody gets the volume published, and as soon as nobody uses it any more it is
// unmounted, detached and restored. Nothing puts it back where it was staged: the
// next Publish finds that and stages it again, as it does after a crash.
//
// # One at a time
//
// Operations on one volume exclude each other. One that comes while another runs
// waits a little and then fails with ErrBusy; all of them are idempotent and
// finish what an earlier one began, so the caller tries again.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/pool"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What the errors of a Manager wrap, besides those of package pool.
var (
	// ErrInvalid: the request makes no sense for this volume; trying again does
	// not help.
	ErrInvalid = errors.New("invalid request")

	// ErrBusy: another operation on this volume is under way. Try again.
	ErrBusy = errors.New("another operation on the volume is under way")

	// ErrInUse: somebody uses the volume.
	ErrInUse = errors.New("the volume is in use")

	// ErrIncompatible: the volume is at that path already, in another way than is
	// asked for: with other rights to write, raw, or with another file system.
	ErrIncompatible = errors.New("the volume is there in another way")

	// ErrUnsupported: the volume can be used, but not in this way.
	ErrUnsupported = errors.New("the volume cannot be used in this way")

	// ErrPublished: the volume is to have one user only and has another one.
	ErrPublished = errors.New("the volume is published to another pod")

	// ErrNotStaged: nothing of the volume is where the request expects it.
	ErrNotStaged = errors.New("the volume is not staged")

	// ErrRollbackPending: the volume is to be rolled back, or is being rolled
	// back, and cannot be used until that is done. Try again.
	ErrRollbackPending = errors.New("the volume is being rolled back")

	// ErrCheckpointOpen: not possible while a checkpoint is open, or one is open
	// that is not the one meant.
	ErrCheckpointOpen = errors.New("a checkpoint is open on the volume")

	// ErrNoCheckpoint: the checkpoint that is meant is not open.
	ErrNoCheckpoint = errors.New("no such checkpoint is open on the volume")

	// ErrNoSpace: the volume has no free space for backups.
	ErrNoSpace = errors.New("no free space for backups on the volume")

	// ErrDamaged: what is on the volume is not what should be there. A person
	// has to look at it.
	ErrDamaged = errors.New("the content of the volume is not as expected")

	// ErrMissing: the device of a volume that was staged before is not there, or
	// not yet, as when a node has just been started.
	ErrMissing = errors.New("the device of the volume is not there")

	// ErrEngineDown: the engine does not answer. Try again.
	ErrEngineDown = errors.New("the engine does not answer")
)

// patience is how long an operation waits for another one on the same volume, and
// for a rollback, before it says to try again.
const patience = 5 * time.Second

// Config is what a Manager needs.
type Config struct {
	Pool   *pool.Pool
	Engine enginepb.EngineClient

	// StateDir is where the records of volumes are kept; it must survive
	// reboots. One Manager at a time may use it, as one Pool its directory.
	StateDir string

	Log *slog.Logger
}

// Manager does what is to be done with the volumes of a node.
type Manager struct {
	pool     *pool.Pool
	engine   enginepb.EngineClient
	stateDir string
	log      *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // what runs on by itself

	mu      sync.Mutex
	closed  bool                // guarded by mu
	slots   map[string]*slot    // guarded by mu
	watches []func(id string)   // guarded by mu
	waiting map[string]struct{} // volumes that may have a rollback that is due; guarded by mu
	wake    chan struct{}       // says that there is one more; one token

	records sync.Mutex // held while a record is changed
}

// slot is what a Manager knows of a volume while it runs.
type slot struct {
	// sem is held by the operation under way: one token.
	sem chan struct{}

	// All guarded by sem, and rollback also by Manager.mu where it is written.
	frozen   *frozen
	prepared string // uid of a checkpoint for which free space is known
	rollback *rollback
	search   *search // for data on a device that seems to be blank
}

// Ref names a volume.
type Ref struct {
	// ID is the volume handle.
	ID string

	// Device is the image file or block device of a volume that somebody else
	// provides. Empty means that the volume is from the pool, or was staged
	// before.
	Device string
}

// New returns a Manager. It thaws what an earlier one left frozen and goes on with
// rollbacks that are due; Close ends that.
func New(c Config) (*Manager, error) {
	m := &Manager{
		pool: c.Pool, engine: c.Engine, stateDir: c.StateDir, log: c.Log,
		slots: map[string]*slot{}, waiting: map[string]struct{}{}, wake: make(chan struct{}, 1),
	}
	if err := os.MkdirAll(m.recordDir(), 0o700); err != nil {
		return nil, fmt.Errorf("starting with volumes: %w", err)
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.work.Go(m.run)
	m.work.Go(m.refill)
	return m, nil
}

// Close ends what a Manager does by itself: file systems that are frozen for a
// group are thawed, rollbacks under way stop and go on with the next Manager.
// Operations fail from now on.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.work.Wait()
	m.thawAll()
}

// spawn runs f on its own unless the Manager is closed. The caller gets to know
// whether it does.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Go(f)
	return true
}

// Watch makes the Manager call f with the ID of a volume when something about it
// changed: its users, its checkpoint, the progress of a rollback. f must not block.
func (m *Manager) Watch(f func(id string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watches = append(m.watches, f)
}

func (m *Manager) changed(id string) {
	m.mu.Lock()
	watches := m.watches
	m.mu.Unlock()
	for _, f := range watches {
		f(id)
	}
}

func (m *Manager) slot(id string) *slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.slots[id]
	if s == nil {
		s = &slot{sem: make(chan struct{}, 1)}
		m.slots[id] = s
	}
	return s
}

// enter begins an operation on a volume; the caller ends it with leave.
func (m *Manager) enter(ctx context.Context, id string) (*slot, error) {
	if id == "" {
		return nil, fmt.Errorf("a volume without an ID: %w", ErrInvalid)
	}
	s := m.slot(id)
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case s.sem <- struct{}{}:
	case <-wait.Done():
		return nil, fmt.Errorf("volume %s: %w", id, ErrBusy)
	}
	if m.ctx.Err() != nil {
		s.leave()
		return nil, fmt.Errorf("volume %s: shutting down: %w", id, ErrBusy)
	}
	return s, nil
}

func (s *slot) leave() { <-s.sem }

// place is where a volume is.
type place struct {
	id   string
	path string       // image file or block device
	pool *pool.Volume // nil if it is not from the pool

	target string // where it is about to be published; "" if it is not
}

// locate finds a volume. The error wraps pool.ErrNotFound if there is none, and
// ErrMissing if it is known, but not there.
func (m *Manager) locate(ref Ref) (place, error) {
	p := place{id: ref.ID, path: ref.Device}
	if p.path == "" {
		r, err := m.loadRecord(ref.ID)
		if err != nil {
			return p, err
		}
		p.path = r.Device
	}
	if p.path != "" {
		if !filepath.IsAbs(p.path) {
			return p, fmt.Errorf("volume %s: device %q is not an absolute path: %w", ref.ID, p.path, ErrInvalid)
		}
		if fi, err := os.Stat(p.path); err != nil && ref.Device == "" {
			return p, fmt.Errorf("volume %s: %w: %w", ref.ID, err, ErrMissing)
		} else if err != nil {
			return p, fmt.Errorf("volume %s: device: %w: %w", ref.ID, err, pool.ErrNotFound)
		} else if fi.Mode()&os.ModeDevice == 0 && !fi.Mode().IsRegular() || fi.Mode()&os.ModeCharDevice != 0 {
			return p, fmt.Errorf("volume %s: %s is neither an image file nor a block device: %w", ref.ID, p.path, ErrInvalid)
		}
		return p, nil
	}
	v, err := m.pool.Get(ref.ID)
	if err != nil {
		return p, err
	}
	p.path, p.pool = v.Path, &v
	return p, nil
}

// fromEngine makes our errors of those of the engine.
func fromEngine(id, doing string, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	var kind error
	switch s.Code() {
	case codes.Unavailable:
		kind = ErrEngineDown
	case codes.ResourceExhausted:
		kind = ErrNoSpace
	case codes.DataLoss:
		kind = ErrDamaged
	case codes.FailedPrecondition:
		kind = ErrInUse
	case codes.InvalidArgument, codes.AlreadyExists:
		kind = ErrInvalid
	case codes.Canceled:
		kind = context.Canceled
	case codes.DeadlineExceeded:
		kind = context.DeadlineExceeded
	default:
		return fmt.Errorf("volume %s: %s: %s", id, doing, s.Message())
	}
	return fmt.Errorf("volume %s: %s: %s: %w", id, doing, s.Message(), kind)
}

// attached asks the engine for a volume; nil means that it is not attached. The
// slot is held.
func (m *Manager) attached(ctx context.Context, id string) (*enginepb.Volume, error) {
	v, err := m.ask(ctx, id)
	if v == nil || err != nil || isExportOf(v.Device, id) {
		return v, err
	}
	// The device was taken away, or is on its way out after a Detach that took
	// too long. Its number may be that of another volume by now.
	if err := m.detach(ctx, id); err != nil {
		return nil, fmt.Errorf("%w: its device is on its way out: %w", err, ErrBusy)
	}
	return nil, nil
}

// ask is attached for those who only look: it does not have the slot, and what it
// returns may be over.
func (m *Manager) ask(ctx context.Context, id string) (*enginepb.Volume, error) {
	v, err := m.engine.Get(ctx, &enginepb.GetRequest{Name: mappingName(id)})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fromEngine(id, "asking the engine", err)
	}
	return v, nil
}

// hold opens the device of a mapping and makes sure that it is the volume's. While
// it is open the number cannot become another device's.
func hold(id string, v *enginepb.Volume) (*os.File, error) {
	f, err := os.Open(v.Device)
	if err != nil {
		return nil, fmt.Errorf("volume %s: its device: %w", id, err)
	}
	if !isExportOf(v.Device, id) {
		return nil, errors.Join(fmt.Errorf("volume %s: %s is not its device any more: %w", id, v.Device, ErrBusy), f.Close())
	}
	return f, nil
}
