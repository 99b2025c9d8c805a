package checkpoint

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/policy"
)

// An observation is what one reconciliation has found.
type observation struct {
	checkpoint *v1alpha1.VolumeCheckpoint
	now        time.Time

	// surroundings are gathered for a checkpoint that no node was told of.
	surroundings policy.Surroundings
	// nodeExists and volumeExists are about status.nodeName and
	// status.volumeName, for a checkpoint that a node was told of.
	nodeExists, volumeExists bool
	// rollout is that of the workload of spec.verify, nil if there is none.
	rollout *policy.Rollout
	// member says that the checkpoint belongs to a group, which is nil if it
	// does not exist any more.
	member bool
	group  *v1alpha1.VolumeCheckpointGroup
}

// An outcome is what the controller wants of a checkpoint.
type outcome struct {
	// status has the controller's fields, phase and Failed only if they are
	// its own at the time.
	status v1alpha1.VolumeCheckpointStatus
	// finalizer: the object may not vanish. Label bowline.dev/node is
	// status.nodeName.
	finalizer bool
	// again: look again after that time, 0 if only when something changes.
	again time.Duration
	// decided: status.decision is new.
	decided bool
}

// decide is the controller's policy. It changes nothing that it is given.
func decide(o observation) outcome {
	c := o.checkpoint
	out := outcome{status: owned(c.Status)}
	switch {
	case c.Status.Step == "" && c.Finished():
		// Failed, or nothing to do, before any node knew of it.
		keepOurs(&out.status, c.Status)
	case c.Status.Step == "" && c.DeletionTimestamp != nil:
		keepOurs(&out.status, c.Status)
	case c.Status.Step == "":
		begin(o, &out)
	default:
		supervise(o, &out)
	}
	return out
}

// begin is about a checkpoint that no node was told of.
func begin(o observation, out *outcome) {
	c, s := o.checkpoint, &out.status
	s.Phase = v1alpha1.PhasePending
	if o.member && (o.group == nil || o.group.Status.Step == v1alpha1.StepAbort) {
		fail(s, v1alpha1.ReasonAborted, "the group opens no checkpoints; its status says why", c.Generation, o.now)
		return
	}
	switch c.EffectiveState() {
	case v1alpha1.Committed:
		finish(s, v1alpha1.PhaseCommitted, o.now)
		set(s, c.Generation, o.now, v1alpha1.ConditionCommitted, true, v1alpha1.ReasonNeverOpened, "it was to be committed before it was opened")
		return
	case v1alpha1.RolledBack:
		fail(s, v1alpha1.ReasonNeverOpened, "it was to be rolled back before it was opened; the volume was not touched", c.Generation, o.now)
		return
	}
	verdict := policy.Accept(c, o.surroundings)
	set(s, c.Generation, o.now, v1alpha1.ConditionAccepted, verdict.Accepted(), verdict.Reason, verdict.Message)
	switch {
	case verdict.Final:
		fail(s, verdict.Reason, verdict.Message, c.Generation, o.now)
		return
	case !verdict.Accepted():
		out.again = lookAgain
		return
	}
	s.NodeName, s.VolumeName, s.VolumeHandle = verdict.Node, verdict.Volume, verdict.Handle
	if s.Verification == nil && c.Spec.Verify != nil {
		s.Verification = policy.Baseline(o.rollout)
	}
	s.Step = v1alpha1.StepSwitch
	if o.member {
		s.Step = o.group.Status.Step
	}
	out.finalizer = true
}

// lookAgain is how often the controller looks at what it does not watch:
// persistent volumes, and checkpoints of the same volume in other namespaces.
const lookAgain = 30 * time.Second

// supervise is about a checkpoint that a node was told of.
func supervise(o observation, out *outcome) {
	c, s := o.checkpoint, &out.status
	if o.member && o.group != nil && o.group.Status.Step != "" {
		s.Step = o.group.Status.Step
	}
	if s.Decision == nil && c.OnVolume() {
		s.Decision = decideNow(o, out)
		out.decided = s.Decision != nil
	}
	whereabouts(o, out)
	// What is still on the volume is ended before the object goes, unless
	// nobody could do that any more.
	out.finalizer = c.OnVolume() && (c.DeletionTimestamp == nil || o.nodeExists && o.volumeExists)
	if out.finalizer && (c.DeletionTimestamp != nil || !o.nodeExists) {
		out.again = soonest(out.again, lookAgain) // at the volume
	}
	if d := deletion(c, o.now); d != nil {
		s.Decision, out.decided = d, true
	}
}

// deletion returns what the deletion of c decides besides committing what is open,
// nil if it is nothing new. A rollback that was asked for before is done first, and if
// it turns out then that it cannot be, nothing is dropped: nobody has said so. Who
// deletes what is known to have failed does.
func deletion(c *v1alpha1.VolumeCheckpoint, now time.Time) *v1alpha1.Decision {
	if c.DeletionTimestamp == nil || !c.OnVolume() || c.EffectiveState() != v1alpha1.RolledBack {
		return nil
	}
	if d := c.Status.Decision; d != nil && d.Reason == v1alpha1.ReasonDeleted {
		return nil
	}
	if policy.HadFailed(c, *c.DeletionTimestamp) {
		return policy.Decide(v1alpha1.Committed, v1alpha1.ReasonDeleted, "the object is being deleted, and could not be rolled back", now)
	}
	return policy.Decide(v1alpha1.RolledBack, v1alpha1.ReasonDeleted, "the object is being deleted; the rollback that was asked for is done first", now)
}

// decideNow returns the decision that is due, nil if there is none. Members obey
// their group once all of its checkpoints are open; before, it would abort them.
func decideNow(o observation, out *outcome) *v1alpha1.Decision {
	c, s := o.checkpoint, &out.status
	if g := o.group; o.member && g != nil && g.Status.CheckpointTime != nil && g.EffectiveState() != v1alpha1.Checkpointed {
		message := fmt.Sprintf("desiredState of group %q", g.Name)
		if d := g.Status.Decision; d != nil {
			message = fmt.Sprintf("group %q: %s", g.Name, d.Message)
		}
		return policy.Decide(g.EffectiveState(), v1alpha1.ReasonGroup, message, o.now)
	}
	if c.EffectiveState() != v1alpha1.Checkpointed {
		return nil // a person has decided
	}
	if c.DeletionTimestamp != nil {
		return policy.Decide(v1alpha1.Committed, v1alpha1.ReasonDeleted, "the object is being deleted", o.now)
	}
	if c.Status.Phase != v1alpha1.PhaseCheckpointed {
		return nil
	}
	if c.Spec.Verify != nil && s.Verification != nil {
		known, decision, wait := policy.Verify(*c.Spec.Verify, *s.Verification, o.rollout, o.now)
		s.Verification = known
		if decision != nil {
			return decision
		}
		out.again = soonest(out.again, wait, verifyInterval)
	}
	decision, wait := policy.Deadline(c.Spec.Deadline, c.Status.CheckpointTime, o.now)
	out.again = soonest(out.again, wait)
	return decision
}

// verifyInterval is how often a workload is looked at while it decides.
const verifyInterval = 3 * time.Second

// whereabouts says if the node has gone, and with it perhaps the volume.
func whereabouts(o observation, out *outcome) {
	c, s := o.checkpoint, &out.status
	if failed := c.Condition(v1alpha1.ConditionFailed); c.Finished() && failed != nil && failed.Reason == v1alpha1.ReasonLost {
		keepOurs(s, c.Status)
	}
	if o.nodeExists {
		if c.Status.Phase == v1alpha1.PhasePending || c.Status.Phase == v1alpha1.PhaseUnknown {
			// Ours until the node writes another one.
			s.Phase = c.Status.Phase
		}
		set(s, c.Generation, o.now, v1alpha1.ConditionAccepted, true, v1alpha1.ReasonAccepted, acceptedMessage(c))
		return
	}
	set(s, c.Generation, o.now, v1alpha1.ConditionAccepted, false, v1alpha1.ReasonNodeNotFound,
		fmt.Sprintf("node %q, which has the volume, is not in the cluster any more", c.Status.NodeName))
	if c.Finished() {
		return
	}
	if !o.volumeExists {
		fail(s, v1alpha1.ReasonLost, "the node and the volume do not exist any more", c.Generation, o.now)
		return
	}
	s.Phase = v1alpha1.PhaseUnknown
}

// acceptedMessage keeps what was said when the checkpoint was accepted.
func acceptedMessage(c *v1alpha1.VolumeCheckpoint) string {
	if a := c.Condition(v1alpha1.ConditionAccepted); a != nil && a.Status == metav1.ConditionTrue {
		return a.Message
	}
	return ""
}

// owned returns the fields of a status that are the controller's at all times.
func owned(s v1alpha1.VolumeCheckpointStatus) v1alpha1.VolumeCheckpointStatus {
	mine := v1alpha1.VolumeCheckpointStatus{
		NodeName: s.NodeName, VolumeName: s.VolumeName, VolumeHandle: s.VolumeHandle,
		Step: s.Step, Decision: s.Decision, Verification: s.Verification,
	}
	for _, t := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionPodsReleased} {
		keep(&mine, s, t)
	}
	return mine
}

// keepOurs adds what the controller has written in place of a node.
func keepOurs(mine *v1alpha1.VolumeCheckpointStatus, s v1alpha1.VolumeCheckpointStatus) {
	mine.Phase, mine.CompletionTime = s.Phase, s.CompletionTime
	keep(mine, s, v1alpha1.ConditionFailed)
	if s.Step == "" { // the node's from then on
		keep(mine, s, v1alpha1.ConditionCommitted)
	}
}

func keep(mine *v1alpha1.VolumeCheckpointStatus, s v1alpha1.VolumeCheckpointStatus, conditionType string) {
	if c := meta.FindStatusCondition(s.Conditions, conditionType); c != nil {
		mine.Conditions = append(mine.Conditions, *c)
	}
}

func finish(s *v1alpha1.VolumeCheckpointStatus, phase v1alpha1.Phase, now time.Time) {
	at := metav1.NewTime(now).Rfc3339Copy()
	s.Phase, s.CompletionTime = phase, &at
}

func fail(s *v1alpha1.VolumeCheckpointStatus, reason, message string, generation int64, now time.Time) {
	finish(s, v1alpha1.PhaseFailed, now)
	set(s, generation, now, v1alpha1.ConditionFailed, true, reason, message)
}

func set(s *v1alpha1.VolumeCheckpointStatus, generation int64, now time.Time, conditionType string, is bool, reason, message string) {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: conditionType, Status: status, Reason: reason, Message: message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
	})
}

// soonest returns the shortest of the durations that are not 0.
func soonest(durations ...time.Duration) time.Duration {
	first := time.Duration(0)
	for _, d := range durations {
		if d > 0 && (first == 0 || d < first) {
			first = d
		}
	}
	return first
}
