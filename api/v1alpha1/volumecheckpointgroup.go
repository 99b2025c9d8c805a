package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// A VolumeCheckpointGroup opens checkpoints on all claims that a selector
// finds, at one instant: all volumes are frozen before the first checkpoint
// is opened, and either all get one or none does. They may be on different
// nodes. It makes a VolumeCheckpoint for each claim, and one desired state
// holds for all.
//
// A raw block volume cannot be frozen: what is written to it around that
// instant may be in its checkpoint or not.
//
// The claims are those that match when all of them are bound and the group
// begins; claims made later do not belong to it. Deleting a group commits
// its checkpoints. If one of them ends by itself, the others are committed
// as well.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vckptgroup,categories=bowline
// +kubebuilder:printcolumn:name="Claims",type=integer,JSONPath=`.status.claims`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Desired",type=string,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Decision",type=string,priority=1,JSONPath=`.status.decision.reason`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Failed")].message`
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || !has(oldSelf.status.decision) || self.spec.desiredState == oldSelf.spec.desiredState || self.spec.desiredState == oldSelf.status.decision.desiredState",message="it has already been decided how this group ends, see status.decision; desiredState cannot be set to the opposite"
type VolumeCheckpointGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What is wanted. Only desiredState may be changed later.
	// +required
	Spec VolumeCheckpointGroupSpec `json:"spec"`

	// What is. Written by Bowline's controller.
	// +optional
	Status VolumeCheckpointGroupStatus `json:"status,omitempty,omitzero"`
}

// VolumeCheckpointGroupList is a list of VolumeCheckpointGroups.
//
// +kubebuilder:object:root=true
type VolumeCheckpointGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VolumeCheckpointGroup `json:"items"`
}

// VolumeCheckpointGroupSpec says which claims, and what is to become of their
// checkpoints.
//
// +kubebuilder:validation:XValidation:rule="self.selector == oldSelf.selector",message="selector cannot be changed; create another VolumeCheckpointGroup for other claims"
// +kubebuilder:validation:XValidation:rule="(has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || (has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)",message="selector must name at least one label; an empty one would take every claim of the namespace"
type VolumeCheckpointGroupSpec struct {
	// Labels of the claims, in the namespace of this object. The claims of a
	// StatefulSet have the labels of its volumeClaimTemplates.
	// +required
	Selector metav1.LabelSelector `json:"selector"`

	CheckpointPolicy `json:",inline"`
}

// VolumeCheckpointGroupStatus is what is known of the checkpoints of a group.
type VolumeCheckpointGroupStatus struct {
	// One word for where the group is: the phase of its members, or that of the
	// slowest of them.
	// +optional
	Phase Phase `json:"phase,omitempty"`

	// How far the members may go.
	// +optional
	Step Step `json:"step,omitempty"`

	// When step was set.
	// +optional
	StepTime *metav1.MicroTime `json:"stepTime,omitempty"`

	// Number of claims.
	// +optional
	Claims int32 `json:"claims,omitempty"`

	// The claims and their checkpoints, by name of the claim. The list does not
	// change once it is written.
	// +optional
	// +listType=map
	// +listMapKey=claim
	// +kubebuilder:validation:MaxItems=256
	Members []GroupMember `json:"members,omitempty"`

	// What was decided other than by spec.desiredState.
	// +optional
	Decision *Decision `json:"decision,omitempty"`

	// What is known of the rollout of spec.verify.
	// +optional
	Verification *Verification `json:"verification,omitempty"`

	// When the last of the checkpoints was opened.
	// +optional
	CheckpointTime *metav1.Time `json:"checkpointTime,omitempty"`

	// When all had been committed or rolled back, or the group had failed.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`

	// Accepted, Checkpointed, Committed, RolledBack, SpaceLow, DeviceFailing,
	// Failed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GroupMember is one claim of a group.
type GroupMember struct {
	// Name of the claim.
	// +required
	Claim string `json:"claim"`

	// Name of its VolumeCheckpoint.
	// +required
	Checkpoint string `json:"checkpoint"`

	// Phase of the checkpoint.
	// +optional
	Phase Phase `json:"phase,omitempty"`

	// The node that has the volume.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
}
