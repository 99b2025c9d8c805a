package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// staleCache has an object as it was before the last report.
type staleCache struct {
	client.Client
	object *v1alpha1.VolumeCheckpoint
}

func (s staleCache) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	s.object.DeepCopyInto(o.(*v1alpha1.VolumeCheckpoint))
	return nil
}

// TestStale: a checkpoint that was reported to be open is not dropped because there
// is less free space than it was to have when it was opened, though the cache does
// not know of the report yet.
func TestStale(t *testing.T) {
	c := checkpoint(minimumFree(20 * gib))
	c.Name, c.Namespace = "c", "n"
	v := newFakeVolumes(c.Status.VolumeHandle)
	v.change(c.Status.VolumeHandle, func(v *fakeVolume) { v.facts = inState(testUID, Open) })
	r := &reconciler{client: staleCache{object: c}, volumes: v, node: c.Status.NodeName, log: slog.New(slog.NewTextHandler(t.Output(), nil)), now: time.Now}
	r.mu.memory = map[types.NamespacedName]memory{}
	now := metav1.Now()
	status := c.Status
	status.CheckpointTime = &now
	r.wrote(r.log, c, &status, now.Time)
	result, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(c)})
	if err != nil || result.RequeueAfter == 0 || v.called("commit", c.Status.VolumeHandle) > 0 {
		t.Errorf("%+v, %v, committed %d times", result, err, v.called("commit", c.Status.VolumeHandle))
	}
}
