package group

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/policy"
)

// Limits of a group. A node lets a volume be frozen for ten seconds; all have to
// be frozen, and have switched, within that.
const (
	mostMembers = 256
	freezeTime  = 8 * time.Second
	switchTime  = 30 * time.Second
)

// An observation is what one reconciliation has found.
type observation struct {
	group *v1alpha1.VolumeCheckpointGroup
	now   time.Time
	// claims that match, for a group without members.
	claims []corev1.PersistentVolumeClaim
	// checkpoints of the members that exist, by claim.
	checkpoints map[string]*v1alpha1.VolumeCheckpoint
	// taken are names of members' checkpoints that are somebody else's.
	taken []string
	// rollout is that of the workload of spec.verify, nil if there is none.
	rollout *policy.Rollout
}

// An outcome is what the controller wants of a group.
type outcome struct {
	status    v1alpha1.VolumeCheckpointGroupStatus
	create    []v1alpha1.GroupMember // whose checkpoints are to be made
	finalizer bool
	again     time.Duration
	decided   bool
}

// decide is the controller's policy. It changes nothing that it is given.
func decide(o observation) outcome {
	g := o.group
	d := &decider{observation: o, outcome: outcome{status: *g.Status.DeepCopy()}}
	switch {
	case g.Status.Phase.Final() && len(g.Status.Members) == 0:
		// It had failed, or had nothing to do, before it began.
	case len(g.Status.Members) == 0:
		d.begin()
	default:
		d.proceed()
	}
	return d.outcome
}

type decider struct {
	observation
	outcome
}

func (d *decider) set(conditionType string, is bool, reason, message string) {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&d.status.Conditions, metav1.Condition{
		Type: conditionType, Status: status, Reason: reason, Message: message,
		ObservedGeneration: d.group.Generation, LastTransitionTime: metav1.NewTime(d.now).Rfc3339Copy(),
	})
}

func (d *decider) finish(phase v1alpha1.Phase) {
	d.status.Phase = phase
	if d.status.CompletionTime == nil {
		at := metav1.NewTime(d.now).Rfc3339Copy()
		d.status.CompletionTime = &at
	}
}

func (d *decider) step(s v1alpha1.Step) {
	at := metav1.NewMicroTime(d.now.Truncate(time.Microsecond))
	d.status.Step, d.status.StepTime = s, &at
}

// begin is about a group whose members are not known yet.
func (d *decider) begin() {
	d.status.Phase = v1alpha1.PhasePending
	switch d.group.EffectiveState() {
	case v1alpha1.Committed:
		d.set(v1alpha1.ConditionCommitted, true, v1alpha1.ReasonNeverOpened, "it was to be committed before it was opened")
		d.finish(v1alpha1.PhaseCommitted)
		return
	case v1alpha1.RolledBack:
		d.fail(v1alpha1.ReasonNeverOpened, "it was to be rolled back before it was opened; no volume was touched")
		return
	}
	if d.group.DeletionTimestamp != nil {
		return
	}
	wait := func(reason, message string) { d.set(v1alpha1.ConditionAccepted, false, reason, message) }
	var unbound []string
	for i := range d.claims {
		if c := &d.claims[i]; c.Status.Phase != corev1.ClaimBound || c.DeletionTimestamp != nil {
			unbound = append(unbound, c.Name)
		}
	}
	switch {
	case len(d.claims) == 0:
		wait(v1alpha1.ReasonNoClaims, "no claim in this namespace has the labels of the selector, yet")
		return
	case len(d.claims) > mostMembers:
		message := fmt.Sprintf("%d claims have the labels of the selector; a group has at most %d", len(d.claims), mostMembers)
		wait(v1alpha1.ReasonTooManyClaims, message)
		d.fail(v1alpha1.ReasonTooManyClaims, message)
		return
	case len(unbound) > 0:
		wait(v1alpha1.ReasonClaimNotBound, "not bound yet, or being deleted: "+list(unbound))
		return
	}
	for i := range d.claims {
		claim := d.claims[i].Name
		d.status.Members = append(d.status.Members, v1alpha1.GroupMember{Claim: claim, Checkpoint: checkpointName(d.group.Name, claim), Phase: v1alpha1.PhasePending})
	}
	slices.SortFunc(d.status.Members, func(a, b v1alpha1.GroupMember) int { return strings.Compare(a.Claim, b.Claim) })
	d.status.Claims = int32(len(d.status.Members))
	if v := d.group.Spec.Verify; v != nil {
		d.status.Verification = policy.Baseline(d.rollout)
	}
	wait(v1alpha1.ReasonPending, fmt.Sprintf("%d claims belong to it; their checkpoints are being made", len(d.status.Members)))
	d.finalizer = true
}

// proceed is about a group whose members are known.
func (d *decider) proceed() {
	if d.group.Status.Step == "" && d.group.DeletionTimestamp == nil {
		for _, m := range d.status.Members {
			if d.checkpoints[m.Claim] == nil {
				d.create = append(d.create, m)
			}
		}
	}
	for i := range d.status.Members {
		m := &d.status.Members[i]
		if c := d.checkpoints[m.Claim]; c != nil {
			m.Phase, m.NodeName = c.Status.Phase, c.Status.NodeName
		} else if d.group.Status.Step != "" && !m.Phase.Final() {
			m.Phase = v1alpha1.PhaseCommitted // it was deleted, which commits
		}
	}
	if d.status.Decision == nil && !d.group.Status.Phase.Final() {
		d.status.Decision = d.decision()
		d.decided = d.status.Decision != nil
	}
	d.advance()
	d.summarize()
	d.finalizer = false
	for _, c := range d.checkpoints {
		d.finalizer = d.finalizer || d.waitsFor(c)
	}
	// A group that has not begun with its members can go at any time; those
	// that it has made go with it.
	d.finalizer = d.finalizer || d.group.DeletionTimestamp == nil && !d.status.Phase.Final()
}

// waitsFor says whether the group has to stay until c has ended. While it is being
// deleted, it leaves those that come to no end by themselves to their own deletion,
// which follows: on a damaged volume, or on a node that has gone. But what was to be
// rolled back, and has failed only then, is dropped when somebody deletes that.
func (d *decider) waitsFor(c *v1alpha1.VolumeCheckpoint) bool {
	at := d.group.DeletionTimestamp
	if at == nil || !c.OnVolume() {
		return c.OnVolume()
	}
	opened := c.Condition(v1alpha1.ConditionCheckpointed)
	switch {
	case c.Status.Phase == v1alpha1.PhaseUnknown:
		return false
	case c.Finished():
		return c.EffectiveState() == v1alpha1.RolledBack && !policy.HadFailed(c, *at)
	case c.Status.CheckpointTime == nil && opened != nil && opened.Reason == v1alpha1.ReasonDamaged:
		return false
	}
	return true
}

// decision returns the decision that is due, nil if there is none.
func (d *decider) decision() *v1alpha1.Decision {
	g := d.group
	if g.EffectiveState() != v1alpha1.Checkpointed {
		return nil
	}
	if g.DeletionTimestamp != nil {
		return policy.Decide(v1alpha1.Committed, v1alpha1.ReasonDeleted, "the group is being deleted", d.now)
	}
	if g.Status.Phase != v1alpha1.PhaseCheckpointed {
		return nil
	}
	damaged := false
	for _, m := range d.status.Members {
		if !m.Phase.Final() {
			continue
		}
		if c := d.checkpoints[m.Claim]; c == nil || !c.OnVolume() {
			// Without it the others are no common instant any more.
			return policy.Decide(v1alpha1.Committed, v1alpha1.ReasonMemberFinished,
				fmt.Sprintf("the checkpoint of claim %q is %s, and the others are of no use without it", m.Claim, m.Phase), d.now)
		}
		damaged = true
	}
	if damaged {
		return nil // it is left to a person, and so are the others
	}
	if v := g.Spec.Verify; v != nil && d.status.Verification != nil {
		known, decision, wait := policy.Verify(*v, *d.status.Verification, d.rollout, d.now)
		d.status.Verification = known
		if decision != nil {
			return decision
		}
		d.look(wait, verifyInterval)
	}
	decision, wait := policy.Deadline(g.Spec.Deadline, g.Status.CheckpointTime, d.now)
	d.look(wait)
	return decision
}

// verifyInterval is how often a workload is looked at while it decides.
const verifyInterval = 3 * time.Second

func (d *decider) look(waits ...time.Duration) {
	for _, w := range waits {
		if w > 0 && (d.again == 0 || w < d.again) {
			d.again = w
		}
	}
}

// advance takes the next step, if all members have taken the last one, or gives
// up.
func (d *decider) advance() {
	step := d.group.Status.Step
	opened := step == v1alpha1.StepSwitch && d.group.Status.CheckpointTime != nil
	if step == v1alpha1.StepAbort || opened || d.group.Status.Phase.Final() {
		return
	}
	// Whoever has decided meanwhile wants no checkpoints to be opened.
	reason, why := v1alpha1.ReasonNeverOpened, "it was decided how it ends before it was opened"
	if effective(d) == v1alpha1.Checkpointed {
		reason, why = d.hopeless()
	}
	if reason != "" {
		d.step(v1alpha1.StepAbort)
		d.set(v1alpha1.ConditionFailed, true, reason, why)
		return
	}
	if len(d.create) > 0 {
		return
	}
	switch step {
	case "":
		if d.all(func(c *v1alpha1.VolumeCheckpoint) bool {
			return meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionAccepted)
		}) {
			d.step(v1alpha1.StepPrepare)
		}
	case v1alpha1.StepPrepare:
		if d.allIn(v1alpha1.PhasePrepared) {
			d.step(v1alpha1.StepFreeze)
			d.look(freezeTime)
		}
	case v1alpha1.StepFreeze:
		if d.allIn(v1alpha1.PhaseFrozen) {
			d.step(v1alpha1.StepSwitch)
		}
	case v1alpha1.StepSwitch:
		if !d.all(func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.CheckpointTime != nil && c.OnVolume() }) {
			return
		}
		for _, c := range d.checkpoints {
			if last := d.status.CheckpointTime; last == nil || last.Before(c.Status.CheckpointTime) {
				d.status.CheckpointTime = c.Status.CheckpointTime
			}
		}
	}
}

// hopeless says why not all members will have a checkpoint, "" if they may.
func (d *decider) hopeless() (reason, why string) {
	if len(d.taken) > 0 {
		return v1alpha1.ReasonNameTaken, "there are checkpoints that are not of this group with the names of its members': " + list(d.taken)
	}
	for _, m := range d.status.Members {
		c := d.checkpoints[m.Claim]
		if !m.Phase.Final() {
			continue
		}
		message := "it was deleted"
		if c != nil {
			message = "it is " + string(c.Status.Phase)
			if f := c.Condition(v1alpha1.ConditionFailed); f != nil && f.Status == metav1.ConditionTrue {
				message = f.Message
			}
		}
		return v1alpha1.ReasonMemberFailed, fmt.Sprintf("the checkpoint of claim %q cannot be opened: %s", m.Claim, message)
	}
	limit := map[v1alpha1.Step]time.Duration{v1alpha1.StepFreeze: freezeTime, v1alpha1.StepSwitch: switchTime}[d.group.Status.Step]
	if limit == 0 || d.group.Status.StepTime == nil {
		return "", ""
	}
	left := d.group.Status.StepTime.Add(limit).Sub(d.now)
	if left > 0 {
		d.look(left)
		return "", ""
	}
	want := map[v1alpha1.Step]v1alpha1.Phase{v1alpha1.StepFreeze: v1alpha1.PhaseFrozen, v1alpha1.StepSwitch: v1alpha1.PhaseCheckpointed}[d.group.Status.Step]
	var late []string
	for _, m := range d.status.Members {
		if m.Phase != want {
			late = append(late, d.why(m))
		}
	}
	if len(late) == 0 {
		return "", ""
	}
	return v1alpha1.ReasonTooSlow, fmt.Sprintf("not %s after %v: %s", want, limit, list(late))
}

// why names the claim of a member that is late, and the reason if there is one.
func (d *decider) why(m v1alpha1.GroupMember) string {
	if c := d.checkpoints[m.Claim]; c != nil {
		if o := c.Condition(v1alpha1.ConditionCheckpointed); o != nil && o.Reason != v1alpha1.ReasonPending && o.Reason != v1alpha1.ReasonOpen {
			return m.Claim + " (" + o.Reason + ")"
		}
	}
	return m.Claim
}

func (d *decider) all(holds func(*v1alpha1.VolumeCheckpoint) bool) bool {
	for _, m := range d.status.Members {
		if c := d.checkpoints[m.Claim]; c == nil || !holds(c) {
			return false
		}
	}
	return true
}

func (d *decider) allIn(phase v1alpha1.Phase) bool {
	return d.all(func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == phase })
}

func (d *decider) fail(reason, message string) {
	d.set(v1alpha1.ConditionFailed, true, reason, message)
	d.finish(v1alpha1.PhaseFailed)
}

// effective is what the group is to become with a decision that is new.
func effective(d *decider) v1alpha1.DesiredState {
	g := *d.group
	g.Status.Decision = d.status.Decision
	return g.EffectiveState()
}

// list names at most ten.
func list(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
