package node

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// outcome is what a reconciliation has to report.
type outcome struct {
	facts Facts
	did   action // the last thing that was done, or tried
	err   error  // why it failed, or why the facts are not known
	// waitingFor are facts.Rollback.WaitingFor as people know them.
	waitingFor []string
}

// report returns the node's part of the status of c: what it said before, brought
// up to o. It has no fields of the controller's.
func report(c *v1alpha1.VolumeCheckpoint, o outcome, now time.Time) v1alpha1.VolumeCheckpointStatus {
	r := reporter{c: c, s: nodePart(&c.Status), now: metav1.NewTime(now)}
	if r.s.Phase == "" || r.s.Phase == v1alpha1.PhaseUnknown {
		r.s.Phase = phaseBefore(&r.s)
	}
	switch {
	case ours(c, o.facts.Open):
		r.open(o)
	case ended(c, o.facts):
		r.ended(*o.facts.Last)
	case errors.Is(o.err, ErrNotFound) && reported(c):
		r.lost("The node %s has no volume %s any more: it was deleted, or the node's storage was replaced.", c.Status.NodeName, c.Status.VolumeHandle)
	case errors.Is(o.err, ErrMissing) && c.DeletionTimestamp != nil:
		// It may come back, but whoever deletes the object has given it up.
		r.lost("The device of volume %s is not on node %s any more.", c.Status.VolumeHandle, c.Status.NodeName)
	case errors.Is(o.err, ErrDamaged) && (reported(c) || !mayBeOpen(c)):
		r.damaged(o.err, reported(c))
	case reported(c):
		if o.err == nil {
			r.lost("The checkpoint is not on the volume any more, and nobody has committed it or rolled it back by way of this object. The volume keeps the content that it has now.")
		} else {
			r.stuck(o.err)
		}
	default:
		r.notOpened(o)
	}
	return r.s
}

// mayBeOpen tells whether there may be a checkpoint on the volume that was not
// reported yet, and is not given up.
func mayBeOpen(c *v1alpha1.VolumeCheckpoint) bool {
	begun := c.Status.Step == v1alpha1.StepSwitch || c.Status.Step == v1alpha1.StepAbort
	return begun && c.DeletionTimestamp == nil
}

// nodePart returns a copy of what the node has written of a status.
func nodePart(s *v1alpha1.VolumeCheckpointStatus) v1alpha1.VolumeCheckpointStatus {
	d := s.DeepCopy()
	part := v1alpha1.VolumeCheckpointStatus{
		Phase:          d.Phase,
		CheckpointTime: d.CheckpointTime, CompletionTime: d.CompletionTime,
		FreeForBackups: d.FreeForBackups, BackedUp: d.BackedUp, Changed: d.Changed,
		MovedBackups: d.MovedBackups, FreezeDuration: d.FreezeDuration, Rollback: d.Rollback,
	}
	for _, condition := range d.Conditions {
		switch condition.Type {
		case v1alpha1.ConditionCheckpointed, v1alpha1.ConditionCommitted, v1alpha1.ConditionRolledBack,
			v1alpha1.ConditionSpaceLow, v1alpha1.ConditionDeviceFailing, v1alpha1.ConditionFailed:
			part.Conditions = append(part.Conditions, condition)
		}
	}
	return part
}

// phaseBefore is the phase of a checkpoint whose phase says nothing, as far as
// the rest of the status tells.
func phaseBefore(s *v1alpha1.VolumeCheckpointStatus) v1alpha1.Phase {
	if meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionCheckpointed) {
		return v1alpha1.PhaseCheckpointed
	}
	return v1alpha1.PhasePending
}

// reporter brings the node's part s of the status of c up to date.
type reporter struct {
	c   *v1alpha1.VolumeCheckpoint
	s   v1alpha1.VolumeCheckpointStatus
	now metav1.Time
}

func (r *reporter) set(condition string, status metav1.ConditionStatus, reason, message string, args ...any) {
	if len(args) > 0 {
		message = fmt.Sprintf(message, args...)
	}
	meta.SetStatusCondition(&r.s.Conditions, metav1.Condition{
		Type: condition, Status: status, Reason: reason, Message: clip(message),
		ObservedGeneration: r.c.Generation, LastTransitionTime: r.now,
	})
}

func (r *reporter) remove(condition string) { meta.RemoveStatusCondition(&r.s.Conditions, condition) }

// clip keeps a message within what a condition may hold, bytes.
func clip(message string) string {
	const most = 4096
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most], "") + "…"
}

// open reports on a checkpoint that is on the volume.
func (r *reporter) open(o outcome) {
	open := o.facts.Open
	r.amounts(open)
	if rb := o.facts.Rollback; r.s.Phase == v1alpha1.PhaseFailed && open.State == RollingBack && rb != nil && rb.Done == 0 && rb.Err == nil {
		return // whether it is damaged still is being found out
	}
	r.set(v1alpha1.ConditionCheckpointed, metav1.ConditionTrue, v1alpha1.ReasonOpen, "The checkpoint is open; what is overwritten is kept.")
	damage := o.err
	if rb := o.facts.Rollback; !errors.Is(damage, ErrDamaged) && rb != nil {
		damage = rb.Err
	}
	if errors.Is(damage, ErrDamaged) {
		r.damaged(damage, true)
		return
	}
	// It may have failed, and what was wrong with it may have passed.
	r.remove(v1alpha1.ConditionFailed)
	r.s.CompletionTime = nil
	r.device(o.facts)
	if open.State != Open {
		r.rollingBack(o)
		return
	}
	r.space(open)
	r.s.Phase = v1alpha1.PhaseCheckpointed
	if o.err != nil {
		r.stuck(o.err)
	}
}

// amounts reports the sizes and times of a checkpoint that is on the volume.
func (r *reporter) amounts(open *Checkpoint) {
	if r.s.CheckpointTime == nil {
		opened := metav1.NewTime(open.Opened)
		if open.Opened.IsZero() {
			opened = r.now
		}
		opened = opened.Rfc3339Copy()
		r.s.CheckpointTime = &opened
	}
	if open.Frozen > 0 {
		r.s.FreezeDuration = &metav1.Duration{Duration: open.Frozen.Round(time.Millisecond / 10)}
	}
	if !open.Measured {
		return
	}
	r.s.FreeForBackups = mebibytes(open.Free &^ (mebibyte - 1))
	r.s.BackedUp = mebibytes(open.BackedUp)
	r.s.Changed = mebibytes(open.Changed)
	r.s.MovedBackups = &open.Moved
}

const mebibyte = 1 << 20

// mebibytes rounds up.
func mebibytes(n int64) *resource.Quantity {
	return resource.NewQuantity((max(n, 0)+mebibyte-1)&^(mebibyte-1), resource.BinarySI)
}

func (r *reporter) space(open *Checkpoint) {
	if !open.Measured {
		return
	}
	limit := "a tenth of what was free when the checkpoint was opened"
	if least := r.c.Spec.MinimumFree; least != nil {
		limit = least.String()
	}
	switch {
	case open.OutOfSpace:
		r.set(v1alpha1.ConditionSpaceLow, metav1.ConditionTrue, v1alpha1.ReasonOutOfSpace,
			"There is no free space left to keep old content in: writes that would need it fail. Delete files on the volume, commit, or roll back.")
	case spaceLow(r.c, open):
		r.set(v1alpha1.ConditionSpaceLow, metav1.ConditionTrue, v1alpha1.ReasonBelowMinimum,
			"Less than %s is free to keep old content in. %s", limit, whenFull(r.c))
	default:
		r.set(v1alpha1.ConditionSpaceLow, metav1.ConditionFalse, v1alpha1.ReasonEnoughSpace,
			"At least %s is free to keep old content in.", limit)
	}
}

func whenFull(c *v1alpha1.VolumeCheckpoint) string {
	if c.Spec.OutOfSpacePolicy == v1alpha1.OutOfSpaceCommit {
		return "When nothing is, the checkpoint is dropped."
	}
	return "When nothing is, writes fail."
}

// device reports whether the backing device fails. What was said before stays while
// nothing is known, as while a rollback runs.
func (r *reporter) device(f Facts) {
	switch {
	case f.DeviceError != "":
		r.set(v1alpha1.ConditionDeviceFailing, metav1.ConditionTrue, v1alpha1.ReasonDeviceErrors,
			"The device of the volume fails: %s. What was overwritten is kept all the same: a write whose backup or log entry cannot be written fails instead. See the kernel's log on the node.", f.DeviceError)
	case f.Open.Measured && meta.FindStatusCondition(r.s.Conditions, v1alpha1.ConditionDeviceFailing) != nil:
		r.set(v1alpha1.ConditionDeviceFailing, metav1.ConditionFalse, v1alpha1.ReasonNoDeviceErrors,
			"No operation of the volume's device has failed lately.")
	}
}

// rollingBack reports on a rollback that is marked on the volume.
func (r *reporter) rollingBack(o outcome) {
	if r.s.Rollback == nil {
		r.s.Rollback = &v1alpha1.RollbackProgress{StartTime: &r.now}
	}
	r.s.Rollback.WaitingFor = o.waitingFor
	r.remove(v1alpha1.ConditionSpaceLow)
	progress := o.facts.Rollback
	if progress == nil {
		progress = &Rollback{}
	}
	if progress.Total > 0 {
		r.s.Rollback.BytesDone, r.s.Rollback.BytesTotal = &progress.Done, &progress.Total
	}
	waits := len(o.waitingFor) > 0
	r.s.Phase = v1alpha1.PhaseRollingBack
	if waits || o.facts.Open.State == RollbackRequested && progress.Total == 0 {
		r.s.Phase = v1alpha1.PhaseRollbackPending
	}
	switch {
	case progress.Err != nil:
		reason := classify(progress.Err).reason
		if reason == v1alpha1.ReasonError {
			reason = v1alpha1.ReasonRestoreFailed
		}
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, reason, "It is tried again: %v", progress.Err)
	case waits:
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, v1alpha1.ReasonWaitingForPods,
			"The volume is in use by %s. It is rolled back as soon as nobody uses it: scale the workload down or delete the pods; new ones wait until it is done.", strings.Join(o.waitingFor, ", "))
	case r.s.Phase == v1alpha1.PhaseRollingBack:
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, v1alpha1.ReasonRestoring, "The old content is being put back.")
	default:
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, v1alpha1.ReasonRequested, "The rollback is marked on the volume.")
	}
}

// damaged reports that what is on the volume cannot be rolled back to, and was
// left as it is: dropping it is a decision of a person.
func (r *reporter) damaged(what error, there bool) {
	image := "the volume's image, of " + r.c.Status.VolumeHandle + ", on node " + r.c.Status.NodeName
	message := fmt.Sprintf("The checkpoint on the volume is damaged and nothing was touched: %v. 'bowline device inspect' tells more of %s; 'bowline device roll-forward' drops the checkpoint and keeps the content that the volume has now.", what, image)
	if !there {
		r.fail(v1alpha1.ReasonDamaged, "%s", message)
		return
	}
	r.set(v1alpha1.ConditionCheckpointed, metav1.ConditionTrue, v1alpha1.ReasonDamaged, "There is a checkpoint on the volume, but it is damaged.")
	r.failed(v1alpha1.ReasonDamaged, "%s", message)
}

// fail reports that there is no checkpoint on the volume, and why.
func (r *reporter) fail(reason, message string, args ...any) {
	r.set(v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, reason, message, args...)
	r.failed(reason, message, args...)
}

// failed reports that there is no checkpoint that can be rolled back to.
func (r *reporter) failed(reason, message string, args ...any) {
	r.set(v1alpha1.ConditionFailed, metav1.ConditionTrue, reason, message, args...)
	if condition := meta.FindStatusCondition(r.s.Conditions, v1alpha1.ConditionRolledBack); condition != nil {
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, reason, message, args...)
	}
	r.s.Phase = v1alpha1.PhaseFailed
	r.over(r.now)
}

func (r *reporter) lost(message string, args ...any) {
	r.fail(v1alpha1.ReasonLost, message, args...)
}

// over leaves what tells of the past only.
func (r *reporter) over(at metav1.Time) {
	r.remove(v1alpha1.ConditionSpaceLow)
	r.remove(v1alpha1.ConditionDeviceFailing)
	r.s.FreeForBackups = nil
	if r.s.CompletionTime == nil {
		r.s.CompletionTime = &at
	}
	if r.s.Rollback != nil {
		r.s.Rollback.WaitingFor = nil
	}
}
