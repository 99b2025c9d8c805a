//go:build cluster

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// TestVerify: the rollout of a Deployment decides.
func TestVerify(t *testing.T) {
	t.Parallel()
	verify := func(s *v1alpha1.VolumeCheckpointSpec) {
		s.Verify = &v1alpha1.Verify{
			WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: "app"},
			Timeout:     &metav1.Duration{Duration: 2 * time.Minute},
		}
	}
	decided := func(n *tenant, c *v1alpha1.VolumeCheckpoint, reason string) {
		n.Helper()
		if d := c.Status.Decision; d == nil || d.Reason != reason {
			n.Errorf("not decided by %s\n%s", reason, describe(c))
		}
		equal(n, "the desired state, which is the user's", c.Spec.DesiredState, v1alpha1.Checkpointed)
	}
	t.Run("NeverReady", func(t *testing.T) {
		t.Parallel()
		n := newTenant(t)
		n.newClaim(ext4, "256Mi")
		d := n.newDeployment("app", claim, 6)
		p := n.podWith("app")
		n.exec(p.Name, fill(32))
		sum := n.exec(p.Name, checksum)
		c := n.newCheckpoint("upgrade", claim, verify)
		n.change(d, func() {
			c := &d.Spec.Template.Spec.Containers[0]
			c.Command[2] = wreck + "; " + idle
			c.ReadinessProbe = &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}},
				PeriodSeconds: 1,
			}
		})
		// Evicted, the same version would start again on the old content.
		n.phase(c, v1alpha1.PhaseRollbackPending, time.Minute)
		n.scaleDeployment(d, 0)
		n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
		decided(n, c, v1alpha1.ReasonRolloutFailed)
		n.newPod("look", claim)
		equal(n, "the content after the rollback", n.exec("look", checksum), sum)
	})
	t.Run("Complete", func(t *testing.T) {
		t.Parallel()
		n := newTenant(t)
		n.newClaim(ext4, "64Mi")
		d := n.newDeployment("app", claim, 60)
		c := n.newCheckpoint("upgrade", claim, verify)
		n.change(d, func() { d.Spec.Template.Spec.Containers[0].Command[2] = "echo new >new; " + idle })
		n.phase(c, v1alpha1.PhaseCommitted, time.Minute)
		decided(n, c, v1alpha1.ReasonVerified)
		equal(n, "what the new version wrote", n.exec(n.podWith("app").Name, "cat new"), "new")
	})
}

// TestDeadline: a checkpoint that nobody decides on.
func TestDeadline(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	deadline := func(action v1alpha1.DeadlineAction) func(*v1alpha1.VolumeCheckpointSpec) {
		return func(s *v1alpha1.VolumeCheckpointSpec) {
			s.Deadline = &v1alpha1.Deadline{After: metav1.Duration{Duration: 4 * time.Second}, Action: action}
			evict(s)
		}
	}
	n.newClaim(ext4, "64Mi")
	n.newClaim(ext4, "64Mi", named("other"))
	p, other := n.newPod("user", claim), n.newPod("other", "other")
	for _, pod := range []*corev1.Pod{p, other} {
		n.exec(pod.Name, "echo old >file; sync file")
	}
	back := n.newCheckpoint("back", claim, deadline(v1alpha1.DeadlineRollBack))
	on := n.newCheckpoint("on", "other", deadline(v1alpha1.DeadlineCommit))
	for _, pod := range []*corev1.Pod{p, other} {
		n.exec(pod.Name, "echo new >file; sync file")
	}
	n.phase(on, v1alpha1.PhaseCommitted, phaseLimit)
	n.phase(back, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("next", claim)
	equal(n, "the content after the rollback", n.exec("next", "cat file"), "old")
	equal(n, "the content after the commit", n.exec("other", "cat file"), "new")
	for _, c := range []*v1alpha1.VolumeCheckpoint{back, on} {
		if d := c.Status.Decision; d == nil || d.Reason != v1alpha1.ReasonDeadline {
			t.Errorf("not decided by the deadline\n%s", describe(c))
		}
		if took := c.Status.CompletionTime.Sub(c.Status.CheckpointTime.Time); took < 4*time.Second {
			t.Errorf("checkpoint %s ended after %v, the deadline is 4 s", c.Name, took)
		}
	}
}

// TestRefusals: checkpoints that cannot be.
func TestRefusals(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	n.newPod("user", claim)

	first := n.newCheckpoint("first", claim)
	second := n.startCheckpoint("second", claim)
	n.phase(second, v1alpha1.PhaseFailed, phaseLimit)
	n.condition(second, v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonAnotherCheckpoint, 0)
	n.remove(second)
	n.gone(second)
	n.read(first)
	equal(n, "the phase of the first after the second has come and gone", first.Status.Phase, v1alpha1.PhaseCheckpointed)

	// The claim need not exist yet.
	early := n.startCheckpoint("early", "later")
	n.condition(early, v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonClaimNotFound, phaseLimit)
	n.newClaim(ext4, "64Mi", named("later"))
	n.newPod("later", "later")
	n.phase(early, v1alpha1.PhaseCheckpointed, phaseLimit)

	// A volume of somebody else's.
	n.create(foreignVolume(n.namespace))
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), foreignVolume(n.namespace)); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	n.newClaim("", "64Mi", named("foreign"), func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = n.namespace })
	other := n.startCheckpoint("other", "foreign")
	n.phase(other, v1alpha1.PhaseFailed, phaseLimit)
	n.condition(other, v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonOtherDriver, 0)

	// What the API does not take.
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"another claim", func() { first.Spec.PersistentVolumeClaimName = "later" }},
		{"another policy", func() { first.Spec.OutOfSpacePolicy = v1alpha1.OutOfSpaceCommit }},
		{"a state that is none", func() { first.Spec.DesiredState = "Undone" }},
	} {
		n.read(first)
		before := first.DeepCopy()
		c.change()
		if err := api.Patch(n.Context(), first, client.MergeFrom(before)); err == nil {
			t.Errorf("an open checkpoint takes %s", c.what)
		}
	}
}

// foreignVolume is a persistent volume of no driver.
func foreignVolume(name string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *quantity("64Mi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/foreign"},
			},
		},
	}
}

// TestDeletedCheckpoint: deleting the object commits what is open, and waits for a
// rollback that was asked for.
func TestDeletedCheckpoint(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "128Mi")
	p := n.newPod("user", claim)
	write := func(what string) { n.exec("user", "echo "+what+" >file; sync file") }
	write("one")

	pending := n.startCheckpoint("pending", "none")
	n.condition(pending, v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonClaimNotFound, phaseLimit)
	n.remove(pending)
	n.gone(pending)

	open := n.newCheckpoint("open", claim)
	write("two")
	n.remove(open)
	n.gone(open)

	rolling := n.newCheckpoint("rolling", claim)
	write("three")
	n.desire(rolling, v1alpha1.RolledBack)
	n.phase(rolling, v1alpha1.PhaseRollbackPending, phaseLimit)
	n.remove(rolling)
	time.Sleep(time.Second) // in which it must not vanish
	n.read(rolling)
	n.remove(p)
	n.gone(rolling)
	n.gone(p)
	n.newPod("user", claim)
	equal(n, "the content after a commit and a rollback", n.exec("user", "cat file"), "two")
}

// TestDeletedClaim: the claim goes away under a checkpoint that is open, and under
// one that is to be rolled back.
func TestDeletedClaim(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	for _, rollback := range []bool{false, true} {
		c := n.newClaim(ext4, "64Mi")
		p := n.newPod("user", claim)
		v := n.volume(claim)
		k := n.newCheckpoint("checkpoint", claim)
		n.exec("user", "echo new >file; sync file")
		if rollback {
			n.desire(k, v1alpha1.RolledBack)
			n.phase(k, v1alpha1.PhaseRollbackPending, phaseLimit)
		}
		n.remove(c)
		n.remove(p)
		n.gone(p)
		n.gone(c)
		n.gone(v)
		n.until(phaseLimit, func() error {
			n.read(k)
			if !k.Finished() {
				return fmt.Errorf("the checkpoint of a deleted claim is %s\n%s", k.Status.Phase, describe(k))
			}
			return nil
		})
		n.remove(k)
		n.gone(k)
	}
}

// TestDeletedNamespace: everything goes at once, in each phase.
func TestDeletedNamespace(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	for _, name := range []string{"open", "waiting", "done"} {
		n.newClaim(ext4, "64Mi", named(name))
		n.newPod(name, name)
	}
	n.startCheckpoint("pending", "none")
	n.newCheckpoint("open", "open")
	waiting := n.newCheckpoint("waiting", "waiting")
	n.desire(waiting, v1alpha1.RolledBack)
	done := n.newCheckpoint("done", "done")
	n.desire(done, v1alpha1.Committed)
	n.phase(done, v1alpha1.PhaseCommitted, phaseLimit)
	n.phase(waiting, v1alpha1.PhaseRollbackPending, phaseLimit)
	began := time.Now()
	n.deleteNamespace()
	n.until(goneLimit, func() error {
		if left := n.volumes(n.Context()); len(left) > 0 {
			return fmt.Errorf("volumes are left: %v", left)
		}
		return nil
	})
	t.Logf("the namespace and its volumes were gone after %v", time.Since(began).Round(100*time.Millisecond))
}
