//go:build cluster

package e2e

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// startCheckpoint creates a VolumeCheckpoint of a claim.
func (n *tenant) startCheckpoint(name, claim string, change ...func(*v1alpha1.VolumeCheckpointSpec)) *v1alpha1.VolumeCheckpoint {
	n.Helper()
	c := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Name: name}}
	c.Spec.PersistentVolumeClaimName = claim
	for _, f := range change {
		f(&c.Spec)
	}
	n.create(c)
	return c
}

// newCheckpoint creates a VolumeCheckpoint of a claim in use and waits until it is
// open.
func (n *tenant) newCheckpoint(name, claim string, change ...func(*v1alpha1.VolumeCheckpointSpec)) *v1alpha1.VolumeCheckpoint {
	n.Helper()
	c := n.startCheckpoint(name, claim, change...)
	n.phase(c, v1alpha1.PhaseCheckpointed, phaseLimit)
	return c
}

func evict(s *v1alpha1.VolumeCheckpointSpec) {
	s.Rollback = &v1alpha1.RollbackPolicy{PodPolicy: v1alpha1.PodPolicyEvict}
}

// phase waits until a checkpoint is in a phase, and reads it. It fails when the
// checkpoint is in a final phase that is another one.
func (n *tenant) phase(c *v1alpha1.VolumeCheckpoint, want v1alpha1.Phase, limit time.Duration) {
	n.Helper()
	n.until(limit, func() error {
		if err := api.Get(n.Context(), client.ObjectKeyFromObject(c), c); err != nil {
			return err
		}
		now := c.Status.Phase
		if now == want {
			return nil
		}
		err := fmt.Errorf("checkpoint %s is %s, want %s\n%s", c.Name, now, want, describe(c))
		if now.Final() {
			n.Fatal(err)
		}
		return err
	})
}

// condition waits until a condition of a checkpoint has a status and a reason; any
// reason if that is empty.
func (n *tenant) condition(c *v1alpha1.VolumeCheckpoint, kind string, status metav1.ConditionStatus, reason string, limit time.Duration) {
	n.Helper()
	n.until(limit, func() error {
		if err := api.Get(n.Context(), client.ObjectKeyFromObject(c), c); err != nil {
			return err
		}
		now := meta.FindStatusCondition(c.Status.Conditions, kind)
		if now == nil || now.Status != status || reason != "" && now.Reason != reason {
			return fmt.Errorf("condition %s of checkpoint %s is not %s %s\n%s", kind, c.Name, status, reason, describe(c))
		}
		return nil
	})
}

// desire sets the desired state of a checkpoint.
func (n *tenant) desire(c *v1alpha1.VolumeCheckpoint, state v1alpha1.DesiredState) {
	n.Helper()
	n.change(c, func() { c.Spec.DesiredState = state })
}

// equal fails for what is not as it should be.
func equal[T comparable](n *tenant, what string, got, want T) {
	n.Helper()
	if got != want {
		n.Errorf("%s: got %v, want %v", what, got, want)
	}
}
