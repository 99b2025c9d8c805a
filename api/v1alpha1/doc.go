// Package v1alpha1 is Bowline's API in Kubernetes, group bowline.dev: the
// VolumeCheckpoint, which opens a checkpoint on the volume of one claim, commits
// it or rolls it back in place, and the VolumeCheckpointGroup, which does so for
// several claims at one instant.
//
// # Who writes what
//
// People write spec; Bowline never does, so that a GitOps tool has nothing to
// put back. What deadline, verification, deletion or a group have decided
// stands in status.decision, and [VolumeCheckpoint.EffectiveState] is what
// everyone acts on: the decision if there is one, spec.desiredState otherwise.
//
// Two programs write status, by server-side apply, each its own fields:
//
//	field manager bowline-controller, the one controller of a cluster:
//	    nodeName volumeName volumeHandle step decision verification
//	    conditions Accepted and PodsReleased
//	    label bowline.dev/node, finalizer bowline.dev/checkpoint-protection
//	field manager bowline-node, the part on the node that has the volume:
//	    checkpointTime completionTime freeForBackups backedUp changed
//	    movedBackups freezeDuration rollback
//	    conditions Checkpointed Committed RolledBack SpaceLow DeviceFailing
//	one after the other: phase, condition Failed
//
// Until it sets step, nobody but the controller writes phase and Failed. From
// then on they are the node's, which takes them over by force; the controller
// leaves them out of what it applies as soon as the node has written them, and
// takes them back only if the node has gone or the volume does not exist any
// more. The controller sends the resource version it has read with each apply,
// so that it never decides on what has changed meanwhile.
//
// # What a node does
//
// A node watches the checkpoints that have its name in the label
// bowline.dev/node and ignores those whose status.nodeName is another, since
// anybody may write a label. How far it may go is told by status.step:
//
//	""        nothing: the controller has not accepted the checkpoint
//	Prepare   trim; then phase Prepared
//	Freeze    trim if that was not done, and freeze; then phase Frozen
//	Switch    open the checkpoint, with all that has to go before, and thaw;
//	          then phase Checkpointed
//	Abort     thaw, drop a checkpoint that was opened; then phase Failed with
//	          reason Aborted
//
// A checkpoint on its own gets Switch at once; Prepare and Freeze are for
// groups. A freeze ends by itself after ten seconds at most; a node that is
// told to switch later than that fails the checkpoint with reason
// FreezeExpired, and the group is aborted.
//
// If the effective state is Committed and no checkpoint was opened yet, none
// is: the node goes to phase Committed with reason NeverOpened. If it is
// RolledBack then, to phase Failed with that reason.
//
// A node that finds its volume gone, or on it another checkpoint or none where
// there should be one, goes to phase Failed with reason Lost or
// AnotherCheckpoint. As long as condition Checkpointed is true, the object does
// not vanish; a checkpoint that failed but is still on the volume, its log
// damaged for instance, has to be committed still if the effective state says so.
// Should it be found sound again, it goes on in the phase where it is. No deadline and
// no rollout decides meanwhile, neither of it nor of the group that it is a member of.
//
// Events are the controller's: it tells of what conditions say, whoever wrote
// them, on the checkpoint, its claim and the pods that use it.
//
// +kubebuilder:object:generate=true
// +groupName=bowline.dev
package v1alpha1
