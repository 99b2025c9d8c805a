package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/controllers/node"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// watchCheckpoints does what VolumeCheckpoints ask of this node's volumes until
// ctx is done. Where there is no cluster, it does nothing.
func watchCheckpoints(ctx context.Context, nodeName string, m *volume.Manager, metrics prometheus.Registerer, log *slog.Logger) error {
	api, err := clusterAPI()
	if errors.Is(err, rest.ErrNotInCluster) {
		log.Warn("VolumeCheckpoints are not watched: this does not run in a cluster, and KUBECONFIG is not set")
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	logTo(log)
	return node.Run(ctx, node.Config{Node: nodeName, API: api, Volumes: checkpointed{m}, Metrics: metrics, Log: log})
}

// clusterAPI tells how to reach the API server: of the file that KUBECONFIG names,
// or of the cluster that this runs in.
func clusterAPI() (*rest.Config, error) {
	if file := os.Getenv("KUBECONFIG"); file != "" {
		return clientcmd.BuildConfigFromFlags("", file)
	}
	return rest.InClusterConfig()
}

// checkpointed lets the reconciler of checkpoints at the volumes of a Manager.
type checkpointed struct{ m *volume.Manager }

func (c checkpointed) Watch(changed func(string)) { c.m.Watch(changed) }

// Facts implements node.Volumes.
func (c checkpointed) Facts(ctx context.Context, id string) (node.Facts, error) {
	s, err := c.m.Status(ctx, id)
	if err != nil {
		return node.Facts{}, forNode(err)
	}
	return factsOf(s), nil
}

func (c checkpointed) Prepare(ctx context.Context, id, uid string) error {
	return forNode(unused(c.m.Prepare(ctx, id, uid)))
}

func (c checkpointed) Checkpoint(ctx context.Context, id, uid string, o node.Options) error {
	return forNode(unused(c.m.Checkpoint(ctx, id, uid, volume.CheckpointOptions(o))))
}

// unused says of a volume that was never used, on which no checkpoint can be
// opened, that it is not in use: once it is, there is something to go back to.
func unused(err error) error {
	if errors.Is(err, volume.ErrInvalid) {
		return fmt.Errorf("%w: %w", node.ErrNotStaged, err)
	}
	return err
}

func (c checkpointed) Freeze(ctx context.Context, id, uid string, hold time.Duration) error {
	return forNode(c.m.Freeze(ctx, id, uid, min(hold, volume.MaxHold)))
}

func (c checkpointed) CheckpointFrozen(ctx context.Context, id, uid string, o node.Options) error {
	return forNode(unused(c.m.CheckpointFrozen(ctx, id, uid, volume.CheckpointOptions(o))))
}

func (c checkpointed) Thaw(ctx context.Context, id string) error { return forNode(c.m.Thaw(ctx, id)) }

func (c checkpointed) Commit(ctx context.Context, id, uid string) error {
	return forNode(c.m.Commit(ctx, id, uid))
}

func (c checkpointed) Rollback(ctx context.Context, id, uid string) error {
	return forNode(c.m.Rollback(ctx, id, uid))
}

// factsOf says what a Manager knows of a volume in the words of the reconciler.
func factsOf(s volume.Status) node.Facts {
	f := node.Facts{Staged: s.Staged, Publishers: s.Publishers}
	if s.Failures.Recent() {
		f.DeviceError = s.Failures.Last
	}
	if r := s.Rollback; r != nil {
		f.Rollback = &node.Rollback{WaitingFor: r.WaitingFor, Done: r.Done, Total: r.Total, Err: forNode(r.Err)}
		if r.Verifying {
			f.Rollback.Done = 0 // nothing is put back before all is verified
		}
	}
	if o := s.Open; o != nil {
		f.Open = &node.Checkpoint{
			ID: canonical(o.UID), State: node.Open, Opened: o.Opened,
			Measured: s.Attached, Free: o.Free, BackedUp: o.BackedUp, Changed: o.Changed, Moved: o.Moved,
			OutOfSpace: o.OutOfSpace > 0,
		}
		switch {
		case s.Rollback != nil && s.Rollback.Running:
			f.Open.State = node.RollingBack
		case s.Rollback != nil || o.RollbackRequested:
			f.Open.State = node.RollbackRequested
		}
	}
	l := s.Last
	switch {
	case l == nil:
	case l.Outcome == volume.Open:
		if f.Open != nil && f.Open.ID == canonical(l.UID) {
			f.Open.Frozen = l.Frozen
		}
	default:
		f.Last = &node.Ended{ID: canonical(l.UID), At: l.At, Outcome: node.Lost}
		switch {
		case l.Outcome == volume.RolledBack:
			f.Last.Outcome = node.RolledBack
		case l.Reason == volume.ReasonOutOfSpace:
			f.Last.Outcome = node.OutOfSpace
		case l.Reason == volume.ReasonOutside:
			f.Last.Reason = "It was ended by other means, by 'bowline device' for instance."
		case l.Outcome == volume.Committed:
			f.Last.Outcome = node.Committed
		}
	}
	return f
}

// canonical is the form that UIDs of Kubernetes have, of a UUID with or without
// dashes.
func canonical(id string) string {
	plain := strings.ToLower(strings.ReplaceAll(id, "-", ""))
	if len(plain) != 32 {
		return id
	}
	return strings.Join([]string{plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]}, "-")
}

// forNode adds to an error of a Manager what the reconciler calls it.
func forNode(err error) error {
	for _, pair := range []struct{ from, to error }{
		{volume.ErrEngineDown, node.ErrEngineDown},
		{context.DeadlineExceeded, node.ErrBusy},
		{volume.ErrDamaged, node.ErrDamaged},
		{pool.ErrDamaged, node.ErrDamaged},
		{pool.ErrNotFound, node.ErrNotFound},
		{pool.ErrForeign, node.ErrNotFound},
		{volume.ErrMissing, node.ErrMissing},
		{volume.ErrNotStaged, node.ErrNotStaged},
		{volume.ErrNotFrozen, node.ErrNotFrozen},
		{volume.ErrCheckpointOpen, node.ErrCheckpointOpen},
		{volume.ErrRollbackPending, node.ErrRollbackPending},
		{volume.ErrNoSpace, node.ErrNoSpace},
		{volume.ErrBusy, node.ErrBusy},
		{volume.ErrInUse, node.ErrBusy},
	} {
		if errors.Is(err, pair.from) {
			return fmt.Errorf("%w: %w", pair.to, err)
		}
	}
	return err
}
