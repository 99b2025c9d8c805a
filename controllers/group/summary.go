package group

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// way is the order in which members pass through phases. Those that fail or whose
// node has gone are looked at apart.
var way = []v1alpha1.Phase{
	v1alpha1.PhasePending, v1alpha1.PhasePrepared, v1alpha1.PhaseFrozen, v1alpha1.PhaseCheckpointed,
	v1alpha1.PhaseRollbackPending, v1alpha1.PhaseRollingBack, v1alpha1.PhaseRolledBack,
}

// phaseOf is the phase of a group with members in these phases, some of them
// perhaps not reported yet, which is on its way to that state.
func phaseOf(members []v1alpha1.GroupMember, state v1alpha1.DesiredState, aborted bool) v1alpha1.Phase {
	n := make(map[v1alpha1.Phase]int)
	final := 0
	for _, m := range members {
		n[m.Phase]++
		if m.Phase.Final() {
			final++
		}
	}
	all := len(members)
	switch {
	case final == all && aborted:
		return v1alpha1.PhaseFailed
	case n[v1alpha1.PhaseCommitted] == all:
		return v1alpha1.PhaseCommitted
	case final == all && n[v1alpha1.PhaseFailed] == 0 && state == v1alpha1.Committed:
		return v1alpha1.PhaseCommitted
	case final == all && n[v1alpha1.PhaseRolledBack] < all:
		return v1alpha1.PhaseFailed
	case n[v1alpha1.PhaseUnknown] > 0:
		return v1alpha1.PhaseUnknown
	case state == v1alpha1.RolledBack && !aborted && (n[v1alpha1.PhaseRollingBack] > 0 || n[v1alpha1.PhaseRolledBack] > 0) && n[v1alpha1.PhaseRolledBack] < all:
		return v1alpha1.PhaseRollingBack
	}
	for _, p := range way { // the slowest
		if n[p] > 0 || p == v1alpha1.PhasePending && n[""] > 0 {
			return p
		}
	}
	return v1alpha1.PhasePending
}

// summarize says of the group what holds for its members.
func (d *decider) summarize() {
	aborted := d.status.Step == v1alpha1.StepAbort
	phase := phaseOf(d.status.Members, effective(d), aborted)
	count := func(conditionType string) (n int) {
		for _, c := range d.checkpoints {
			if meta.IsStatusConditionTrue(c.Status.Conditions, conditionType) {
				n++
			}
		}
		return n
	}
	of := func(n int) string { return fmt.Sprintf("%d of %d", n, len(d.status.Members)) }

	if phase.Final() {
		d.finish(phase)
	} else {
		d.status.Phase, d.status.CompletionTime = phase, nil
	}
	if phase != v1alpha1.PhaseFailed && !aborted {
		meta.RemoveStatusCondition(&d.status.Conditions, v1alpha1.ConditionFailed) // what was wrong with a member has passed
	}
	accepted := count(v1alpha1.ConditionAccepted)
	if accepted == len(d.status.Members) {
		d.set(v1alpha1.ConditionAccepted, true, v1alpha1.ReasonAccepted, "")
	} else if !phase.Final() {
		d.set(v1alpha1.ConditionAccepted, false, v1alpha1.ReasonPending, d.waitingFor())
	}
	opened := count(v1alpha1.ConditionCheckpointed)
	switch {
	case d.status.CheckpointTime != nil && opened == len(d.status.Members):
		d.set(v1alpha1.ConditionCheckpointed, true, v1alpha1.ReasonOpen, "")
	case phase.Final():
		d.set(v1alpha1.ConditionCheckpointed, false, string(phase), "")
	default:
		d.set(v1alpha1.ConditionCheckpointed, false, v1alpha1.ReasonPending, of(opened)+" checkpoints are open")
	}
	switch phase {
	case v1alpha1.PhaseCommitted:
		d.set(v1alpha1.ConditionCommitted, true, v1alpha1.ReasonCommitted, "")
	case v1alpha1.PhaseRolledBack:
		d.set(v1alpha1.ConditionRolledBack, true, v1alpha1.ReasonRolledBack, "")
	case v1alpha1.PhaseRollbackPending, v1alpha1.PhaseRollingBack:
		d.set(v1alpha1.ConditionRolledBack, false, v1alpha1.ReasonRestoring, of(count(v1alpha1.ConditionRolledBack))+" volumes are rolled back")
	case v1alpha1.PhaseFailed:
		if !aborted {
			d.set(v1alpha1.ConditionFailed, true, v1alpha1.ReasonMemberFailed, "not all members ended as they should; their own conditions say why")
		}
	}
	d.warn(v1alpha1.ConditionSpaceLow, v1alpha1.ReasonBelowMinimum, "claims with little space for backups: ", v1alpha1.ReasonEnoughSpace)
	d.warn(v1alpha1.ConditionDeviceFailing, v1alpha1.ReasonDeviceErrors, "claims whose device fails: ", v1alpha1.ReasonNoDeviceErrors)
}

// warn says of the group what is true of any of its members, with the reason bad and
// their claims; and that it is over with the reason good.
func (d *decider) warn(conditionType, bad, message, good string) {
	var claims []string
	for _, m := range d.status.Members {
		if c := d.checkpoints[m.Claim]; c != nil && meta.IsStatusConditionTrue(c.Status.Conditions, conditionType) {
			claims = append(claims, m.Claim)
		}
	}
	switch {
	case len(claims) > 0:
		d.set(conditionType, true, bad, message+list(claims))
	case meta.FindStatusCondition(d.status.Conditions, conditionType) != nil:
		d.set(conditionType, false, good, "")
	}
}

// waitingFor says what the first member that is not accepted waits for.
func (d *decider) waitingFor() string {
	for _, m := range d.status.Members {
		c := d.checkpoints[m.Claim]
		if c == nil {
			continue
		}
		if a := c.Condition(v1alpha1.ConditionAccepted); a != nil && a.Reason != v1alpha1.ReasonAccepted {
			return fmt.Sprintf("claim %q: %s", m.Claim, a.Message)
		}
	}
	return "checkpoints of members are being made"
}
