package checkpoint

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// onNode makes a checkpoint that its node was told of and has opened.
func onNode(change func(*observation)) observation {
	opened := metav1.NewTime(noon)
	o := observation{now: noon, nodeExists: true, volumeExists: true, checkpoint: &v1alpha1.VolumeCheckpoint{
		Status: v1alpha1.VolumeCheckpointStatus{
			Phase: v1alpha1.PhaseCheckpointed, Step: v1alpha1.StepSwitch, NodeName: "n1", CheckpointTime: &opened,
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionCheckpointed, Status: metav1.ConditionTrue}},
		},
	}}
	change(&o)
	return o
}

func deleted(c *v1alpha1.VolumeCheckpoint) { c.DeletionTimestamp = &metav1.Time{Time: noon} }

// failedAt makes it one that is damaged and on its volume.
func failedAt(c *v1alpha1.VolumeCheckpoint, at time.Time) {
	c.Status.Phase = v1alpha1.PhaseFailed
	c.Status.Conditions = append(c.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionFailed, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonDamaged, LastTransitionTime: metav1.NewTime(at)})
}

func groupOf(state v1alpha1.DesiredState, open bool) *v1alpha1.VolumeCheckpointGroup {
	g := &v1alpha1.VolumeCheckpointGroup{}
	g.Name, g.Spec.DesiredState, g.Status.Step = "all", state, v1alpha1.StepSwitch
	if open {
		g.Status.CheckpointTime = &metav1.Time{Time: noon}
	}
	return g
}

func TestDecide(t *testing.T) {
	type want struct {
		decision  string // its reason
		phase     v1alpha1.Phase
		finalizer bool
		again     bool
	}
	for name, test := range map[string]struct {
		change func(*observation)
		want   want
	}{
		"open": {func(*observation) {}, want{finalizer: true}},
		"a person has decided": {func(o *observation) {
			o.checkpoint.Spec.DesiredState = v1alpha1.Committed
			o.checkpoint.Spec.Deadline = &v1alpha1.Deadline{Action: v1alpha1.DeadlineRollBack}
		}, want{finalizer: true}},
		"deadline runs": {func(o *observation) {
			o.checkpoint.Spec.Deadline = &v1alpha1.Deadline{After: metav1.Duration{Duration: time.Hour}, Action: v1alpha1.DeadlineCommit}
		}, want{finalizer: true, again: true}},
		"deadline": {func(o *observation) {
			o.checkpoint.Spec.Deadline = &v1alpha1.Deadline{Action: v1alpha1.DeadlineCommit}
		}, want{decision: v1alpha1.ReasonDeadline, finalizer: true}},
		"deadline, not open": {func(o *observation) {
			o.checkpoint.Spec.Deadline = &v1alpha1.Deadline{Action: v1alpha1.DeadlineCommit}
			o.checkpoint.Status.Phase = v1alpha1.PhasePending
		}, want{phase: v1alpha1.PhasePending, finalizer: true}},
		"deadline, damaged": {func(o *observation) {
			o.checkpoint.Spec.Deadline = &v1alpha1.Deadline{Action: v1alpha1.DeadlineCommit}
			o.checkpoint.Status.Phase = v1alpha1.PhaseFailed
		}, want{finalizer: true}},
		"deleted": {func(o *observation) { deleted(o.checkpoint) }, want{decision: v1alpha1.ReasonDeleted, finalizer: true, again: true}},
		"deleted, to be rolled back": {func(o *observation) {
			deleted(o.checkpoint)
			o.checkpoint.Spec.DesiredState = v1alpha1.RolledBack
		}, want{decision: v1alpha1.ReasonDeleted + "RolledBack", finalizer: true, again: true}},
		"deleted, to be rolled back by a decision": {func(o *observation) {
			deleted(o.checkpoint)
			o.checkpoint.Status.Decision = &v1alpha1.Decision{DesiredState: v1alpha1.RolledBack, Reason: v1alpha1.ReasonDeadline}
		}, want{decision: v1alpha1.ReasonDeleted + "RolledBack", finalizer: true, again: true}},
		"failed after it was deleted": {func(o *observation) {
			deleted(o.checkpoint)
			failedAt(o.checkpoint, noon.Add(time.Second))
			o.checkpoint.Spec.DesiredState = v1alpha1.RolledBack
		}, want{decision: v1alpha1.ReasonDeleted + "RolledBack", finalizer: true, again: true}},
		"deleted after it had failed": {func(o *observation) {
			deleted(o.checkpoint)
			failedAt(o.checkpoint, noon.Add(-time.Second))
			o.checkpoint.Spec.DesiredState = v1alpha1.RolledBack
		}, want{decision: v1alpha1.ReasonDeleted, finalizer: true, again: true}},
		"failed after it was deleted, by a clock that is slow": {func(o *observation) {
			deleted(o.checkpoint)
			failedAt(o.checkpoint, noon.Add(-time.Hour))
			o.checkpoint.Status.Decision = &v1alpha1.Decision{DesiredState: v1alpha1.RolledBack, Reason: v1alpha1.ReasonDeleted}
		}, want{finalizer: true, again: true}},
		"node gone":        {func(o *observation) { o.nodeExists = false }, want{phase: v1alpha1.PhaseUnknown, finalizer: true, again: true}},
		"all gone":         {func(o *observation) { o.nodeExists, o.volumeExists = false, false }, want{phase: v1alpha1.PhaseFailed, finalizer: true, again: true}},
		"deleted, no node": {func(o *observation) { deleted(o.checkpoint); o.nodeExists = false }, want{decision: v1alpha1.ReasonDeleted, phase: v1alpha1.PhaseUnknown}},
		"group goes on":    {func(o *observation) { o.member, o.group = true, groupOf(v1alpha1.Checkpointed, true) }, want{finalizer: true}},
		"group commits":    {func(o *observation) { o.member, o.group = true, groupOf(v1alpha1.Committed, true) }, want{decision: v1alpha1.ReasonGroup, finalizer: true}},
		"group commits what is damaged": {func(o *observation) {
			o.member, o.group = true, groupOf(v1alpha1.Committed, true)
			o.checkpoint.Status.Phase = v1alpha1.PhaseFailed
		}, want{decision: v1alpha1.ReasonGroup, finalizer: true}},
		"group not open":    {func(o *observation) { o.member, o.group = true, groupOf(v1alpha1.Committed, false) }, want{finalizer: true}},
		"group gone":        {func(o *observation) { o.member = true }, want{finalizer: true}},
		"group gone at all": {func(o *observation) { o.member = true; o.checkpoint.Status = v1alpha1.VolumeCheckpointStatus{} }, want{phase: v1alpha1.PhaseFailed}},
		"committed": {func(o *observation) {
			o.checkpoint.Status.Phase = v1alpha1.PhaseCommitted
			o.checkpoint.Status.Conditions[0].Status = metav1.ConditionFalse
		}, want{}},
	} {
		t.Run(name, func(t *testing.T) {
			o := onNode(test.change)
			before := o.checkpoint.DeepCopy()
			out := decide(o)
			got := want{phase: out.status.Phase, finalizer: out.finalizer, again: out.again > 0}
			if d := out.status.Decision; d != nil && out.decided {
				got.decision = d.Reason
				if d.DesiredState == v1alpha1.RolledBack && d.Reason == v1alpha1.ReasonDeleted {
					got.decision += "RolledBack"
				}
			}
			if got != test.want {
				t.Errorf("got %+v; want %+v", got, test.want)
			}
			if !equality.Semantic.DeepEqual(before, o.checkpoint) {
				t.Error("what was given has changed")
			}
		})
	}
}
