package node

import (
	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/apimachinery/pkg/api/meta"
)

// action is something to do to a volume.
type action string

const (
	doNothing    action = ""
	doPrepare    action = "prepare"
	doFreeze     action = "freeze"
	doSwitch     action = "switch"     // open a checkpoint on a frozen volume
	doCheckpoint action = "checkpoint" // open one with all that goes before
	doThaw       action = "thaw"
	doCommit     action = "commit"
	doRollback   action = "rollback"
)

// decide returns what is to be done next to the volume of c, whose facts are f.
// It rests on the facts first, since the status may be older than they are: the
// node plugin may have been killed between an action and the report of it.
func decide(c *v1alpha1.VolumeCheckpoint, f Facts) action {
	want, step := wanted(c), c.Status.Step
	if ours(c, f.Open) {
		switch {
		case c.Status.Phase == v1alpha1.PhaseFailed && want == v1alpha1.Committed:
			return doCommit // even if a rollback is marked: it could not be done
		case f.Open.State != Open:
			return doNothing // a rollback that is marked goes on by itself
		case want == v1alpha1.Committed || step == v1alpha1.StepAbort:
			return doCommit
		case want == v1alpha1.RolledBack:
			return doRollback
		case tooSmall(c, f.Open):
			return doCommit
		}
		return doNothing
	}
	frozen := c.Status.Phase == v1alpha1.PhaseFrozen
	switch {
	case ended(c, f) || reported(c) || f.Open != nil:
		return doNothing
	case step == v1alpha1.StepAbort || want != v1alpha1.Checkpointed:
		if frozen || step == v1alpha1.StepAbort {
			return doThaw
		}
		return doNothing
	}
	switch step {
	case v1alpha1.StepPrepare:
		if c.Status.Phase != v1alpha1.PhasePrepared {
			return doPrepare
		}
	case v1alpha1.StepFreeze:
		if !frozen {
			return doFreeze
		}
	case v1alpha1.StepSwitch:
		if frozen || member(c) {
			return doSwitch
		}
		return doCheckpoint
	}
	return doNothing
}

// wanted returns what c is to become. Deleting it drops what is still on the
// volume, but does not stop a rollback.
func wanted(c *v1alpha1.VolumeCheckpoint) v1alpha1.DesiredState {
	want := c.EffectiveState()
	if c.DeletionTimestamp != nil && want == v1alpha1.Checkpointed {
		return v1alpha1.Committed
	}
	return want
}

// ours tells whether a checkpoint on the volume of c is that of c.
func ours(c *v1alpha1.VolumeCheckpoint, open *Checkpoint) bool {
	return open != nil && open.ID == string(c.UID)
}

// ended tells whether the volume knows how the checkpoint of c ended.
func ended(c *v1alpha1.VolumeCheckpoint, f Facts) bool {
	return f.Last != nil && f.Last.ID == string(c.UID)
}

// reported tells whether the status has said that the checkpoint is open.
func reported(c *v1alpha1.VolumeCheckpoint) bool {
	return c.Status.CheckpointTime != nil
}

// member tells whether c belongs to a group, which opens its checkpoints on
// frozen volumes only.
func member(c *v1alpha1.VolumeCheckpoint) bool {
	return c.Labels[v1alpha1.LabelGroup] != ""
}

// tooSmall tells whether a checkpoint that was just opened has less free space
// than it was to have at least. How much there is, is known only then.
func tooSmall(c *v1alpha1.VolumeCheckpoint, open *Checkpoint) bool {
	least := c.Spec.MinimumFree
	return least != nil && open.Measured && !reported(c) && open.Free < least.Value()
}

// spaceLow tells whether a checkpoint has little space left for backups. Once it
// has, it takes a quarter more than the limit to have enough again, so that what
// hovers there is not reported for ever.
func spaceLow(c *v1alpha1.VolumeCheckpoint, open *Checkpoint) bool {
	var limit int64
	if least := c.Spec.MinimumFree; least != nil {
		limit = least.Value()
	} else {
		// What is not free any more was taken by backups, or by the file system
		// for what was written into free space.
		limit = (open.Free + max(open.Changed, open.BackedUp)) / 10
	}
	if meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionSpaceLow) {
		limit += limit / 4
	}
	return open.OutOfSpace || open.Free < limit
}
