// Package checkpoint is the controller's part in a VolumeCheckpoint: it finds
// the volume of the claim and the node that has it, refuses what cannot work,
// and decides by deadline, rollout and deletion how a checkpoint ends. It
// never touches a volume; nodes do, and the API's package comment says who
// writes what.
//
// A reconciliation gathers an observation, decides with pure functions, and
// applies the outcome, once. Nothing is remembered between two of them but what
// was told in events.
package checkpoint

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/controllers/policy"
)

// A Reconciler reconciles VolumeCheckpoints.
type Reconciler struct {
	// Client reads checkpoints, groups, and the metadata of nodes from a
	// cache with the indexes of SetUp.
	Client client.Client
	// Live reads from the API server what is needed too seldom to be kept: claims,
	// volumes, workloads and pods.
	Live   client.Reader
	Events *Events
	Now    func() time.Time
	Log    *slog.Logger
}

// Reconcile brings a checkpoint closer to what is wanted of it.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var c v1alpha1.VolumeCheckpoint
	if err := r.Client.Get(ctx, request.NamespacedName, &c); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	again, err := r.reconcile(ctx, &c)
	if apierrors.IsConflict(err) {
		// The cache is behind: what is missing arrives, and with it
		// another request. The delay is for when it has just arrived.
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	return reconcile.Result{RequeueAfter: again}, client.IgnoreNotFound(err)
}

func (r *Reconciler) reconcile(ctx context.Context, c *v1alpha1.VolumeCheckpoint) (time.Duration, error) {
	if err := r.announce(ctx, c); err != nil {
		r.Log.Warn("events were not written", "checkpoint", client.ObjectKeyFromObject(c).String(), "error", err)
	}
	o, err := r.observe(ctx, c)
	if err != nil {
		return 0, err
	}
	out := decide(o)
	if evictionDue(c) {
		if err := r.release(ctx, o, &out); err != nil {
			return 0, err
		}
	}
	if err := r.apply(ctx, c, out); err != nil {
		return 0, err
	}
	if out.decided {
		d := out.status.Decision
		decisions.WithLabelValues(d.Reason, string(d.DesiredState)).Inc()
		r.Log.Info("decided", "checkpoint", client.ObjectKeyFromObject(c).String(), "claim", c.Spec.PersistentVolumeClaimName,
			"volume", c.Status.VolumeHandle, "state", d.DesiredState, "reason", d.Reason, "message", d.Message)
	}
	return out.again, nil
}

// apply makes c what the outcome says. The finalizer is there before a node is
// told of the checkpoint, and goes when everything else is written.
func (r *Reconciler) apply(ctx context.Context, c *v1alpha1.VolumeCheckpoint, out outcome) error {
	patched := c.DeepCopy()
	if node := out.status.NodeName; node != "" && patched.Labels[v1alpha1.LabelNode] != node {
		metav1.SetMetaDataLabel(&patched.ObjectMeta, v1alpha1.LabelNode, node)
	}
	written := same(c.Status, out.status)
	switch {
	case out.finalizer && c.DeletionTimestamp == nil:
		controllerutil.AddFinalizer(patched, v1alpha1.Finalizer)
	case !out.finalizer && written:
		controllerutil.RemoveFinalizer(patched, v1alpha1.Finalizer)
	}
	if !equality.Semantic.DeepEqual(c.ObjectMeta, patched.ObjectMeta) {
		err := r.Client.Patch(ctx, patched, client.MergeFromWithOptions(c.DeepCopy(), client.MergeFromWithOptimisticLock{}),
			client.FieldOwner(v1alpha1.FieldManagerController))
		if err != nil {
			return fmt.Errorf("writing label and finalizer of checkpoint %s: %w", client.ObjectKeyFromObject(c), err)
		}
	}
	if written {
		return nil
	}
	return apply.Status(ctx, r.Client, patched, &out.status, v1alpha1.FieldManagerController)
}

// same says whether what the controller wants to have in a status is there.
func same(is, want v1alpha1.VolumeCheckpointStatus) bool {
	mine := owned(is)
	if want.Phase != "" {
		keepOurs(&mine, is)
		if want.CompletionTime == nil {
			mine.CompletionTime = nil
		}
	} else if failed := conditionOf(is, v1alpha1.ConditionFailed); failed != nil && failed.Reason == v1alpha1.ReasonLost && is.Phase != v1alpha1.PhaseFailed {
		return false // we said so, and the node has found it
	}
	if len(mine.Conditions) != len(want.Conditions) {
		return false
	}
	for _, c := range mine.Conditions {
		w := conditionOf(want, c.Type)
		if w == nil || !equality.Semantic.DeepEqual(*w, c) {
			return false
		}
	}
	mine.Conditions, want.Conditions = nil, nil
	return equality.Semantic.DeepEqual(mine, want)
}

func conditionOf(s v1alpha1.VolumeCheckpointStatus, t string) *metav1.Condition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// observe gathers what decide needs.
func (r *Reconciler) observe(ctx context.Context, c *v1alpha1.VolumeCheckpoint) (observation, error) {
	o := observation{checkpoint: c, now: r.Now()}
	var err error
	if o.member, o.group, err = r.groupOf(ctx, c); err != nil {
		return o, err
	}
	begun := c.Status.Step != ""
	if begun {
		if o.nodeExists, err = r.nodeExists(ctx, c.Status.NodeName); err != nil {
			return o, err
		}
		o.volumeExists = true
		if c.DeletionTimestamp != nil || !o.nodeExists {
			volume, err := r.volume(ctx, c.Status.VolumeName)
			if err != nil {
				return o, err
			}
			o.volumeExists = volume != nil && volume.Spec.CSI != nil && volume.Spec.CSI.VolumeHandle == c.Status.VolumeHandle
		}
	} else if !c.Finished() && c.DeletionTimestamp == nil {
		if o.surroundings, err = r.surroundings(ctx, c); err != nil {
			return o, err
		}
	}
	if v := c.Spec.Verify; v != nil && c.Status.Decision == nil && (!begun || c.Status.Phase == v1alpha1.PhaseCheckpointed) {
		o.rollout, err = Rollout(ctx, r.Live, c.Namespace, v.WorkloadRef)
	}
	return o, err
}

func (r *Reconciler) surroundings(ctx context.Context, c *v1alpha1.VolumeCheckpoint) (s policy.Surroundings, err error) {
	if s.Claim, err = r.claim(ctx, types.NamespacedName{Namespace: c.Namespace, Name: c.Spec.PersistentVolumeClaimName}); err != nil {
		return s, err
	}
	if s.Claim == nil || s.Claim.Spec.VolumeName == "" {
		return s, nil
	}
	if s.Volume, err = r.volume(ctx, s.Claim.Spec.VolumeName); err != nil || s.Volume == nil {
		return s, err
	}
	if node := policy.NodeOf(s.Volume); node != "" {
		exists, err := r.nodeExists(ctx, node)
		if err != nil {
			return s, err
		}
		s.NodeExists = func(string) bool { return exists }
	}
	var list v1alpha1.VolumeCheckpointList
	if err := r.Client.List(ctx, &list, client.InNamespace(c.Namespace), client.MatchingFields{claimIndex: s.Claim.Name}); err != nil {
		return s, err
	}
	s.Others = list.Items
	if csi := s.Volume.Spec.CSI; csi != nil {
		if err := r.Client.List(ctx, &list, client.MatchingFields{HandleIndex: csi.VolumeHandle}); err != nil {
			return s, err
		}
		s.Others = append(s.Others, list.Items...)
	}
	return s, nil
}

func (r *Reconciler) claim(ctx context.Context, name types.NamespacedName) (*corev1.PersistentVolumeClaim, error) {
	return get(ctx, r.Live, name, new(corev1.PersistentVolumeClaim))
}

func (r *Reconciler) volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return get(ctx, r.Live, types.NamespacedName{Name: name}, new(corev1.PersistentVolume))
}

func (r *Reconciler) nodeExists(ctx context.Context, name string) (bool, error) {
	var node metav1.PartialObjectMetadata
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	found, err := get(ctx, r.Client, types.NamespacedName{Name: name}, &node)
	return found != nil, err
}

// groupOf says whether c was made by a group, and returns it if it exists.
func (r *Reconciler) groupOf(ctx context.Context, c *v1alpha1.VolumeCheckpoint) (bool, *v1alpha1.VolumeCheckpointGroup, error) {
	owner := metav1.GetControllerOf(c)
	if owner == nil || owner.Kind != v1alpha1.KindVolumeCheckpointGroup || owner.APIVersion != v1alpha1.SchemeGroupVersion.String() {
		return false, nil, nil
	}
	g, err := get(ctx, r.Client, types.NamespacedName{Namespace: c.Namespace, Name: owner.Name}, new(v1alpha1.VolumeCheckpointGroup))
	if g == nil || g.UID != owner.UID {
		return true, nil, err
	}
	return true, g, nil
}

// Rollout returns the rollout of a workload, nil if there is no such workload.
func Rollout(ctx context.Context, reader client.Reader, namespace string, ref v1alpha1.WorkloadRef) (*policy.Rollout, error) {
	name := types.NamespacedName{Namespace: namespace, Name: ref.Name}
	if ref.Kind == v1alpha1.WorkloadStatefulSet {
		s, err := get(ctx, reader, name, new(appsv1.StatefulSet))
		if s == nil {
			return nil, err
		}
		return policy.StatefulSetRollout(s), nil
	}
	d, err := get(ctx, reader, name, new(appsv1.Deployment))
	if d == nil {
		return nil, err
	}
	return policy.DeploymentRollout(d), nil
}

// get reads an object into o and returns it, nil if it does not exist.
func get[T client.Object](ctx context.Context, reader client.Reader, name types.NamespacedName, o T) (found T, err error) {
	if err := reader.Get(ctx, name, o); err != nil {
		return found, client.IgnoreNotFound(err)
	}
	return o, nil
}
