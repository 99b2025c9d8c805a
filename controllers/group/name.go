package group

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// checkpointName is the name of the checkpoint that a group makes for a claim:
// GROUP-CLAIM, shortened if it is too long, with a digest of both, since
// "a-b" and "c" would otherwise have the name of "a" and "b-c".
func checkpointName(group, claim string) string {
	const most = 253
	sum := sha256.Sum256([]byte(group + "/" + claim))
	suffix := "-" + hex.EncodeToString(sum[:4])
	name := group + "-" + claim
	if len(name) > most-len(suffix) {
		name = name[:most-len(suffix)]
	}
	return strings.TrimRight(name, "-.") + suffix
}

// newCheckpoint is the checkpoint of a member. How it ends is the group's
// business.
func newCheckpoint(g *v1alpha1.VolumeCheckpointGroup, m v1alpha1.GroupMember) *v1alpha1.VolumeCheckpoint {
	return &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: g.Namespace, Name: m.Checkpoint,
			Labels: map[string]string{v1alpha1.LabelGroup: string(g.UID)},
			OwnerReferences: []metav1.OwnerReference{
				*metav1.NewControllerRef(g, v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindVolumeCheckpointGroup)),
			},
		},
		Spec: v1alpha1.VolumeCheckpointSpec{
			PersistentVolumeClaimName: m.Claim,
			CheckpointPolicy: v1alpha1.CheckpointPolicy{
				OutOfSpacePolicy: g.Spec.OutOfSpacePolicy,
				MinimumFree:      g.Spec.MinimumFree,
				Rollback:         g.Spec.Rollback,
			},
		},
	}
}
