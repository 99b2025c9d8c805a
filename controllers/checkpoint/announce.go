package checkpoint

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// news are the events that the status of a checkpoint gives rise to, whoever
// wrote it. Those that are told of the pods and the claim, too, come first.
func news(c *v1alpha1.VolumeCheckpoint) (everyone, own []event) {
	about := func(t metav1.Time, kind, reason, action, note string) event {
		return event{
			namespace: c.Namespace, kind: kind, reason: reason, action: action, note: note,
			object: referenceTo(c), key: reason, at: t.Time,
		}
	}
	const normal, warning = corev1.EventTypeNormal, corev1.EventTypeWarning
	claim := c.Spec.PersistentVolumeClaimName
	if d := c.Status.Decision; d != nil {
		own = append(own, about(d.Time, normal, v1alpha1.EventDecided, "Decide",
			fmt.Sprintf("%s (%s): %s", d.DesiredState, d.Reason, d.Message)))
	}
	for _, condition := range c.Status.Conditions {
		t, is, note := condition.LastTransitionTime, condition.Status == metav1.ConditionTrue, condition.Message
		switch condition.Type {
		case v1alpha1.ConditionAccepted:
			switch {
			case condition.Reason == v1alpha1.ReasonClaimNotFound:
				own = append(own, about(t, warning, v1alpha1.EventClaimNotFound, "Accept", note))
			case condition.Reason == v1alpha1.ReasonNodeNotFound:
				own = append(own, about(t, warning, v1alpha1.EventNodeGone, "Accept", note))
			}
		case v1alpha1.ConditionCheckpointed:
			if is {
				everyone = append(everyone, about(t, normal, v1alpha1.EventCheckpointOpened, "Checkpoint",
					fmt.Sprintf("claim %q has a checkpoint, %q, that it can be rolled back to", claim, c.Name)))
			}
		case v1alpha1.ConditionCommitted:
			if is && condition.Reason != v1alpha1.ReasonNeverOpened {
				everyone = append(everyone, about(t, normal, v1alpha1.EventCheckpointCommitted, "Commit",
					fmt.Sprintf("checkpoint %q of claim %q was committed; what was written since stays", c.Name, claim)))
			}
		case v1alpha1.ConditionRolledBack:
			switch {
			case is:
				everyone = append(everyone, about(t, normal, v1alpha1.EventRollbackComplete, "RollBack",
					fmt.Sprintf("claim %q has the content of checkpoint %q again", claim, c.Name)))
			case condition.Reason == v1alpha1.ReasonWaitingForPods:
				everyone = append(everyone, about(t, normal, v1alpha1.EventRollbackWaiting, "RollBack",
					fmt.Sprintf("claim %q is rolled back to checkpoint %q as soon as no pod uses it: %s", claim, c.Name, note)))
			case condition.Reason == v1alpha1.ReasonRestoring:
				everyone = append(everyone, about(t, normal, v1alpha1.EventRollbackStarted, "RollBack",
					fmt.Sprintf("claim %q is being rolled back to checkpoint %q", claim, c.Name)))
			case condition.Reason == v1alpha1.ReasonRestoreFailed:
				everyone = append(everyone, about(t, warning, v1alpha1.EventRollbackFailed, "RollBack", note))
			}
		case v1alpha1.ConditionSpaceLow:
			if is {
				everyone = append(everyone, about(t, warning, v1alpha1.EventSpaceLow, "Checkpoint",
					fmt.Sprintf("checkpoint %q of claim %q: %s", c.Name, claim, note)))
			}
		case v1alpha1.ConditionDeviceFailing:
			if is {
				everyone = append(everyone, about(t, warning, v1alpha1.EventDeviceFailing, "Checkpoint",
					fmt.Sprintf("checkpoint %q of claim %q: %s", c.Name, claim, note)))
			}
		case v1alpha1.ConditionPodsReleased:
			switch condition.Reason {
			case v1alpha1.ReasonDisruptionBudget, v1alpha1.ReasonEvictionFailed, v1alpha1.ReasonWorkloadUnchanged:
				own = append(own, about(t, warning, v1alpha1.EventEvictionBlocked, "Evict", note))
			}
		case v1alpha1.ConditionFailed:
			switch {
			case !is:
			case c.Status.Step == "":
				own = append(own, about(t, warning, v1alpha1.EventCheckpointRefused, "Accept", note))
			case c.EffectiveState() == v1alpha1.RolledBack:
				everyone = append(everyone, about(t, warning, v1alpha1.EventRollbackFailed, "RollBack", note))
			default:
				everyone = append(everyone, about(t, warning, v1alpha1.EventCheckpointFailed, "Checkpoint", note))
			}
		}
	}
	return everyone, own
}

// mostPods is how many pods of a claim are told of something.
const mostPods = 10

// announce writes the events that are due.
func (r *Reconciler) announce(ctx context.Context, c *v1alpha1.VolumeCheckpoint) error {
	now := r.Now()
	everyone, own := news(c)
	for _, ev := range own {
		r.Events.tell(ctx, now, ev)
	}
	var untold []event
	for _, ev := range everyone {
		if r.Events.untold(ev, now) {
			untold = append(untold, ev)
		}
	}
	if len(untold) == 0 {
		return nil
	}
	claim, err := r.claim(ctx, types.NamespacedName{Namespace: c.Namespace, Name: c.Spec.PersistentVolumeClaimName})
	if err != nil {
		return err
	}
	pods, err := podsOf(ctx, r.Live, c.Namespace, c.Spec.PersistentVolumeClaimName)
	if err != nil {
		return err
	}
	for _, ev := range untold {
		if claim != nil {
			r.Events.tell(ctx, now, ev.about("PersistentVolumeClaim", claim))
		}
		for i := range pods[:min(len(pods), mostPods)] {
			r.Events.tell(ctx, now, ev.about("Pod", &pods[i]))
		}
		// Last, as it stands for all of them.
		r.Events.tell(ctx, now, ev)
	}
	return nil
}
