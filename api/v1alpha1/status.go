package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VolumeCheckpointStatus is what is known of a checkpoint. The package comment
// says who writes what.
type VolumeCheckpointStatus struct {
	// One word for where the checkpoint is. Conditions have the details.
	// +optional
	Phase Phase `json:"phase,omitempty"`

	// The node that has the volume.
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// The persistent volume of the claim.
	// +optional
	VolumeName string `json:"volumeName,omitempty"`

	// The volume's handle: what the node knows it by.
	// +optional
	VolumeHandle string `json:"volumeHandle,omitempty"`

	// How far the node may go.
	// +optional
	Step Step `json:"step,omitempty"`

	// What was decided other than by spec.desiredState. It is final and goes
	// before spec.desiredState.
	// +optional
	Decision *Decision `json:"decision,omitempty"`

	// What is known of the rollout of spec.verify.
	// +optional
	Verification *Verification `json:"verification,omitempty"`

	// The instant whose content a rollback brings back.
	// +optional
	CheckpointTime *metav1.Time `json:"checkpointTime,omitempty"`

	// When the checkpoint was committed, rolled back or lost.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`

	// Free space that old content can still be kept in. This and the other
	// amounts are written when something happens and every 30 seconds while a
	// checkpoint is open, in whole MiB; metrics are exact.
	// +optional
	FreeForBackups *resource.Quantity `json:"freeForBackups,omitempty"`

	// Old content that is kept, rounded up to MiB.
	// +optional
	BackedUp *resource.Quantity `json:"backedUp,omitempty"`

	// What was written since the checkpoint, and what was kept together with it
	// because it will likely be written too, rounded up to MiB; free space that
	// was written is part of it and needs no backup.
	// +optional
	Changed *resource.Quantity `json:"changed,omitempty"`

	// Old content that had to be moved elsewhere because the file system wanted
	// the space that it was kept in, in bytes.
	// +optional
	MovedBackups *int64 `json:"movedBackups,omitempty"`

	// How long writes to the volume stood still when the checkpoint was opened.
	// +optional
	FreezeDuration *metav1.Duration `json:"freezeDuration,omitempty"`

	// Progress of a rollback.
	// +optional
	Rollback *RollbackProgress `json:"rollback,omitempty"`

	// Accepted, Checkpointed, Committed, RolledBack, PodsReleased, SpaceLow,
	// DeviceFailing, Failed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Phase is where a checkpoint is, in one word.
//
// +kubebuilder:validation:Enum=Pending;Prepared;Frozen;Checkpointed;RollbackPending;RollingBack;RolledBack;Committed;Failed;Unknown
type Phase string

// The values of Phase.
const (
	// PhasePending: not opened yet; conditions Accepted and Checkpointed say why.
	PhasePending Phase = "Pending"
	// PhasePrepared: member of a group; free space is known.
	PhasePrepared Phase = "Prepared"
	// PhaseFrozen: member of a group; writes stand still until all are frozen.
	PhaseFrozen Phase = "Frozen"
	// PhaseCheckpointed: the checkpoint is open.
	PhaseCheckpointed Phase = "Checkpointed"
	// PhaseRollbackPending: the rollback is marked on the volume and waits
	// until no pod uses it.
	PhaseRollbackPending Phase = "RollbackPending"
	// PhaseRollingBack: the old content is being put back.
	PhaseRollingBack Phase = "RollingBack"
	// PhaseRolledBack: the volume has the content of the checkpoint. Final.
	PhaseRolledBack Phase = "RolledBack"
	// PhaseCommitted: the checkpoint was dropped. Final.
	PhaseCommitted Phase = "Committed"
	// PhaseFailed: there is no checkpoint, or it cannot be rolled back; condition
	// Failed says why. Final, unless condition Checkpointed is true: then the
	// checkpoint is still on the volume, damaged, until somebody ends it or what
	// is wrong with it passes.
	PhaseFailed Phase = "Failed"
	// PhaseUnknown: the node has gone from the cluster. If it comes back, the
	// checkpoint goes on where it was.
	PhaseUnknown Phase = "Unknown"
)

// Step is how far the controller lets a node go; the package comment has the
// meanings.
//
// +kubebuilder:validation:Enum=Prepare;Freeze;Switch;Abort
type Step string

// The values of Step.
const (
	StepPrepare Step = "Prepare"
	StepFreeze  Step = "Freeze"
	StepSwitch  Step = "Switch"
	StepAbort   Step = "Abort"
)

// Decision is how a checkpoint ends if spec.desiredState does not say.
type Decision struct {
	// Committed or RolledBack.
	// +required
	DesiredState DesiredState `json:"desiredState"`

	// Deadline, Verified, RolloutFailed, VerifyTimeout, Deleted, Group or
	// MemberFinished.
	// +required
	Reason string `json:"reason"`

	// Why, for people.
	// +optional
	Message string `json:"message,omitempty"`

	// When it was decided.
	// +required
	Time metav1.Time `json:"time"`
}

// Verification is what is remembered of the rollout that spec.verify watches.
type Verification struct {
	// UID of the workload when the checkpoint was accepted; empty if there was
	// none.
	// +optional
	WorkloadUID string `json:"workloadUID,omitempty"`

	// Revision of its pod template at that time.
	// +optional
	Revision string `json:"revision,omitempty"`

	// When another revision was seen: the timeout runs from here.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// Revision of its pod template whose rollout failed.
	// +optional
	FailedRevision string `json:"failedRevision,omitempty"`

	// What the rollout looks like, for people.
	// +optional
	Message string `json:"message,omitempty"`
}

// RollbackProgress is how far a rollback has come.
type RollbackProgress struct {
	// When the rollback was marked on the volume.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// Who uses the volume: namespace/name of pods where they are known, paths
	// on the node otherwise.
	// +optional
	// +listType=atomic
	WaitingFor []string `json:"waitingFor,omitempty"`

	// Bytes put back, of bytesTotal.
	// +optional
	BytesDone *int64 `json:"bytesDone,omitempty"`

	// Bytes to put back.
	// +optional
	BytesTotal *int64 `json:"bytesTotal,omitempty"`
}
