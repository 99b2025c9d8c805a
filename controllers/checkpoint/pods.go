package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/policy"
)

// podsOf returns the pods that use the claim and have not ended.
func podsOf(ctx context.Context, reader client.Reader, namespace, claim string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := reader.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("looking for pods that use claim %s/%s: %w", namespace, claim, err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || !uses(&p, claim)
	}), nil
}

func uses(p *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		switch {
		case v.PersistentVolumeClaim != nil:
			return v.PersistentVolumeClaim.ClaimName == claim
		case v.Ephemeral != nil:
			return p.Name+"-"+v.Name == claim
		}
		return false
	})
}

// inTheWay returns those of the pods that a rollback which was marked on the
// volume at that time waits for. A pod that was made later is not let near the
// volume until it is rolled back; to evict it would only have it made again.
func inTheWay(pods []corev1.Pod, marked metav1.Time) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.CreationTimestamp.After(marked.Time)
	})
}

// evictionDue says whether pods have to be looked after for the checkpoint. The
// node marks the rollback on the volume first: from then on no other pod can
// start to use it.
func evictionDue(c *v1alpha1.VolumeCheckpoint) bool {
	return c.EffectiveState() == v1alpha1.RolledBack && c.Spec.PodPolicy() == v1alpha1.PodPolicyEvict &&
		c.Status.Step != "" && c.Status.Rollback != nil && c.Status.Rollback.StartTime != nil
}

// release evicts the pods that a rollback waits for and says in the condition
// PodsReleased how that goes.
func (r *Reconciler) release(ctx context.Context, o observation, out *outcome) error {
	c := o.checkpoint
	tell := func(is bool, reason, message string) {
		set(&out.status, c.Generation, o.now, v1alpha1.ConditionPodsReleased, is, reason, message)
	}
	if c.Finished() && c.OnVolume() {
		return nil // it is damaged: nobody has to go for that
	}
	if c.Finished() || c.Status.Phase == v1alpha1.PhaseRollingBack {
		if c.Condition(v1alpha1.ConditionPodsReleased) != nil {
			tell(true, v1alpha1.ReasonPodsGone, "")
		}
		return nil
	}
	pods, err := podsOf(ctx, r.Live, c.Namespace, c.Spec.PersistentVolumeClaimName)
	if err != nil {
		return err
	}
	pods = inTheWay(pods, *c.Status.Rollback.StartTime)
	if len(pods) == 0 {
		tell(true, v1alpha1.ReasonPodsGone, "")
		return nil
	}
	if held, message, err := r.held(ctx, o); err != nil || held {
		tell(false, v1alpha1.ReasonWorkloadUnchanged, message)
		out.again = soonest(out.again, verifyInterval)
		return err
	}
	var blocked, going []string
	var failed []error
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil {
			going = append(going, p.Name)
			continue
		}
		switch err := r.evict(ctx, p); {
		case err == nil:
			going = append(going, p.Name)
			r.Events.tell(ctx, o.now, aboutPod(c, p, o.now, corev1.EventTypeNormal, v1alpha1.EventEvicted, "Evict",
				fmt.Sprintf("evicted so that claim %q can be rolled back to checkpoint %q", c.Spec.PersistentVolumeClaimName, c.Name)))
		case apierrors.IsTooManyRequests(err):
			blocked = append(blocked, fmt.Sprintf("pod %q: %v", p.Name, err))
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err): // gone, or another pod by now
			failed = append(failed, fmt.Errorf("pod %q: %w", p.Name, err))
		}
	}
	since := o.now
	if known := c.Condition(v1alpha1.ConditionPodsReleased); known != nil && known.Status == metav1.ConditionFalse {
		since = known.LastTransitionTime.Time
	}
	out.again = soonest(out.again, policy.Backoff(since, o.now))
	switch {
	case len(failed) > 0:
		tell(false, v1alpha1.ReasonEvictionFailed, errors.Join(failed...).Error())
	case len(blocked) > 0:
		tell(false, v1alpha1.ReasonDisruptionBudget, "a disruption budget does not allow the eviction now; it is tried again: "+strings.Join(blocked, "; "))
	default:
		tell(false, v1alpha1.ReasonEvicting, "pods are terminating: "+strings.Join(going, ", "))
	}
	return nil
}

// held says whether evicted pods would be made again of the version whose failed
// rollout led to the rollback, and start it on the old content. There would be
// no checkpoint then to save that from it.
func (r *Reconciler) held(ctx context.Context, o observation) (bool, string, error) {
	policyOf, known := o.checkpoint.Spec.Verify, o.checkpoint.Status.Verification
	if g := o.group; g != nil {
		policyOf, known = g.Spec.Verify, g.Status.Verification
	}
	if policyOf == nil {
		return false, "", nil
	}
	ref := policyOf.WorkloadRef
	w, err := Rollout(ctx, r.Live, o.checkpoint.Namespace, ref)
	if err != nil || !policy.StillFailed(known, w) {
		return false, "", err
	}
	return true, fmt.Sprintf("%s %q still has the version whose rollout failed and would start it again on the old content; "+
		"revert it, with 'kubectl rollout undo %s/%s' for instance, or scale it to zero", ref.Kind, ref.Name, strings.ToLower(string(ref.Kind)), ref.Name), nil
}

// evict asks for the eviction of exactly this pod, not of one that has its name
// by now.
func (r *Reconciler) evict(ctx context.Context, p *corev1.Pod) error {
	err := r.Client.SubResource("eviction").Create(ctx, p, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))},
	})
	evictions.WithLabelValues(resultOf(err)).Inc()
	return err
}

func resultOf(err error) string {
	switch {
	case err == nil:
		return "accepted"
	case apierrors.IsTooManyRequests(err):
		return "blocked"
	}
	return "failed"
}
