package policy

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// Surroundings are the objects that a checkpoint which was not handed to a node
// depends on.
type Surroundings struct {
	Claim  *corev1.PersistentVolumeClaim // nil if there is none
	Volume *corev1.PersistentVolume      // of the claim; nil if there is none
	// NodeExists is asked about the node of the volume.
	NodeExists func(name string) bool
	// Others are checkpoints of the same claim, or of the same volume under
	// another name. The one in question may be among them.
	Others []v1alpha1.VolumeCheckpoint
}

// A Verdict says whether a checkpoint can be opened.
type Verdict struct {
	Reason  string // ReasonAccepted or another reason of the condition Accepted
	Message string
	// Final: it can never be opened. Otherwise, unless it is accepted, it is
	// looked at again when something has changed.
	Final bool

	// If it is accepted:
	Node, Volume, Handle string
}

// Accepted says whether the checkpoint can be opened.
func (v Verdict) Accepted() bool { return v.Reason == v1alpha1.ReasonAccepted }

// Accept judges whether the checkpoint can be opened.
//
// What may still come makes it wait: with GitOps the checkpoint is often there
// before its claim, and a claim is bound only when a pod uses it. An older
// checkpoint that is about to end makes it wait, too, since one apply may
// commit the old one and create the new one. One that stays open does not: to be
// opened when that ends, hours later perhaps, is not what its creator has asked
// for.
func Accept(c *v1alpha1.VolumeCheckpoint, s Surroundings) Verdict {
	name := c.Spec.PersistentVolumeClaimName
	wait := func(reason, format string, args ...any) Verdict {
		return Verdict{Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	refuse := func(reason, format string, args ...any) Verdict {
		return Verdict{Reason: reason, Message: fmt.Sprintf(format, args...), Final: true}
	}
	claim, volume := s.Claim, s.Volume
	switch {
	case claim == nil:
		return wait(v1alpha1.ReasonClaimNotFound, "there is no claim %q in this namespace; the checkpoint is opened once it exists and a pod uses it", name)
	case claim.DeletionTimestamp != nil:
		return wait(v1alpha1.ReasonClaimDeleted, "claim %q is being deleted", name)
	case claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "":
		return wait(v1alpha1.ReasonClaimNotBound, "claim %q is not bound to a volume yet (it is %s); most are when a pod uses them", name, cmp.Or(string(claim.Status.Phase), "Pending"))
	case volume == nil, volume.Spec.ClaimRef == nil, volume.Spec.ClaimRef.UID != claim.UID:
		return wait(v1alpha1.ReasonVolumeNotFound, "claim %q is bound to volume %q, which does not exist or belongs to another claim", name, claim.Spec.VolumeName)
	}
	if driver := driverOf(volume); driver != v1alpha1.DriverName {
		return refuse(v1alpha1.ReasonOtherDriver, "the volume of claim %q is from %s; only those of %s have checkpoints", name, driver, v1alpha1.DriverName)
	}
	node := NodeOf(volume)
	if node == "" {
		return refuse(v1alpha1.ReasonVolumeUnusable, "volume %q has to name one node with %s in its node affinity", volume.Name, v1alpha1.TopologyKey)
	}
	if !s.NodeExists(node) {
		return wait(v1alpha1.ReasonNodeNotFound, "the data of claim %q is on node %q, which is not in the cluster", name, node)
	}
	if other := before(c, s.Others); other != nil {
		label := other.Name
		if other.Namespace != c.Namespace {
			label = other.Namespace + "/" + other.Name
		}
		if other.EffectiveState() != v1alpha1.Checkpointed || other.DeletionTimestamp != nil {
			return wait(v1alpha1.ReasonCheckpointEnding, "checkpoint %q of the same volume is about to end", label)
		}
		return refuse(v1alpha1.ReasonAnotherCheckpoint, "a volume has one checkpoint at a time and this one has %q; commit it or roll it back, then create this one anew", label)
	}
	message := ""
	if mode := volume.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
		message = "the volume is a raw block device: only what its user discards is free for backups, and it cannot be frozen, so it does not share the instant of a group"
	}
	return Verdict{
		Reason: v1alpha1.ReasonAccepted, Message: message,
		Node: node, Volume: volume.Name, Handle: volume.Spec.CSI.VolumeHandle,
	}
}

func driverOf(volume *corev1.PersistentVolume) string {
	if volume.Spec.CSI == nil {
		return "no CSI driver"
	}
	return volume.Spec.CSI.Driver
}

// NodeOf returns the name of the node that has a volume of Bowline's, "" if the
// volume does not name exactly one.
func NodeOf(volume *corev1.PersistentVolume) string {
	affinity := volume.Spec.NodeAffinity
	if affinity == nil || affinity.Required == nil {
		return ""
	}
	node := ""
	for _, term := range affinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key != v1alpha1.TopologyKey {
				continue
			}
			if e.Operator != corev1.NodeSelectorOpIn || len(e.Values) != 1 || (node != "" && node != e.Values[0]) {
				return ""
			}
			node = e.Values[0]
		}
	}
	return node
}

// before returns the checkpoint that goes before c on their volume: one that
// a node knows already, then the oldest. Times have whole seconds, so UIDs
// decide where they are equal. Nil if it is c's turn.
func before(c *v1alpha1.VolumeCheckpoint, others []v1alpha1.VolumeCheckpoint) *v1alpha1.VolumeCheckpoint {
	first := c
	for i := range others {
		o := &others[i]
		if o.UID == c.UID || (o.Finished() && !o.OnVolume()) {
			continue
		}
		if goesBefore(o, first) {
			first = o
		}
	}
	if first == c {
		return nil
	}
	return first
}

func goesBefore(a, b *v1alpha1.VolumeCheckpoint) bool {
	if a.OnVolume() != b.OnVolume() {
		return a.OnVolume()
	}
	if order := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); order != 0 {
		return order < 0
	}
	return a.UID < b.UID
}
