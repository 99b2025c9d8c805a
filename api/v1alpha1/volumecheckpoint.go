package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A VolumeCheckpoint opens a checkpoint on the volume of a claim while it
// is in use. From then on the old content of whatever is overwritten is
// kept in the free space of the volume's file system. Setting
// spec.desiredState to Committed drops it, at once; setting it to
// RolledBack gives the volume the content of the checkpoint again, in
// place: same claim, same volume.
//
// A volume has one open checkpoint at a time. Deleting an open one commits
// it; deleting one that is being rolled back waits for the rollback.
//
// `kubectl wait` works for each step:
// kubectl wait volumecheckpoint/NAME --for=condition=Checkpointed
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vckpt,categories=bowline
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.spec.persistentVolumeClaimName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Free for backups",type=string,JSONPath=`.status.freeForBackups`
// +kubebuilder:printcolumn:name="Backed up",type=string,JSONPath=`.status.backedUp`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Accepted",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].reason`
// +kubebuilder:printcolumn:name="Desired",type=string,priority=1,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Decision",type=string,priority=1,JSONPath=`.status.decision.reason`
// +kubebuilder:printcolumn:name="Volume",type=string,priority=1,JSONPath=`.status.volumeName`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Failed")].message`
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || !has(oldSelf.status.decision) || self.spec.desiredState == oldSelf.spec.desiredState || self.spec.desiredState == oldSelf.status.decision.desiredState",message="it has already been decided how this checkpoint ends, see status.decision; desiredState cannot be set to the opposite"
type VolumeCheckpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What is wanted. Only desiredState may be changed later.
	// +required
	Spec VolumeCheckpointSpec `json:"spec"`

	// What is. Written by Bowline.
	// +optional
	Status VolumeCheckpointStatus `json:"status,omitempty,omitzero"`
}

// VolumeCheckpointList is a list of VolumeCheckpoints.
//
// +kubebuilder:object:root=true
type VolumeCheckpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VolumeCheckpoint `json:"items"`
}

// VolumeCheckpointSpec says which claim, and what is to become of the checkpoint.
//
// +kubebuilder:validation:XValidation:rule="self.persistentVolumeClaimName == oldSelf.persistentVolumeClaimName",message="persistentVolumeClaimName cannot be changed; create another VolumeCheckpoint for another claim"
type VolumeCheckpointSpec struct {
	// Name of the claim, in the namespace of this object. It may be created
	// later: the checkpoint is opened once the claim is bound and a pod uses it.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PersistentVolumeClaimName string `json:"persistentVolumeClaimName"`

	CheckpointPolicy `json:",inline"`
}

// CheckpointPolicy is what the specs of a checkpoint and of a group have in
// common.
//
// +kubebuilder:validation:XValidation:rule="oldSelf.desiredState == 'Checkpointed' || self.desiredState == oldSelf.desiredState",message="desiredState is final once it is Committed or RolledBack; create another VolumeCheckpoint"
// +kubebuilder:validation:XValidation:rule="self.outOfSpacePolicy == oldSelf.outOfSpacePolicy",message="outOfSpacePolicy cannot be changed; commit this checkpoint and create another"
// +kubebuilder:validation:XValidation:rule="has(self.minimumFree) == has(oldSelf.minimumFree) && (!has(self.minimumFree) || self.minimumFree == oldSelf.minimumFree)",message="minimumFree cannot be changed; commit this checkpoint and create another"
// +kubebuilder:validation:XValidation:rule="has(self.rollback) == has(oldSelf.rollback) && (!has(self.rollback) || self.rollback == oldSelf.rollback)",message="rollback cannot be changed; commit this checkpoint and create another"
// +kubebuilder:validation:XValidation:rule="has(self.deadline) == has(oldSelf.deadline) && (!has(self.deadline) || self.deadline == oldSelf.deadline)",message="deadline cannot be changed; commit this checkpoint and create another"
// +kubebuilder:validation:XValidation:rule="has(self.verify) == has(oldSelf.verify) && (!has(self.verify) || self.verify == oldSelf.verify)",message="verify cannot be changed; commit this checkpoint and create another"
type CheckpointPolicy struct {
	// Checkpointed opens the checkpoint and keeps it open. Committed drops it:
	// what was written since stays. RolledBack gives the volume the content of
	// the checkpoint again, as soon as no pod uses it. Committed and RolledBack
	// are final.
	// +optional
	// +kubebuilder:default=Checkpointed
	DesiredState DesiredState `json:"desiredState,omitempty"`

	// What happens when there is no free space left to keep old content in.
	// FailWrites: what would need it fails with "no space left on device", the
	// checkpoint stays. Commit: the checkpoint is dropped and writes go on.
	// +optional
	// +kubebuilder:default=FailWrites
	OutOfSpacePolicy OutOfSpacePolicy `json:"outOfSpacePolicy,omitempty"`

	// Free space that there must be to open the checkpoint, for instance 2Gi;
	// condition SpaceLow becomes true when less is left. Without it a checkpoint
	// is opened on any volume, and SpaceLow means less than a tenth of what was
	// free when it was opened.
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))",message="minimumFree must be a quantity above zero such as 512Mi or 2Gi"
	MinimumFree *resource.Quantity `json:"minimumFree,omitempty"`

	// How a rollback goes about it.
	// +optional
	Rollback *RollbackPolicy `json:"rollback,omitempty"`

	// What happens to a checkpoint that is still open after some time.
	// Without it a checkpoint stays open until somebody decides.
	// +optional
	Deadline *Deadline `json:"deadline,omitempty"`

	// Lets the rollout of a workload decide: complete commits, failed rolls back.
	//
	// What counts is the first change of the workload's pod template after this
	// object was accepted, and later ones that supersede it. Until then nothing
	// happens, however healthy the workload is; scaling it is no change. A
	// workload that did not exist counts as changed once it does. When all of
	// its replicas, at least one, are updated and available, the checkpoint is
	// committed. When a Deployment exceeds its progress deadline, or the timeout
	// passes, it is rolled back.
	//
	// The volume is rolled back, the workload is not: its template has to be
	// reverted, too, or the version that failed starts again on the old content.
	// So podPolicy Evict evicts no pods after a failed rollout until the template
	// is another one.
	// +optional
	Verify *Verify `json:"verify,omitempty"`
}

// DesiredState is what a checkpoint is to become.
//
// +kubebuilder:validation:Enum=Checkpointed;Committed;RolledBack
type DesiredState string

// The values of DesiredState.
const (
	Checkpointed DesiredState = "Checkpointed"
	Committed    DesiredState = "Committed"
	RolledBack   DesiredState = "RolledBack"
)

// OutOfSpacePolicy says what gives way when there is no space for backups left.
//
// +kubebuilder:validation:Enum=FailWrites;Commit
type OutOfSpacePolicy string

// The values of OutOfSpacePolicy.
const (
	OutOfSpaceFailWrites OutOfSpacePolicy = "FailWrites"
	OutOfSpaceCommit     OutOfSpacePolicy = "Commit"
)

// RollbackPolicy says how a rollback goes about it.
type RollbackPolicy struct {
	// A volume can be rolled back only while no pod uses it. Wait waits until
	// somebody has removed the pods. Evict evicts them, as kubectl drain does:
	// disruption budgets are respected. Pods that are made in their place on the
	// same node start when the rollback is done.
	// +optional
	// +kubebuilder:default=Wait
	PodPolicy PodPolicy `json:"podPolicy,omitempty"`
}

// PodPolicy says what a rollback does about pods that use the volume.
//
// +kubebuilder:validation:Enum=Wait;Evict
type PodPolicy string

// The values of PodPolicy.
const (
	PodPolicyWait  PodPolicy = "Wait"
	PodPolicyEvict PodPolicy = "Evict"
)

// Deadline ends a checkpoint that nobody has decided on.
type Deadline struct {
	// Time since the checkpoint was opened, for instance 30m or 24h; up to a year.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,6}(\\\\.[0-9]{1,3})?(h|m|s))+$') && duration(self) > duration('0s') && duration(self) <= duration('8784h')",message="must be a duration above zero and up to 8784h (a year), such as 90s, 30m or 24h"
	After metav1.Duration `json:"after"`

	// Commit or RollBack. A rollback obeys spec.rollback.podPolicy.
	// +required
	Action DeadlineAction `json:"action"`
}

// DeadlineAction is what a deadline does.
//
// +kubebuilder:validation:Enum=Commit;RollBack
type DeadlineAction string

// The values of DeadlineAction.
const (
	DeadlineCommit   DeadlineAction = "Commit"
	DeadlineRollBack DeadlineAction = "RollBack"
)

// Verify lets the rollout of a workload decide.
type Verify struct {
	// The workload, in the namespace of this object.
	// +required
	WorkloadRef WorkloadRef `json:"workloadRef"`

	// Time that the rollout may take from when the change was seen; 10m if not
	// given, up to a year.
	// +optional
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,6}(\\\\.[0-9]{1,3})?(h|m|s))+$') && duration(self) > duration('0s') && duration(self) <= duration('8784h')",message="must be a duration above zero and up to 8784h (a year), such as 90s, 30m or 24h"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// WorkloadRef names a workload of the same namespace.
type WorkloadRef struct {
	// Deployment or StatefulSet.
	// +required
	Kind WorkloadKind `json:"kind"`

	// Its name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// WorkloadKind is a kind of workload, of API group apps.
//
// +kubebuilder:validation:Enum=Deployment;StatefulSet
type WorkloadKind string

// The values of WorkloadKind.
const (
	WorkloadDeployment  WorkloadKind = "Deployment"
	WorkloadStatefulSet WorkloadKind = "StatefulSet"
)
