//go:build cluster

package e2e

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// TestSuccessor: a pod that arrives while the rollback waits for its predecessor,
// on the same node, starts on rolled-back content only.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	for _, class := range []string{ext4, xfs} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			n := newTenant(t)
			n.newClaim(class, "512Mi")
			first := n.newPod("first", claim)
			n.exec("first", fill(64))
			sum := n.exec("first", checksum)
			c := n.newCheckpoint("checkpoint", claim)
			n.exec("first", wreck)
			n.desire(c, v1alpha1.RolledBack)
			n.phase(c, v1alpha1.PhaseRollbackPending, phaseLimit)
			n.until(phaseLimit, func() error {
				n.read(c)
				if r := c.Status.Rollback; r == nil || !slices.Contains(r.WaitingFor, n.namespace+"/first") {
					return errors.New("the status does not name the pod that it waits for\n" + describe(c))
				}
				return nil
			})
			second := n.startPod("second", claim, func(s *corev1.PodSpec) {
				s.Containers[0].Command[2] = checksum + " >/tmp/sum; mv /tmp/sum /tmp/found; " + idle
			})
			n.until(phaseLimit, func() error {
				n.read(second)
				if second.Status.Phase == corev1.PodRunning {
					t.Fatal("the successor runs while the rollback waits")
				}
				if n.eventOf("second", "FailedMount") == "" {
					return errors.New("nobody says why the successor waits")
				}
				return nil
			})
			began := time.Now()
			n.deletePod(first)
			n.ready(second)
			t.Logf("from the deletion of a pod until its successor runs on rolled-back content: %v", time.Since(began).Round(100*time.Millisecond))
			equal(n, "the content that the successor found", n.exec("second", "until [ -e /tmp/found ]; do sleep 0.1; done; cat /tmp/found"), sum)
			n.phase(c, v1alpha1.PhaseRolledBack, phaseLimit)
			if c.Status.CompletionTime == nil {
				t.Errorf("no completion time\n%s", describe(c))
			}
			// The volume is as good as before.
			again := n.newCheckpoint("again", claim)
			n.exec("second", wreck)
			n.desire(again, v1alpha1.Committed)
			n.phase(again, v1alpha1.PhaseCommitted, phaseLimit)
		})
	}
}

// TestGroup: two replicas on two nodes are checkpointed at one instant and rolled
// back together.
func TestGroup(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	set := n.newStatefulSet("pair", 2, podSpec("", idle))
	pods := []*corev1.Pod{n.podOf(set, 0), n.podOf(set, 1)}
	if pods[0].Spec.NodeName == pods[1].Spec.NodeName {
		t.Fatalf("both replicas are on %s", pods[0].Spec.NodeName)
	}
	sums := map[string]string{}
	for _, p := range pods {
		n.exec(p.Name, fill(32))
		sums[p.Name] = n.exec(p.Name, checksum)
	}
	g := n.newGroup("both", "pair")
	equal(n, "number of claims", g.Status.Claims, 2)
	for _, p := range pods {
		n.exec(p.Name, wreck)
	}
	g.Spec.DesiredState = v1alpha1.RolledBack
	n.change(g, func() { g.Spec.DesiredState = v1alpha1.RolledBack })
	n.groupPhase(g, v1alpha1.PhaseRolledBack, rollbackLimit)
	for i, p := range pods {
		after := n.podOf(set, i)
		if after.UID == p.UID {
			t.Errorf("pod %s was not evicted", p.Name)
		}
		equal(n, "the content of "+p.Name, n.exec(p.Name, checksum), sums[p.Name])
	}
	// Another one, committed.
	g = n.newGroup("again", "pair")
	n.exec("pair-0", wreck)
	sum := n.exec("pair-0", checksum)
	n.change(g, func() { g.Spec.DesiredState = v1alpha1.Committed })
	n.groupPhase(g, v1alpha1.PhaseCommitted, phaseLimit)
	equal(n, "the content after the commit", n.exec("pair-0", checksum), sum)
}

// newGroup creates a group of the claims of an application and waits until all
// have their checkpoint.
func (n *tenant) newGroup(name, app string) *v1alpha1.VolumeCheckpointGroup {
	n.Helper()
	g := &v1alpha1.VolumeCheckpointGroup{ObjectMeta: metav1.ObjectMeta{Name: name}}
	g.Spec.Selector.MatchLabels = map[string]string{"app": app}
	g.Spec.Rollback = &v1alpha1.RollbackPolicy{PodPolicy: v1alpha1.PodPolicyEvict}
	began := time.Now()
	n.create(g)
	n.groupPhase(g, v1alpha1.PhaseCheckpointed, phaseLimit)
	n.Logf("a group of %d claims was checkpointed after %v", g.Status.Claims, time.Since(began).Round(10*time.Millisecond))
	return g
}

func (n *tenant) groupPhase(g *v1alpha1.VolumeCheckpointGroup, want v1alpha1.Phase, limit time.Duration) {
	n.Helper()
	n.until(limit, func() error {
		n.read(g)
		if now := g.Status.Phase; now != want {
			err := errors.New("the group is " + string(now) + ", want " + string(want) + "\n" + describe(g))
			if now.Final() {
				n.Fatal(err)
			}
			return err
		}
		return nil
	})
}

// TestGroupAbort: if one of the claims cannot have a checkpoint, none gets one.
func TestGroupAbort(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	n.newClaim(ext4, "320Mi", named("large"))
	n.newPod("user", claim)
	n.newPod("large", "large")
	g := &v1alpha1.VolumeCheckpointGroup{ObjectMeta: metav1.ObjectMeta{Name: "group"}}
	g.Spec.Selector.MatchLabels = map[string]string{"app": "test"}
	g.Spec.MinimumFree = quantity("128Mi")
	n.create(g)
	n.groupPhase(g, v1alpha1.PhaseFailed, phaseLimit)
	n.exec("large", "echo content >file; sync file") // it is not frozen
	// And it has no checkpoint, or there could be no other.
	n.newCheckpoint("alone", "large")
}

// TestDisruptionBudget: an eviction for a rollback respects a budget.
func TestDisruptionBudget(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	d := n.newDeployment("app", claim, 60)
	p := n.podWith("app")
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "app"}}
	one := intstr.FromInt32(1)
	budget.Spec.MinAvailable, budget.Spec.Selector = &one, d.Spec.Selector
	n.create(budget)
	n.until(phaseLimit, func() error {
		n.read(budget)
		if budget.Status.ObservedGeneration == 0 || budget.Status.CurrentHealthy == 0 {
			return errors.New("the budget counts no pods")
		}
		return nil
	})
	n.exec(p.Name, "echo old >file; sync file")
	c := n.newCheckpoint("checkpoint", claim, evict)
	n.exec(p.Name, "echo new >file; sync file")
	n.desire(c, v1alpha1.RolledBack)
	n.condition(c, v1alpha1.ConditionPodsReleased, metav1.ConditionFalse, v1alpha1.ReasonDisruptionBudget, phaseLimit)
	equal(n, "what the pod that may not be evicted reads", n.exec(p.Name, "cat file"), "new")
	n.remove(budget)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.until(podLimit, func() error {
		next := n.podWith("app")
		if next.UID == p.UID {
			return errors.New("the pod was not evicted")
		}
		equal(n, "what the next pod reads", n.exec(next.Name, "cat file"), "old")
		return nil
	})
}

// TestOutOfSpace: the policies for when there is no space for old content left.
func TestOutOfSpace(t *testing.T) {
	t.Parallel()
	const megabytes = 100 // of 160 MiB: too much to be kept twice
	overwrite := "for f in files/*; do dd if=/dev/urandom of=$f bs=1M count=4 conv=notrunc,fsync status=none; done"
	t.Run("FailWrites", func(t *testing.T) {
		t.Parallel()
		n := newTenant(t)
		n.newClaim(ext4, "160Mi")
		p := n.newPod("user", claim)
		n.exec("user", fill(megabytes))
		sum := n.exec("user", checksum)
		c := n.newCheckpoint("checkpoint", claim)
		if _, err := n.tryExec("user", overwrite); err == nil {
			t.Error("everything was overwritten although there is no space for the old content")
		}
		n.condition(c, v1alpha1.ConditionSpaceLow, metav1.ConditionTrue, v1alpha1.ReasonOutOfSpace, phaseLimit)
		equal(n, "the phase", c.Status.Phase, v1alpha1.PhaseCheckpointed)
		n.desire(c, v1alpha1.RolledBack)
		n.remove(p)
		n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
		n.gone(p)
		n.newPod("next", claim)
		equal(n, "the content after the rollback", n.exec("next", checksum), sum)
	})
	t.Run("Commit", func(t *testing.T) {
		t.Parallel()
		n := newTenant(t)
		n.newClaim(ext4, "160Mi")
		p := n.newPod("user", claim)
		n.exec("user", fill(megabytes))
		c := n.newCheckpoint("checkpoint", claim, func(s *v1alpha1.VolumeCheckpointSpec) {
			s.OutOfSpacePolicy = v1alpha1.OutOfSpaceCommit
		})
		n.exec("user", overwrite)
		sum := n.exec("user", checksum)
		n.phase(c, v1alpha1.PhaseCommitted, phaseLimit)
		n.condition(c, v1alpha1.ConditionCommitted, metav1.ConditionTrue, v1alpha1.ReasonOutOfSpace, phaseLimit)
		n.deletePod(p)
		n.newPod("next", claim)
		equal(n, "the content", n.exec("next", checksum), sum)
	})
}

// TestMinimumFree: a checkpoint that asks for more space than there is fails and
// says so.
func TestMinimumFree(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	n.newPod("user", claim)
	c := n.startCheckpoint("checkpoint", claim, func(s *v1alpha1.VolumeCheckpointSpec) {
		s.MinimumFree = quantity("1Gi")
	})
	n.phase(c, v1alpha1.PhaseFailed, phaseLimit)
	n.condition(c, v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonNoSpace, 0)
	if m := c.Condition(v1alpha1.ConditionFailed).Message; !strings.Contains(m, "1Gi") {
		t.Errorf("the message does not say how much was wanted: %s", m)
	}
	n.newCheckpoint("less", claim, func(s *v1alpha1.VolumeCheckpointSpec) { s.MinimumFree = quantity("16Mi") })
}
