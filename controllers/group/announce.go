package group

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// announce writes the events that the status of a group gives rise to. What
// happens to single volumes is told of their checkpoints, claims and pods.
func (r *Reconciler) announce(ctx context.Context, g *v1alpha1.VolumeCheckpointGroup) {
	tell := func(kind, reason, action, note string, at metav1.Time) {
		r.Events.TellOfGroup(ctx, r.Now(), g, kind, reason, action, note, at)
	}
	const normal, warning = corev1.EventTypeNormal, corev1.EventTypeWarning
	if d := g.Status.Decision; d != nil {
		tell(normal, v1alpha1.EventDecided, "Decide", fmt.Sprintf("%s (%s): %s", d.DesiredState, d.Reason, d.Message), d.Time)
	}
	for _, e := range []struct{ condition, kind, reason, action, note string }{
		{v1alpha1.ConditionCheckpointed, normal, v1alpha1.EventCheckpointOpened, "Checkpoint", fmt.Sprintf("%d claims have a checkpoint of the same instant", g.Status.Claims)},
		{v1alpha1.ConditionCommitted, normal, v1alpha1.EventCheckpointCommitted, "Commit", "all checkpoints were committed; what was written since stays"},
		{v1alpha1.ConditionRolledBack, normal, v1alpha1.EventRollbackComplete, "RollBack", "all claims have the content of the checkpoint again"},
		{v1alpha1.ConditionFailed, warning, v1alpha1.EventCheckpointFailed, "Checkpoint", ""},
	} {
		c := meta.FindStatusCondition(g.Status.Conditions, e.condition)
		if c == nil || c.Status != metav1.ConditionTrue || c.Reason == v1alpha1.ReasonNeverOpened {
			continue
		}
		if e.note == "" {
			e.note = c.Message
		}
		tell(e.kind, e.reason, e.action, e.note, c.LastTransitionTime)
	}
}
