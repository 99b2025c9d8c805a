// Package group opens checkpoints on several claims at one instant, or on none,
// and makes them end together. It makes a VolumeCheckpoint for each claim and
// says in the group's status how far they may go; package checkpoint passes
// that on to them, and their nodes do it.
package group

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/controllers/checkpoint"
)

// A Reconciler reconciles VolumeCheckpointGroups.
type Reconciler struct {
	Client client.Client // reads groups and checkpoints from a cache
	Live   client.Reader // reads claims and workloads from the API server
	Events *checkpoint.Events
	Now    func() time.Time
	Log    *slog.Logger
}

// SetUp adds the reconciler to the manager.
func (r *Reconciler) SetUp(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).
		Named("volumecheckpointgroup").
		For(&v1alpha1.VolumeCheckpointGroup{}).
		Owns(&v1alpha1.VolumeCheckpoint{}).
		WatchesMetadata(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.ofClaim)).
		Complete(r)
}

// ofClaim returns the groups without members that the claim may belong to.
func (r *Reconciler) ofClaim(ctx context.Context, claim client.Object) []reconcile.Request {
	var groups v1alpha1.VolumeCheckpointGroupList
	if err := r.Client.List(ctx, &groups, client.InNamespace(claim.GetNamespace())); err != nil {
		r.Log.Error("looking for groups in the cache", "error", err)
		return nil
	}
	var requests []reconcile.Request
	for i := range groups.Items {
		g := &groups.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(&g.Spec.Selector)
		if err == nil && len(g.Status.Members) == 0 && selector.Matches(labels.Set(claim.GetLabels())) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(g)})
		}
	}
	return requests
}

// Reconcile brings a group closer to what is wanted of it.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var g v1alpha1.VolumeCheckpointGroup
	if err := r.Client.Get(ctx, request.NamespacedName, &g); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	again, err := r.reconcile(ctx, &g)
	if apierrors.IsConflict(err) {
		// The cache is behind.
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	return reconcile.Result{RequeueAfter: again}, client.IgnoreNotFound(err)
}

func (r *Reconciler) reconcile(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup) (time.Duration, error) {
	r.announce(ctx, g)
	o, err := r.observe(ctx, g)
	if err != nil {
		return 0, err
	}
	out := decide(o)
	for _, m := range out.create {
		err := r.Client.Create(ctx, newCheckpoint(g, m))
		if err != nil && !apierrors.IsAlreadyExists(err) { // the cache is behind, or the name is taken
			return 0, fmt.Errorf("making the checkpoint of claim %s/%s: %w", g.Namespace, m.Claim, err)
		}
	}
	if err := r.apply(ctx, g, out); err != nil {
		return 0, err
	}
	name := client.ObjectKeyFromObject(g).String()
	if out.decided {
		d := out.status.Decision
		r.Log.Info("decided", "group", name, "state", d.DesiredState, "reason", d.Reason, "message", d.Message)
	}
	if out.status.Step != g.Status.Step {
		r.Log.Info("step", "group", name, "step", out.status.Step, "claims", out.status.Claims)
	}
	return out.again, nil
}

// apply makes g what the outcome says. The finalizer is there before the first
// member, and goes when everything else is written.
func (r *Reconciler) apply(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup, out outcome) error {
	patched := g.DeepCopy()
	written := equality.Semantic.DeepEqual(g.Status, out.status)
	switch {
	case out.finalizer && g.DeletionTimestamp == nil:
		controllerutil.AddFinalizer(patched, v1alpha1.Finalizer)
	case !out.finalizer && written:
		controllerutil.RemoveFinalizer(patched, v1alpha1.Finalizer)
	}
	if !equality.Semantic.DeepEqual(g.ObjectMeta, patched.ObjectMeta) {
		err := r.Client.Patch(ctx, patched, client.MergeFromWithOptions(g.DeepCopy(), client.MergeFromWithOptimisticLock{}),
			client.FieldOwner(v1alpha1.FieldManagerController))
		if err != nil {
			return fmt.Errorf("writing the finalizer of group %s: %w", client.ObjectKeyFromObject(g), err)
		}
	}
	if written {
		return nil
	}
	return apply.Status(ctx, r.Client, patched, &out.status, v1alpha1.FieldManagerController)
}

// observe gathers what decide needs.
func (r *Reconciler) observe(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup) (observation, error) {
	o := observation{group: g, now: r.Now()}
	var err error
	if len(g.Status.Members) == 0 {
		if o.claims, err = r.claims(ctx, g); err != nil {
			return o, err
		}
	}
	if o.checkpoints, o.taken, err = r.checkpoints(ctx, g); err != nil {
		return o, err
	}
	if v := g.Spec.Verify; v != nil && g.Status.Decision == nil && (len(g.Status.Members) == 0 || g.Status.Phase == v1alpha1.PhaseCheckpointed) {
		o.rollout, err = checkpoint.Rollout(ctx, r.Live, g.Namespace, v.WorkloadRef)
	}
	return o, err
}

func (r *Reconciler) claims(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup) ([]corev1.PersistentVolumeClaim, error) {
	selector, err := metav1.LabelSelectorAsSelector(&g.Spec.Selector)
	if err != nil {
		// What the API lets through and this does not: nothing matches, and
		// the condition says so.
		r.Log.Warn("the selector of a group cannot be used", "group", client.ObjectKeyFromObject(g).String(), "error", err)
		return nil, nil
	}
	var list corev1.PersistentVolumeClaimList
	err = r.Live.List(ctx, &list, client.InNamespace(g.Namespace), client.MatchingLabelsSelector{Selector: selector})
	if err != nil {
		return nil, fmt.Errorf("looking for the claims of group %s: %w", client.ObjectKeyFromObject(g), err)
	}
	return list.Items, nil
}

// checkpoints returns the members' checkpoints that there are, by claim, and the
// names of those that belong to somebody else.
func (r *Reconciler) checkpoints(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup) (map[string]*v1alpha1.VolumeCheckpoint, []string, error) {
	found := make(map[string]*v1alpha1.VolumeCheckpoint)
	var taken []string
	if len(g.Status.Members) == 0 {
		return found, nil, nil
	}
	var list v1alpha1.VolumeCheckpointList
	if err := r.Client.List(ctx, &list, client.InNamespace(g.Namespace)); err != nil {
		return nil, nil, err
	}
	for i := range list.Items {
		c := &list.Items[i]
		m := slices.IndexFunc(g.Status.Members, func(m v1alpha1.GroupMember) bool { return m.Checkpoint == c.Name })
		switch {
		case m < 0:
		case metav1.IsControlledBy(c, g):
			found[g.Status.Members[m].Claim] = c
		default:
			taken = append(taken, c.Name)
		}
	}
	return found, taken, nil
}
