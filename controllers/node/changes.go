package node

import (
	"context"
	"log/slog"
	"sync"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// changes collects the volumes whose facts have changed. However many there are,
// adding never blocks and a volume is in it once.
type changes struct {
	wake chan struct{} // has something when volumes may not be empty

	mu      sync.Mutex
	volumes map[string]struct{} // guarded by mu
}

func newChanges() *changes {
	return &changes{wake: make(chan struct{}, 1), volumes: make(map[string]struct{})}
}

func (c *changes) add(volume string) {
	c.mu.Lock()
	c.volumes[volume] = struct{}{}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *changes) take() map[string]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.volumes
	c.volumes = make(map[string]struct{})
	return taken
}

// handleField is the index of checkpoints by volume handle.
const handleField = "status.volumeHandle"

func indexHandle(o client.Object) []string {
	handle := o.(*v1alpha1.VolumeCheckpoint).Status.VolumeHandle
	if handle == "" {
		return nil
	}
	return []string{handle}
}

// pass adds the checkpoints of volumes that change to a queue until ctx is done.
func (c *changes) pass(ctx context.Context, cache client.Reader, log *slog.Logger, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		for volume := range c.take() {
			var list v1alpha1.VolumeCheckpointList
			if err := cache.List(ctx, &list, client.MatchingFields{handleField: volume}); err != nil {
				// The regular look at it comes anyway.
				log.Warn("cannot find the checkpoints of a volume that changed", "volume", volume, "error", err)
				continue
			}
			for i := range list.Items {
				queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
	}
}
