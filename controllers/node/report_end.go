package node

import (
	"errors"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ended reports on a checkpoint that is not on the volume any more.
func (r *reporter) ended(e Ended) {
	at := metav1.NewTime(e.At)
	if e.At.IsZero() {
		at = r.now
	}
	at = at.Rfc3339Copy()
	if e.Outcome == Committed && !reported(r.c) && wanted(r.c) == v1alpha1.Checkpointed {
		r.droppedAtOnce()
		return
	}
	switch e.Outcome {
	case RolledBack:
		r.end(v1alpha1.PhaseRolledBack, v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack, withReason("The volume has the content of the checkpoint again.", e.Reason))
		if p := r.s.Rollback; p != nil && p.BytesTotal != nil {
			p.BytesDone = p.BytesTotal
		}
	case Committed:
		if r.c.Status.Step == v1alpha1.StepAbort {
			r.fail(v1alpha1.ReasonAborted, "The group was aborted; the checkpoint that had been opened was dropped.")
			break
		}
		r.end(v1alpha1.PhaseCommitted, v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted, withReason("The checkpoint was dropped; what was written since stays.", e.Reason))
	case OutOfSpace:
		r.end(v1alpha1.PhaseCommitted, v1alpha1.ConditionCommitted, v1alpha1.ReasonOutOfSpace,
			withReason("There was no free space left to keep old content in, so the checkpoint was dropped, as spec.outOfSpacePolicy says; what was written since stays.", e.Reason))
	default:
		r.lost("%s", withReason("The checkpoint is not on the volume any more, and neither was it committed nor rolled back by way of this object.", e.Reason))
	}
	r.s.CompletionTime = &at
}

func withReason(message, reason string) string {
	if reason == "" {
		return message
	}
	return message + " " + reason
}

// droppedAtOnce reports on a checkpoint that was committed before anybody was
// told of it, although nobody wanted that: its volume is too full, or its group
// was aborted.
func (r *reporter) droppedAtOnce() {
	switch {
	case r.c.Status.Step == v1alpha1.StepAbort:
		r.fail(v1alpha1.ReasonAborted, "The group was aborted; the checkpoint that had been opened was dropped.")
	case r.c.Spec.MinimumFree != nil:
		r.fail(v1alpha1.ReasonNoSpace, "Less than spec.minimumFree, %s, is free on the volume to keep old content in. Delete files on it, or create another VolumeCheckpoint that asks for less.", r.c.Spec.MinimumFree)
	default:
		r.fail(v1alpha1.ReasonLost, "The checkpoint was dropped on the node as soon as it was open.")
	}
}

// end reports the end that was wanted.
func (r *reporter) end(phase v1alpha1.Phase, condition, reason, message string) {
	r.s.Phase = phase
	r.set(condition, metav1.ConditionTrue, reason, message)
	r.set(v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, reason, message)
	r.remove(v1alpha1.ConditionFailed)
	if condition != v1alpha1.ConditionRolledBack {
		r.remove(v1alpha1.ConditionRolledBack)
	}
	r.over(r.now)
}

// notOpened reports on a checkpoint that is not open yet, or never will be.
func (r *reporter) notOpened(o outcome) {
	c := r.c
	var waits failure
	if want := wanted(c); errors.Is(o.err, ErrNotFound) && (want != v1alpha1.Checkpointed || c.Status.Step == v1alpha1.StepAbort) {
		o.err = nil // there is no checkpoint on what does not exist
	}
	if o.err != nil {
		waits = classify(o.err)
	} else if o.facts.Open != nil {
		waits = classify(ErrCheckpointOpen)
	}
	switch want := wanted(c); {
	case c.Status.Step == v1alpha1.StepAbort:
		if o.err == nil {
			r.fail(v1alpha1.ReasonAborted, "The group was aborted before this checkpoint was opened: another member could not be opened.")
			return
		}
	case want == v1alpha1.Committed && o.err == nil:
		r.end(v1alpha1.PhaseCommitted, v1alpha1.ConditionCommitted, v1alpha1.ReasonNeverOpened, "It was to be committed before it was opened, so no checkpoint was opened.")
		return
	case want == v1alpha1.RolledBack && o.err == nil:
		r.fail(v1alpha1.ReasonNeverOpened, "It was to be rolled back before it was opened, so there is nothing to roll back to. The volume is as it was.")
		return
	case waits.final:
		r.fail(waits.reason, "%s", waits.message(c, o.err))
		return
	}
	if r.s.Phase != v1alpha1.PhasePrepared && r.s.Phase != v1alpha1.PhaseFrozen {
		r.s.Phase = v1alpha1.PhasePending
	}
	message := "The checkpoint is not open yet."
	reason := v1alpha1.ReasonPending
	switch {
	case o.err != nil:
		reason, message = waits.reason, waits.message(c, o.err)
	case o.did == doPrepare:
		r.s.Phase = v1alpha1.PhasePrepared
	case o.did == doFreeze:
		r.s.Phase = v1alpha1.PhaseFrozen
	}
	r.remove(v1alpha1.ConditionFailed)
	r.set(v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, reason, message)
}

// stuck reports why an open checkpoint does not come to the end that is wanted.
// While it is only to stay open, a fact that is not known now changes nothing.
func (r *reporter) stuck(err error) {
	why := classify(err)
	switch wanted(r.c) {
	case v1alpha1.Committed:
		r.set(v1alpha1.ConditionCommitted, metav1.ConditionFalse, why.reason, why.message(r.c, err))
	case v1alpha1.RolledBack:
		r.set(v1alpha1.ConditionRolledBack, metav1.ConditionFalse, why.reason, why.message(r.c, err))
	}
}

// failure is what an error means.
type failure struct {
	reason string
	// final: it does not pass by itself.
	final bool
	text  string // for people; "" to use the error's
}

// classify tells what an error of Volumes means.
func classify(err error) failure {
	for _, f := range []struct {
		err error
		failure
	}{
		{ErrNotStaged, failure{v1alpha1.ReasonVolumeNotInUse, false, "No pod uses the volume; the checkpoint is opened as soon as one does."}},
		{ErrMissing, failure{v1alpha1.ReasonVolumeNotInUse, false, "The device of the volume is not there; see that it is attached to the node. It is tried again."}},
		{ErrEngineDown, failure{v1alpha1.ReasonEngineDown, false, "The data plane of the node does not answer; see the pod of bowline-engine on it. It is tried again."}},
		{ErrBusy, failure{v1alpha1.ReasonVolumeBusy, false, "Another operation on the volume runs. It is tried again."}},
		{ErrRollbackPending, failure{v1alpha1.ReasonVolumeBusy, false, "The volume is to be rolled back first. It is tried again afterwards."}},
		{ErrNotFrozen, failure{v1alpha1.ReasonFreezeExpired, true, "Not all members of the group were ready within the time that a volume may be frozen. Nothing was changed. Create the group again; if it happens again, look for a member whose node is slow."}},
		{ErrCheckpointOpen, failure{v1alpha1.ReasonAnotherCheckpoint, true, "There is a checkpoint on the volume that is not this object's. Commit it or roll it back by the object that it belongs to, or by 'bowline device' on the node if there is none, and create this one again."}},
		{ErrNoSpace, failure{v1alpha1.ReasonNoSpace, true, "The volume has too little free space to keep old content in. Delete files on it and create another VolumeCheckpoint."}},
		{ErrDamaged, failure{v1alpha1.ReasonDamaged, false, ""}},
		{ErrNotFound, failure{v1alpha1.ReasonVolumeNotInUse, false, "The node does not know the volume. One that is provided by hand is known when a pod has used it; one from the node's pool has been deleted, or the node's storage was replaced."}},
	} {
		if errors.Is(err, f.err) {
			return f.failure
		}
	}
	return failure{reason: v1alpha1.ReasonError}
}

func (f failure) message(c *v1alpha1.VolumeCheckpoint, err error) string {
	switch {
	case f.text != "":
		return f.text
	case f.final:
		return err.Error()
	}
	return "It is tried again: " + err.Error()
}
