package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	// freezeHold is how long a volume stays frozen for its group at the most.
	freezeHold = 10 * time.Second

	// actionLimit is how long one action may take. Finding the free space of a
	// large file system that is not warm takes longest.
	actionLimit = 10 * time.Minute

	// lookInterval is how often an open checkpoint is looked at, which costs a
	// question to the engine: what happens there by itself, such as running out of
	// space, nobody tells.
	lookInterval = 3 * time.Second

	// factsInterval is how often the amounts of an open checkpoint are reported
	// if they change, and progressInterval those of a rollback.
	factsInterval    = 30 * time.Second
	progressInterval = 2 * time.Second
)

// reconciler does for one checkpoint what its spec and status ask of the node,
// and reports what has become of it.
type reconciler struct {
	client  client.Client // whose cache has the checkpoints of this node
	pods    client.Reader // without cache
	volumes Volumes
	node    string
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time

	mu struct {
		sync.Mutex // no I/O under it
		memory     map[types.NamespacedName]memory
	}
}

// memory is what is remembered of a checkpoint from one reconciliation to the
// next. Nothing is wrong if it is lost.
type memory struct {
	written   time.Time // the last report
	opened    types.UID // of the object, once it was reported to be open
	ended     types.UID // of the object, once its end was reported
	restoring time.Time // when the rollback was first seen at work
	// The target paths that a rollback waits for, as last looked up, and whose
	// they are.
	targets, users []string
}

func (r *reconciler) remember(key types.NamespacedName) memory {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.memory[key]
}

func (r *reconciler) change(key types.NamespacedName, change func(*memory)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.mu.memory[key]
	change(&m)
	r.mu.memory[key] = m
}

// forget drops what is kept in memory of a checkpoint, that for metrics as well.
func (r *reconciler) forget(key types.NamespacedName) {
	r.metrics.observe(key, "", nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.memory, key)
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var c v1alpha1.VolumeCheckpoint
	if err := r.client.Get(ctx, req.NamespacedName, &c); err != nil {
		if apierrors.IsNotFound(err) {
			r.forget(req.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	// Anybody may set a label; the status is the controller's.
	if c.Status.NodeName != r.node || !c.OnVolume() {
		r.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	// What was read may be older than the report of the end, after which nothing
	// is begun, or than that of the beginning, after which little free space is no
	// reason any more to drop the checkpoint.
	known := r.remember(req.NamespacedName)
	if known.ended == c.UID || !reported(&c) && known.opened == c.UID {
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	log := r.log.With("volume", c.Status.VolumeHandle, "checkpoint", req.String(), "claim", c.Spec.PersistentVolumeClaimName)

	o := r.advance(ctx, log, &c)
	if o.facts.Rollback != nil {
		o.waitingFor = r.users(ctx, log, &c, o.facts.Rollback.WaitingFor)
	}
	now := r.now()
	status := report(&c, o, now)
	r.observe(req.NamespacedName, &c, o.facts)
	if worthWriting(&c, &status, r.remember(req.NamespacedName).written, now) {
		if err := r.write(ctx, &c, status); err != nil {
			// Deleted, or deleted and made again with the same name. The cache
			// will tell soon.
			if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
				return reconcile.Result{RequeueAfter: time.Second}, nil
			}
			return reconcile.Result{}, err
		}
		r.wrote(log, &c, &status, now)
	}
	return r.again(&status, o)
}

// advance does what is to be done to the volume of c.
func (r *reconciler) advance(ctx context.Context, log *slog.Logger, c *v1alpha1.VolumeCheckpoint) (o outcome) {
	volume := c.Status.VolumeHandle
	// A second round is for what is to be done about a checkpoint that was just
	// opened.
	for range 2 {
		if o.facts, o.err = r.volumes.Facts(ctx, volume); o.err != nil {
			o.err = fmt.Errorf("looking at volume %s: %w", volume, o.err)
			return o
		}
		next := decide(c, o.facts)
		if next == doNothing {
			return o
		}
		o.did = next
		began := r.now()
		o.err = r.act(ctx, c, next)
		if next != doRollback || o.err != nil { // it has only been marked
			r.metrics.operation(string(next), began, o.err)
		}
		if o.err != nil {
			o.err = fmt.Errorf("%s of volume %s: %w", next, volume, o.err)
			log.Warn("an operation on a checkpoint failed", "operation", string(next), "duration", r.now().Sub(began), "error", o.err)
			break
		}
		log.Info("operation on a checkpoint done", "operation", string(next), "duration", r.now().Sub(began))
		if next != doCheckpoint && next != doSwitch {
			break
		}
	}
	// What holds after the action, be it done or not, is what is reported.
	facts, err := r.volumes.Facts(ctx, volume)
	if err == nil {
		o.facts = facts
	} else if o.err == nil {
		o = outcome{err: fmt.Errorf("looking at volume %s: %w", volume, err)}
	}
	return o
}

func (r *reconciler) act(ctx context.Context, c *v1alpha1.VolumeCheckpoint, a action) error {
	ctx, cancel := context.WithTimeout(ctx, actionLimit)
	defer cancel()
	volume, id := c.Status.VolumeHandle, string(c.UID)
	options := Options{CommitWhenFull: c.Spec.OutOfSpacePolicy == v1alpha1.OutOfSpaceCommit}
	switch a {
	case doPrepare:
		return r.volumes.Prepare(ctx, volume, id)
	case doFreeze:
		return r.volumes.Freeze(ctx, volume, id, freezeHold)
	case doSwitch:
		return r.volumes.CheckpointFrozen(ctx, volume, id, options)
	case doCheckpoint:
		return r.volumes.Checkpoint(ctx, volume, id, options)
	case doThaw:
		return r.volumes.Thaw(ctx, volume)
	case doCommit:
		return r.volumes.Commit(ctx, volume, id)
	case doRollback:
		return r.volumes.Rollback(ctx, volume, id)
	}
	return fmt.Errorf("no such action: %q", a)
}

// users returns the pods at target paths. Names are looked up when the paths
// change only; without them the paths are shown.
func (r *reconciler) users(ctx context.Context, log *slog.Logger, c *v1alpha1.VolumeCheckpoint, targets []string) []string {
	if len(targets) == 0 {
		return nil
	}
	key := client.ObjectKeyFromObject(c)
	if known := r.remember(key); slices.Equal(known.targets, targets) {
		return known.users
	}
	names, err := podsOnNode(ctx, r.pods, c.Namespace, r.node)
	if err != nil {
		log.Warn("the names of the pods that use the volume are not known", "error", err)
		return podNames(c.Namespace, targets, nil)
	}
	users := podNames(c.Namespace, targets, names)
	r.change(key, func(m *memory) { m.targets, m.users = targets, users })
	return users
}

// again tells when to look at the checkpoint again if nothing happens before.
func (r *reconciler) again(status *v1alpha1.VolumeCheckpointStatus, o outcome) (reconcile.Result, error) {
	after := jitter(factsInterval)
	switch {
	case status.Over():
		return reconcile.Result{}, nil // the write comes back by the cache
	case o.err == nil && o.facts.Open != nil && o.facts.Open.State == RollingBack:
		after = progressInterval
	case o.err == nil && o.facts.Open != nil:
		after = jitter(lookInterval)
	case o.err == nil:
	case errors.Is(o.err, ErrBusy):
		after = time.Second
	case errors.Is(o.err, ErrEngineDown), errors.Is(o.err, ErrRollbackPending):
		after = 3 * time.Second
	case errors.Is(o.err, ErrNotStaged), errors.Is(o.err, ErrNotFound): // told by Watch
	case errors.Is(o.err, ErrMissing):
	case errors.Is(o.err, ErrDamaged): // until a person has seen to it
	default:
		return reconcile.Result{}, o.err // more and more slowly
	}
	return reconcile.Result{RequeueAfter: after}, nil
}

// jitter returns d give or take a tenth, so that the nodes of a cluster that
// started at once do not report at once.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5)
}
