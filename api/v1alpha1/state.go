package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EffectiveState is what the checkpoint is to become: what was decided, or else
// what spec.desiredState says.
func (c *VolumeCheckpoint) EffectiveState() DesiredState {
	return effectiveState(c.Spec.DesiredState, c.Status.Decision)
}

// EffectiveState is what the checkpoints of the group are to become: what was
// decided, or else what spec.desiredState says.
func (g *VolumeCheckpointGroup) EffectiveState() DesiredState {
	return effectiveState(g.Spec.DesiredState, g.Status.Decision)
}

func effectiveState(spec DesiredState, decided *Decision) DesiredState {
	switch {
	case decided != nil:
		return decided.DesiredState
	case spec == "":
		return Checkpointed
	}
	return spec
}

// Finished says whether the checkpoint has ended, one way or another, or will
// never be opened.
func (c *VolumeCheckpoint) Finished() bool { return c.Status.Phase.Final() }

// Final says whether no other phase follows, but for that of a checkpoint that has
// failed and is still on the volume, see [VolumeCheckpoint.OnVolume].
func (p Phase) Final() bool {
	return p == PhaseCommitted || p == PhaseRolledBack || p == PhaseFailed
}

// OnVolume says whether there is, or may be, a checkpoint on the volume that has
// to be ended before the object may vanish: a node has been told to open it and
// has not reported that it is over. A checkpoint that failed may still be there:
// one with a damaged log is left alone until it is committed.
func (c *VolumeCheckpoint) OnVolume() bool {
	return c.Status.Step != "" && !c.Status.Over()
}

// Over says whether nothing follows after s: its phase is final, and no checkpoint that
// failed is still on the volume, to be ended or to be found sound again.
func (s *VolumeCheckpointStatus) Over() bool {
	return s.Phase.Final() && !meta.IsStatusConditionTrue(s.Conditions, ConditionCheckpointed)
}

// PodPolicy is what a rollback does about pods that use the volume.
func (p *CheckpointPolicy) PodPolicy() PodPolicy {
	if p.Rollback == nil || p.Rollback.PodPolicy == "" {
		return PodPolicyWait
	}
	return p.Rollback.PodPolicy
}

// Condition returns the condition of that type, or nil.
func (c *VolumeCheckpoint) Condition(conditionType string) *metav1.Condition {
	return meta.FindStatusCondition(c.Status.Conditions, conditionType)
}
