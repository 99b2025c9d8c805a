package checkpoint

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/fixture"
	"github.com/bowline-csi/bowline/test/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

func newFixture(t *testing.T) *fixture.Fixture {
	t.Helper()
	return fixture.New(t, func(ctx context.Context, m ctrl.Manager, now func() time.Time, log *slog.Logger) error {
		r := &Reconciler{
			Client: m.GetClient(), Live: m.GetAPIReader(), Now: now, Log: log,
			Events: &Events{Client: m.GetClient(), Instance: "test", Log: log},
		}
		return r.SetUp(ctx, m)
	})
}

// A checkpoint that is there before its claim is opened once everything else is.
func TestClaimComesLater(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Checkpoint("before", "data", v1alpha1.CheckpointPolicy{})
	f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonClaimNotFound)
	claim := f.Claim("data")
	c := f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonClaimNotBound)
	if c.Status.Phase != v1alpha1.PhasePending || c.Status.Step != "" || len(c.Finalizers) != 0 {
		t.Errorf("while it waits: %+v, finalizers %v", c.Status, c.Finalizers)
	}
	node := "node-of-" + f.Namespace
	f.Bind(claim, v1alpha1.DriverName, node)
	f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonNodeNotFound)
	f.Node()
	c = f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	if c.Status.Step != v1alpha1.StepSwitch || c.Status.NodeName != node || c.Labels[v1alpha1.LabelNode] != node ||
		c.Status.VolumeHandle != "data."+f.Namespace || !slices.Contains(c.Finalizers, v1alpha1.Finalizer) {
		t.Errorf("accepted: %+v, labels %v, finalizers %v", c.Status, c.Labels, c.Finalizers)
	}
	f.WantEvents("before", v1alpha1.EventClaimNotFound)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	node := f.Node()
	f.Bind(f.Claim("foreign"), "ebs.csi.aws.com", node.Name)
	f.Checkpoint("foreign", "foreign", v1alpha1.CheckpointPolicy{})
	f.WaitReason("foreign", v1alpha1.ConditionFailed, v1alpha1.ReasonOtherDriver)

	f.Checkpoint("too-late", "foreign", v1alpha1.CheckpointPolicy{DesiredState: v1alpha1.RolledBack})
	f.WaitReason("too-late", v1alpha1.ConditionFailed, v1alpha1.ReasonNeverOpened)
	f.Checkpoint("nothing", "foreign", v1alpha1.CheckpointPolicy{DesiredState: v1alpha1.Committed})
	f.WaitReason("nothing", v1alpha1.ConditionCommitted, v1alpha1.ReasonNeverOpened)
	for name, phase := range map[string]v1alpha1.Phase{"foreign": v1alpha1.PhaseFailed, "too-late": v1alpha1.PhaseFailed, "nothing": v1alpha1.PhaseCommitted} {
		c := f.Get(name)
		if c.Status.Phase != phase || c.Status.CompletionTime == nil {
			t.Errorf("%s: %+v", name, c.Status)
		}
		f.Delete(c)
		f.WaitGone(name)
	}
	f.WantEvents("foreign", v1alpha1.EventCheckpointRefused)
}

// The second checkpoint on a volume fails while the first stays, and begins when
// the first is about to end.
func TestTwoOnOneClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Accepted(v1alpha1.CheckpointPolicy{})
	f.NodeWrites("before", f.Open())
	f.Checkpoint("second", "data", v1alpha1.CheckpointPolicy{})
	f.WaitReason("second", v1alpha1.ConditionFailed, v1alpha1.ReasonAnotherCheckpoint)

	f.Change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.Committed })
	f.Checkpoint("third", "data", v1alpha1.CheckpointPolicy{})
	f.WaitReason("third", v1alpha1.ConditionAccepted, v1alpha1.ReasonCheckpointEnding)
	f.NodeWrites("before", f.At(v1alpha1.PhaseCommitted, fixture.Is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
	f.WaitReason("third", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	f.Wait("before", "lost its finalizer", func(c *v1alpha1.VolumeCheckpoint) bool { return len(c.Finalizers) == 0 })
}

// What the node writes stays the node's, whatever the controller writes later,
// and the other way round.
func TestOwnership(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Accepted(v1alpha1.CheckpointPolicy{Deadline: &v1alpha1.Deadline{After: metav1.Duration{Duration: time.Hour}, Action: v1alpha1.DeadlineRollBack}})
	moved := int64(7)
	s := f.Open()
	s.MovedBackups = &moved
	f.NodeWrites("before", s)
	f.WantEvents("before", v1alpha1.EventCheckpointOpened)
	f.Advance(2*time.Hour, "before")
	c := f.Wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.RolledBack || d.Reason != v1alpha1.ReasonDeadline {
		t.Errorf("decision %+v", d)
	}
	if c.Status.Phase != v1alpha1.PhaseCheckpointed || c.Status.MovedBackups == nil || c.Condition(v1alpha1.ConditionCheckpointed) == nil {
		t.Errorf("the node's fields are gone: %+v", c.Status)
	}
	f.NodeWrites("before", f.At(v1alpha1.PhaseRolledBack, fixture.Is(v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack)))
	c = f.Wait("before", "lost its finalizer", func(c *v1alpha1.VolumeCheckpoint) bool { return len(c.Finalizers) == 0 })
	if c.Status.MovedBackups != nil || c.Status.Decision == nil || c.Status.Phase != v1alpha1.PhaseRolledBack || c.Status.NodeName == "" {
		t.Errorf("in the end: %+v", c.Status)
	}
	f.WantEvents("before", v1alpha1.EventCheckpointOpened, v1alpha1.EventDecided, v1alpha1.EventRollbackComplete)
	f.WantEvents("data", v1alpha1.EventCheckpointOpened, v1alpha1.EventRollbackComplete)
}

// Those who use a volume that is in trouble are told, and not when it is over.
func TestWarnings(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Accepted(v1alpha1.CheckpointPolicy{})
	f.Pod("db-0", "data")
	f.NodeWrites("before", f.At(v1alpha1.PhaseCheckpointed, fixture.Is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen),
		fixture.Is(v1alpha1.ConditionSpaceLow, v1alpha1.ReasonBelowMinimum), fixture.Is(v1alpha1.ConditionDeviceFailing, v1alpha1.ReasonDeviceErrors)))
	for _, name := range []string{"before", "data", "db-0"} {
		f.WantEvents(name, v1alpha1.EventSpaceLow, v1alpha1.EventDeviceFailing)
	}
	calm := f.At(v1alpha1.PhaseCheckpointed, fixture.IsNot(v1alpha1.ConditionSpaceLow, v1alpha1.ReasonEnoughSpace),
		fixture.IsNot(v1alpha1.ConditionDeviceFailing, v1alpha1.ReasonNoDeviceErrors))
	if everyone, own := news(&v1alpha1.VolumeCheckpoint{Status: calm}); len(everyone)+len(own) > 0 {
		t.Errorf("nothing is wrong any more: %+v, %+v", everyone, own)
	}
}

func TestVerifyCommits(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.Deployment()
	f.Accepted(v1alpha1.CheckpointPolicy{Verify: &v1alpha1.Verify{WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: d.Name}}})
	f.NodeWrites("before", f.Open())
	// Complete, but unchanged: nothing is decided.
	f.Advance(time.Hour, "before")
	time.Sleep(300 * time.Millisecond)
	if d := f.Get("before").Status.Decision; d != nil {
		t.Fatalf("decided without a change: %+v", d)
	}
	d.Spec.Template.Spec.Containers[0].Image = "db:2"
	f.Update(d)
	f.Advance(0, "before")
	f.Wait("before", "sees the change", func(c *v1alpha1.VolumeCheckpoint) bool {
		return c.Status.Verification != nil && c.Status.Verification.StartTime != nil
	})
	d.Status.ObservedGeneration = d.Generation
	f.UpdateStatus(d)
	f.Advance(time.Second, "before")
	c := f.Wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.Committed || d.Reason != v1alpha1.ReasonVerified {
		t.Errorf("decision %+v", d)
	}
}

func TestVerifyRollsBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.Deployment()
	f.Accepted(v1alpha1.CheckpointPolicy{
		Verify:   &v1alpha1.Verify{WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: d.Name}},
		Rollback: &v1alpha1.RollbackPolicy{PodPolicy: v1alpha1.PodPolicyEvict},
	})
	f.NodeWrites("before", f.Open())
	pod := f.Pod("db-0", "data")
	d.Spec.Template.Spec.Containers[0].Image = "db:broken"
	f.Update(d)
	d.Status.ObservedGeneration = d.Generation
	d.Status.UpdatedReplicas, d.Status.AvailableReplicas = 1, 0
	f.UpdateStatus(d)
	f.Wait("before", "sees the change", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Verification.StartTime != nil })
	f.Advance(11*time.Minute, "before")
	c := f.Wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.RolledBack || d.Reason != v1alpha1.ReasonVerifyTimeout {
		t.Errorf("decision %+v", d)
	}

	// The version that failed is not started again on the old content.
	f.MarkRollback("before")
	f.WaitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonWorkloadUnchanged)
	if !f.Exists(pod) {
		t.Error("a pod of the version that failed was evicted")
	}
	f.WantEvents("before", v1alpha1.EventEvictionBlocked)

	// Nor when somebody deletes the object.
	f.Delete(f.Get("before"))
	f.Wait("before", "is decided again", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision.Reason == v1alpha1.ReasonDeleted })
	f.Advance(time.Minute, "before")
	time.Sleep(300 * time.Millisecond)
	f.WaitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonWorkloadUnchanged)
	if !f.Exists(pod) {
		t.Error("a pod of the version that failed was evicted by a deletion")
	}
	d.Spec.Template.Spec.Containers[0].Image = "db:1"
	f.Update(d)
	f.WaitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonPodsGone)
	if f.Exists(pod) {
		t.Error("the pod is still there")
	}
}

// Deletion commits an open checkpoint, waits for a rollback, and never waits for
// what does not exist any more.
func TestDeletion(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before  func(f *fixture.Fixture)
		decided v1alpha1.DesiredState // by the deletion
		finish  func(f *fixture.Fixture, node *corev1.Node, volume *corev1.PersistentVolume)
	}{
		"open": {
			before:  func(f *fixture.Fixture) { f.NodeWrites("before", f.Open()) },
			decided: v1alpha1.Committed,
			finish: func(f *fixture.Fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.NodeWrites("before", f.At(v1alpha1.PhaseCommitted, fixture.Is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
			},
		},
		"being opened": {
			before:  func(f *fixture.Fixture) {},
			decided: v1alpha1.Committed,
			finish: func(f *fixture.Fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.NodeWrites("before", f.At(v1alpha1.PhaseCommitted, fixture.Is(v1alpha1.ConditionCommitted, v1alpha1.ReasonNeverOpened)))
			},
		},
		"being rolled back": {
			before: func(f *fixture.Fixture) {
				f.NodeWrites("before", f.Open())
				f.Change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
				f.NodeWrites("before", f.At(v1alpha1.PhaseRollingBack, fixture.Is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen)))
			},
			decided: v1alpha1.RolledBack,
			finish: func(f *fixture.Fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.NodeWrites("before", f.At(v1alpha1.PhaseRolledBack, fixture.Is(v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack)))
			},
		},
		"found damaged when rolled back": {
			before: func(f *fixture.Fixture) {
				f.NodeWrites("before", f.Open())
				f.Change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
			},
			decided: v1alpha1.RolledBack,
			finish: func(f *fixture.Fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.NodeWrites("before", f.At(v1alpha1.PhaseFailed, fixture.Is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen), fixture.Is(v1alpha1.ConditionFailed, v1alpha1.ReasonDamaged)))
				f.Advance(time.Minute, "before")
				time.Sleep(300 * time.Millisecond)
				if d := f.Get("before").Status.Decision; d.DesiredState != v1alpha1.RolledBack {
					t.Errorf("decision %+v", d)
				}
				f.NodeWrites("before", f.At(v1alpha1.PhaseFailed, fixture.Is(v1alpha1.ConditionFailed, v1alpha1.ReasonLost))) // rolled forward by hand
			},
		},
		"damaged": {
			before: func(f *fixture.Fixture) {
				f.NodeWrites("before", f.Open())
				f.Change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
				f.NodeWrites("before", f.At(v1alpha1.PhaseFailed, fixture.Is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen), fixture.Is(v1alpha1.ConditionFailed, v1alpha1.ReasonDamaged)))
			},
			decided: v1alpha1.Committed,
			finish: func(f *fixture.Fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.NodeWrites("before", f.At(v1alpha1.PhaseCommitted, fixture.Is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
			},
		},
		"node gone": {
			before:  func(f *fixture.Fixture) { f.NodeWrites("before", f.Open()) },
			decided: v1alpha1.Committed,
			finish:  func(f *fixture.Fixture, node *corev1.Node, _ *corev1.PersistentVolume) { f.Delete(node) },
		},
		"volume gone": {
			before:  func(f *fixture.Fixture) { f.NodeWrites("before", f.Open()) },
			decided: v1alpha1.Committed,
			finish: func(f *fixture.Fixture, _ *corev1.Node, volume *corev1.PersistentVolume) {
				f.RemoveFinalizers(volume)
				f.Delete(volume)
				f.Touch("before")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			node, volume := f.Accepted(v1alpha1.CheckpointPolicy{})
			test.before(f)
			f.Delete(f.Get("before"))
			c := f.Wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
			if d := c.Status.Decision; d.DesiredState != test.decided || d.Reason != v1alpha1.ReasonDeleted {
				t.Errorf("decision %+v", d)
			}
			test.finish(f, node, volume)
			f.WaitGone("before")
		})
	}
}

// A node that has gone leaves its checkpoints in doubt; one that comes back goes
// on with them; without the volume they are lost.
func TestNodeGone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	node, volume := f.Accepted(v1alpha1.CheckpointPolicy{})
	f.NodeWrites("before", f.Open())
	f.Delete(node)
	f.Wait("before", "is in doubt", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == v1alpha1.PhaseUnknown })
	f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonNodeNotFound)

	node.ResourceVersion = ""
	f.Create(node)
	f.WaitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	f.NodeWrites("before", f.Open())
	f.Wait("before", "goes on", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == v1alpha1.PhaseCheckpointed })

	f.RemoveFinalizers(volume)
	f.Delete(volume)
	f.Delete(node)
	f.WaitReason("before", v1alpha1.ConditionFailed, v1alpha1.ReasonLost)
	f.Advance(time.Minute, "before")
	time.Sleep(300 * time.Millisecond)
	if c := f.Get("before"); c.Status.Phase != v1alpha1.PhaseFailed {
		t.Errorf("a minute later: %+v", c.Status)
	}
	f.WantEvents("before", v1alpha1.EventNodeGone)

	node.ResourceVersion = ""
	f.Create(node)
	f.NodeWrites("before", f.Open())
	f.Wait("before", "goes on, for it was not lost", func(c *v1alpha1.VolumeCheckpoint) bool {
		return c.Status.Phase == v1alpha1.PhaseCheckpointed && c.Condition(v1alpha1.ConditionFailed) == nil && c.Status.CompletionTime == nil
	})
}

// A rollback evicts the pods that were there when it was marked, as far as
// disruption budgets allow, and none that came later.
func TestEvict(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &intstr.IntOrString{IntVal: 1},
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		},
	}
	f.Create(budget)
	budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
	f.UpdateStatus(budget)
	f.Accepted(v1alpha1.CheckpointPolicy{Rollback: &v1alpha1.RollbackPolicy{PodPolicy: v1alpha1.PodPolicyEvict}})
	f.NodeWrites("before", f.Open())
	pod, bystander := f.Pod("db-0", "data"), f.Pod("web-0", "other")

	f.Change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
	now := f.MarkRollback("before")
	f.WaitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonDisruptionBudget)
	if f.Exists(pod) == false {
		t.Fatal("the pod was evicted in spite of its budget")
	}
	f.WantEvents("before", v1alpha1.EventEvictionBlocked, v1alpha1.EventRollbackWaiting)

	budget.Status.DisruptionsAllowed = 1
	f.UpdateStatus(budget)
	f.WaitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonPodsGone)
	if f.Exists(pod) {
		t.Error("the pod is still there")
	}
	if !f.Exists(bystander) {
		t.Error("a pod without the claim was evicted")
	}
	time.Sleep(time.Until(now.Add(1100 * time.Millisecond))) // times have whole seconds
	successor := f.Pod("db-0", "data")
	f.Advance(time.Second, "before")
	time.Sleep(300 * time.Millisecond)
	if !f.Exists(successor) {
		t.Error("the successor was evicted, too")
	}
	f.WantEvents("db-0", v1alpha1.EventEvicted, v1alpha1.EventRollbackWaiting)
}
