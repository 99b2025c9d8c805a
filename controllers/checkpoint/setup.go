package checkpoint

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	ctrlevent "sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// Indexes of VolumeCheckpoints in the cache.
const (
	claimIndex = "spec.persistentVolumeClaimName"
	// nodeIndex is by the node of those that are not over: status.nodeName,
	// or anyNode if they wait for one to appear.
	nodeIndex = "status.nodeName"
	anyNode   = "*"
	// HandleIndex is by the handle of the volume, of those that were matched
	// to one.
	HandleIndex = "status.volumeHandle"
)

// SetUp adds the indexes and the reconciler to the manager.
//
// Of claims and nodes only metadata is watched: it tells when to look, and there
// may be very many of them.
func (r *Reconciler) SetUp(ctx context.Context, m ctrl.Manager) error {
	for name, value := range map[string]func(*v1alpha1.VolumeCheckpoint) string{
		nodeIndex:   nodeOf,
		claimIndex:  func(c *v1alpha1.VolumeCheckpoint) string { return c.Spec.PersistentVolumeClaimName },
		HandleIndex: func(c *v1alpha1.VolumeCheckpoint) string { return c.Status.VolumeHandle },
	} {
		err := m.GetFieldIndexer().IndexField(ctx, &v1alpha1.VolumeCheckpoint{}, name, func(o client.Object) []string {
			if v := value(o.(*v1alpha1.VolumeCheckpoint)); v != "" {
				return []string{v}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return ctrl.NewControllerManagedBy(m).
		Named("volumecheckpoint").
		For(&v1alpha1.VolumeCheckpoint{}).
		// One that ends or vanishes may let another begin.
		Watches(&v1alpha1.VolumeCheckpoint{}, handler.EnqueueRequestsFromMapFunc(r.siblings),
			builder.WithPredicates(predicate.Funcs{CreateFunc: func(ctrlevent.CreateEvent) bool { return false }})).
		Watches(&v1alpha1.VolumeCheckpointGroup{}, handler.EnqueueRequestsFromMapFunc(r.members)).
		WatchesMetadata(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.ofClaim)).
		WatchesMetadata(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.onNode),
			builder.WithPredicates(predicate.Funcs{UpdateFunc: func(ctrlevent.UpdateEvent) bool { return false }})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

// workers is the number of checkpoints that are reconciled at the same time.
// Which of two on one volume goes first does not depend on who looks first.
const workers = 4

// requests lists checkpoints and returns those that keep says something is new
// for.
func (r *Reconciler) requests(ctx context.Context, keep func(*v1alpha1.VolumeCheckpoint) bool, options ...client.ListOption) []reconcile.Request {
	var list v1alpha1.VolumeCheckpointList
	if err := r.Client.List(ctx, &list, options...); err != nil {
		// Only what is missing from the cache's indexes can be wrong here.
		r.Log.Error("looking for checkpoints in the cache", "error", err)
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if keep(&list.Items[i]) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}

// waiting: no node was told of it, so it depends on other objects.
func waiting(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Step == "" && !c.Finished() }

func (r *Reconciler) siblings(ctx context.Context, o client.Object) []reconcile.Request {
	c := o.(*v1alpha1.VolumeCheckpoint)
	if !c.Finished() && c.DeletionTimestamp == nil {
		return nil
	}
	return r.requests(ctx, waiting, client.InNamespace(c.Namespace), client.MatchingFields{claimIndex: c.Spec.PersistentVolumeClaimName})
}

func (r *Reconciler) ofClaim(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, waiting, client.InNamespace(o.GetNamespace()), client.MatchingFields{claimIndex: o.GetName()})
}

func (r *Reconciler) onNode(ctx context.Context, o client.Object) []reconcile.Request {
	all := func(*v1alpha1.VolumeCheckpoint) bool { return true }
	return append(
		r.requests(ctx, all, client.MatchingFields{nodeIndex: o.GetName()}),
		r.requests(ctx, all, client.MatchingFields{nodeIndex: anyNode})...)
}

func nodeOf(c *v1alpha1.VolumeCheckpoint) string {
	switch a := c.Condition(v1alpha1.ConditionAccepted); {
	case c.Finished():
		return ""
	case waiting(c) && a != nil && a.Reason == v1alpha1.ReasonNodeNotFound:
		return anyNode
	}
	return c.Status.NodeName
}

func (r *Reconciler) members(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, func(c *v1alpha1.VolumeCheckpoint) bool { return metav1.IsControlledBy(c, o) },
		client.InNamespace(o.GetNamespace()), client.MatchingLabels{v1alpha1.LabelGroup: string(o.GetUID())})
}
