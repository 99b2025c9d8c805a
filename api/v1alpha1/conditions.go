package v1alpha1

// Types of conditions of VolumeCheckpoints. A VolumeCheckpointGroup has those
// of its members: Checkpointed, Committed and RolledBack if they hold for all of
// them, SpaceLow, DeviceFailing and Failed if they hold for any.
const (
	// ConditionAccepted: the claim is bound to a volume of Bowline's on a node
	// that exists, and no other checkpoint is open on it. Controller.
	ConditionAccepted = "Accepted"

	// ConditionPodsReleased: a rollback with podPolicy Evict has no pods before
	// it any more. False while pods are being evicted; its reason tells whether
	// a disruption budget holds them. Controller.
	ConditionPodsReleased = "PodsReleased"

	// ConditionCheckpointed: there is an open checkpoint on the volume. False
	// before and after. Node.
	ConditionCheckpointed = "Checkpointed"

	// ConditionCommitted: the checkpoint was dropped and what was written since
	// stays. Node.
	ConditionCommitted = "Committed"

	// ConditionRolledBack: the volume has the content of the checkpoint again.
	// False with a reason while a rollback waits or runs. Node.
	ConditionRolledBack = "RolledBack"

	// ConditionSpaceLow: there is little space left for backups. Node.
	ConditionSpaceLow = "SpaceLow"

	// ConditionDeviceFailing: operations of the volume's backing device have failed
	// within the last ten minutes. False when they have not any more, and not there
	// if they never have. While the volume is not in use it stays as it was. Node.
	ConditionDeviceFailing = "DeviceFailing"

	// ConditionFailed: the checkpoint cannot be had, or cannot be rolled back.
	// Its message says what to do. Controller first, then node.
	ConditionFailed = "Failed"
)

// Reasons of Accepted. With the ones marked (waits) the checkpoint stays Pending
// and is opened as soon as it can be; with the others it has failed for good.
const (
	ReasonAccepted          = "Accepted"
	ReasonClaimNotFound     = "ClaimNotFound"     // (waits) no such claim, yet
	ReasonClaimNotBound     = "ClaimNotBound"     // (waits) it has no volume, yet
	ReasonClaimDeleted      = "ClaimDeleted"      // (waits) it is being deleted; its successor will do
	ReasonVolumeNotFound    = "VolumeNotFound"    // (waits) its persistent volume does not exist
	ReasonNodeNotFound      = "NodeNotFound"      // (waits) the node of the volume does not exist
	ReasonCheckpointEnding  = "CheckpointEnding"  // (waits) an older checkpoint of the claim is about to end
	ReasonOtherDriver       = "OtherDriver"       // the volume is not Bowline's
	ReasonVolumeUnusable    = "VolumeUnusable"    // a volume of Bowline's that names no node
	ReasonAnotherCheckpoint = "AnotherCheckpoint" // an older checkpoint of the claim is open
	ReasonNeverOpened       = "NeverOpened"       // it was created as RolledBack or Committed, or decided before it was opened
)

// Reasons of Accepted and Failed that only groups have.
const (
	ReasonNoClaims      = "NoClaims"      // (waits) no claim has the labels, yet
	ReasonTooManyClaims = "TooManyClaims" // more than a group may have
	ReasonNameTaken     = "NameTaken"     // a VolumeCheckpoint that is not of the group has the name of a member's
	ReasonMemberFailed  = "MemberFailed"  // the checkpoint of a member cannot be opened, or not be rolled back
	ReasonTooSlow       = "TooSlow"       // not all members were ready in time
)

// Reasons of PodsReleased.
const (
	ReasonPodsGone          = "PodsGone"
	ReasonEvicting          = "Evicting"          // evictions are accepted, pods terminate
	ReasonDisruptionBudget  = "DisruptionBudget"  // a PodDisruptionBudget refuses the eviction now; it is tried again
	ReasonWorkloadUnchanged = "WorkloadUnchanged" // the workload still has the version whose rollout failed: evicted pods would be made of it again
	ReasonEvictionFailed    = "EvictionFailed"    // the API server refuses it for another reason; it is tried again
)

// Reasons of decisions.
const (
	ReasonDeadline       = "Deadline"       // spec.deadline has passed
	ReasonVerified       = "Verified"       // the rollout of spec.verify is complete
	ReasonRolloutFailed  = "RolloutFailed"  // the rollout of spec.verify has failed
	ReasonVerifyTimeout  = "VerifyTimeout"  // the rollout of spec.verify was not complete in time
	ReasonDeleted        = "Deleted"        // the object was deleted
	ReasonGroup          = "Group"          // the group decided
	ReasonMemberFinished = "MemberFinished" // of a group: the checkpoint of a member ended on its own
)

// Reasons of Checkpointed, Committed, RolledBack, SpaceLow, DeviceFailing and Failed.
const (
	ReasonPending        = "Pending"        // not yet
	ReasonOpen           = "Open"           // the checkpoint is open
	ReasonCommitted      = "Committed"      // it was committed
	ReasonRolledBack     = "RolledBack"     // it was rolled back
	ReasonRequested      = "Requested"      // a rollback is marked on the volume
	ReasonWaitingForPods = "WaitingForPods" // the volume is in use: status.rollback.waitingFor
	ReasonRestoring      = "Restoring"      // the old content is being put back
	ReasonRestoreFailed  = "RestoreFailed"  // putting it back failed; it is tried again
	ReasonOutOfSpace     = "OutOfSpace"     // there was no space for another backup
	ReasonBelowMinimum   = "BelowMinimum"   // less is free than spec.minimumFree
	ReasonEnoughSpace    = "EnoughSpace"
	ReasonDeviceErrors   = "DeviceErrors"   // the backing device fails: the message has one of its errors
	ReasonNoDeviceErrors = "NoDeviceErrors" // it does not any more
	ReasonNoSpace        = "NoSpace"        // too little is free to open a checkpoint
	ReasonVolumeNotInUse = "VolumeNotInUse" // the volume is mounted nowhere: the checkpoint opens when it is
	ReasonVolumeBusy     = "VolumeBusy"     // another operation runs; it is tried again
	ReasonEngineDown     = "EngineDown"     // the data plane of the node does not answer; it is tried again
	ReasonFreezeExpired  = "FreezeExpired"  // the group was not ready within the time a volume may be frozen
	ReasonAborted        = "Aborted"        // the group was aborted
	ReasonDamaged        = "Damaged"        // the log on the volume is damaged; nothing was touched
	ReasonLost           = "Lost"           // the volume or the checkpoint on it does not exist any more
	ReasonError          = "Error"          // anything else: see the message
)

// Reasons of events, on the checkpoint, its claim, and pods that use it.
const (
	EventCheckpointOpened    = "CheckpointOpened"
	EventCheckpointCommitted = "CheckpointCommitted"
	EventCheckpointRefused   = "CheckpointRefused"
	EventCheckpointFailed    = "CheckpointFailed"
	EventClaimNotFound       = "ClaimNotFound"
	EventRollbackStarted     = "RollbackStarted"
	EventRollbackComplete    = "RollbackComplete"
	EventRollbackFailed      = "RollbackFailed"
	EventRollbackWaiting     = "RollbackWaiting"
	EventEvicted             = "EvictedForRollback"
	EventEvictionBlocked     = "EvictionBlocked"
	EventSpaceLow            = "SpaceLow"
	EventDeviceFailing       = "DeviceFailing"
	EventDecided             = "Decided"
	EventNodeGone            = "NodeGone"
)
