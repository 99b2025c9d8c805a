package checkpoint

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// A checkpoint that is there before its claim is opened once everything else is.
func TestClaimComesLater(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.checkpoint("before", "data", v1alpha1.CheckpointPolicy{})
	f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonClaimNotFound)
	claim := f.claim("data")
	c := f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonClaimNotBound)
	if c.Status.Phase != v1alpha1.PhasePending || c.Status.Step != "" || len(c.Finalizers) != 0 {
		t.Errorf("while it waits: %+v, finalizers %v", c.Status, c.Finalizers)
	}
	node := "node-of-" + f.namespace
	f.bind(claim, v1alpha1.DriverName, node)
	f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonNodeNotFound)
	f.node()
	c = f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	if c.Status.Step != v1alpha1.StepSwitch || c.Status.NodeName != node || c.Labels[v1alpha1.LabelNode] != node ||
		c.Status.VolumeHandle != "data."+f.namespace || !slices.Contains(c.Finalizers, v1alpha1.Finalizer) {
		t.Errorf("accepted: %+v, labels %v, finalizers %v", c.Status, c.Labels, c.Finalizers)
	}
	f.wantEvents("before", v1alpha1.EventClaimNotFound)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	node := f.node()
	f.bind(f.claim("foreign"), "ebs.csi.aws.com", node.Name)
	f.checkpoint("foreign", "foreign", v1alpha1.CheckpointPolicy{})
	f.waitReason("foreign", v1alpha1.ConditionFailed, v1alpha1.ReasonOtherDriver)

	f.checkpoint("too-late", "foreign", v1alpha1.CheckpointPolicy{DesiredState: v1alpha1.RolledBack})
	f.waitReason("too-late", v1alpha1.ConditionFailed, v1alpha1.ReasonNeverOpened)
	f.checkpoint("nothing", "foreign", v1alpha1.CheckpointPolicy{DesiredState: v1alpha1.Committed})
	f.waitReason("nothing", v1alpha1.ConditionCommitted, v1alpha1.ReasonNeverOpened)
	for name, phase := range map[string]v1alpha1.Phase{"foreign": v1alpha1.PhaseFailed, "too-late": v1alpha1.PhaseFailed, "nothing": v1alpha1.PhaseCommitted} {
		c := f.get(name)
		if c.Status.Phase != phase || c.Status.CompletionTime == nil {
			t.Errorf("%s: %+v", name, c.Status)
		}
		f.delete(c)
		f.waitGone(name)
	}
	f.wantEvents("foreign", v1alpha1.EventCheckpointRefused)
}

// The second checkpoint on a volume fails while the first stays, and begins when
// the first is about to end.
func TestTwoOnOneClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.accepted(v1alpha1.CheckpointPolicy{})
	f.nodeWrites("before", f.open())
	f.checkpoint("second", "data", v1alpha1.CheckpointPolicy{})
	f.waitReason("second", v1alpha1.ConditionFailed, v1alpha1.ReasonAnotherCheckpoint)

	f.change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.Committed })
	f.checkpoint("third", "data", v1alpha1.CheckpointPolicy{})
	f.waitReason("third", v1alpha1.ConditionAccepted, v1alpha1.ReasonCheckpointEnding)
	f.nodeWrites("before", f.at(v1alpha1.PhaseCommitted, is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
	f.waitReason("third", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	f.wait("before", "lost its finalizer", func(c *v1alpha1.VolumeCheckpoint) bool { return len(c.Finalizers) == 0 })
}

// What the node writes stays the node's, whatever the controller writes later,
// and the other way round.
func TestOwnership(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.accepted(v1alpha1.CheckpointPolicy{Deadline: &v1alpha1.Deadline{After: metav1.Duration{Duration: time.Hour}, Action: v1alpha1.DeadlineRollBack}})
	moved := int64(7)
	s := f.open()
	s.MovedBackups = &moved
	f.nodeWrites("before", s)
	f.wantEvents("before", v1alpha1.EventCheckpointOpened)
	f.advance(2*time.Hour, "before")
	c := f.wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.RolledBack || d.Reason != v1alpha1.ReasonDeadline {
		t.Errorf("decision %+v", d)
	}
	if c.Status.Phase != v1alpha1.PhaseCheckpointed || c.Status.MovedBackups == nil || c.Condition(v1alpha1.ConditionCheckpointed) == nil {
		t.Errorf("the node's fields are gone: %+v", c.Status)
	}
	f.nodeWrites("before", f.at(v1alpha1.PhaseRolledBack, is(v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack)))
	c = f.wait("before", "lost its finalizer", func(c *v1alpha1.VolumeCheckpoint) bool { return len(c.Finalizers) == 0 })
	if c.Status.MovedBackups != nil || c.Status.Decision == nil || c.Status.Phase != v1alpha1.PhaseRolledBack || c.Status.NodeName == "" {
		t.Errorf("in the end: %+v", c.Status)
	}
	f.wantEvents("before", v1alpha1.EventCheckpointOpened, v1alpha1.EventDecided, v1alpha1.EventRollbackComplete)
	f.wantEvents("data", v1alpha1.EventCheckpointOpened, v1alpha1.EventRollbackComplete)
}

func TestVerifyCommits(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.deployment()
	f.accepted(v1alpha1.CheckpointPolicy{Verify: &v1alpha1.Verify{WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: d.Name}}})
	f.nodeWrites("before", f.open())
	// Complete, but unchanged: nothing is decided.
	f.advance(time.Hour, "before")
	time.Sleep(300 * time.Millisecond)
	if d := f.get("before").Status.Decision; d != nil {
		t.Fatalf("decided without a change: %+v", d)
	}
	d.Spec.Template.Spec.Containers[0].Image = "db:2"
	f.update(d)
	f.advance(0, "before")
	f.wait("before", "sees the change", func(c *v1alpha1.VolumeCheckpoint) bool {
		return c.Status.Verification != nil && c.Status.Verification.StartTime != nil
	})
	d.Status.ObservedGeneration = d.Generation
	f.updateStatus(d)
	f.advance(time.Second, "before")
	c := f.wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.Committed || d.Reason != v1alpha1.ReasonVerified {
		t.Errorf("decision %+v", d)
	}
}

func TestVerifyRollsBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.deployment()
	f.accepted(v1alpha1.CheckpointPolicy{Verify: &v1alpha1.Verify{WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: d.Name}}})
	f.nodeWrites("before", f.open())
	d.Spec.Template.Spec.Containers[0].Image = "db:broken"
	f.update(d)
	d.Status.ObservedGeneration = d.Generation
	d.Status.UpdatedReplicas, d.Status.AvailableReplicas = 1, 0
	f.updateStatus(d)
	f.wait("before", "sees the change", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Verification.StartTime != nil })
	f.advance(11*time.Minute, "before")
	c := f.wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
	if d := c.Status.Decision; d.DesiredState != v1alpha1.RolledBack || d.Reason != v1alpha1.ReasonVerifyTimeout {
		t.Errorf("decision %+v", d)
	}
}

// Deletion commits an open checkpoint, waits for a rollback, and never waits for
// what does not exist any more.
func TestDeletion(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before  func(f *fixture)
		decided bool // by the deletion
		finish  func(f *fixture, node *corev1.Node, volume *corev1.PersistentVolume)
	}{
		"open": {
			before:  func(f *fixture) { f.nodeWrites("before", f.open()) },
			decided: true,
			finish: func(f *fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.nodeWrites("before", f.at(v1alpha1.PhaseCommitted, is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
			},
		},
		"being opened": {
			before:  func(f *fixture) {},
			decided: true,
			finish: func(f *fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.nodeWrites("before", f.at(v1alpha1.PhaseCommitted, is(v1alpha1.ConditionCommitted, v1alpha1.ReasonNeverOpened)))
			},
		},
		"being rolled back": {
			before: func(f *fixture) {
				f.nodeWrites("before", f.open())
				f.change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
				f.nodeWrites("before", f.at(v1alpha1.PhaseRollingBack, is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen)))
			},
			finish: func(f *fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.nodeWrites("before", f.at(v1alpha1.PhaseRolledBack, is(v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack)))
			},
		},
		"damaged": {
			before: func(f *fixture) {
				f.nodeWrites("before", f.open())
				f.change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
				f.nodeWrites("before", f.at(v1alpha1.PhaseFailed, is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen), is(v1alpha1.ConditionFailed, v1alpha1.ReasonDamaged)))
			},
			decided: true,
			finish: func(f *fixture, _ *corev1.Node, _ *corev1.PersistentVolume) {
				f.nodeWrites("before", f.at(v1alpha1.PhaseCommitted, is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
			},
		},
		"node gone": {
			before:  func(f *fixture) { f.nodeWrites("before", f.open()) },
			decided: true,
			finish:  func(f *fixture, node *corev1.Node, _ *corev1.PersistentVolume) { f.delete(node) },
		},
		"volume gone": {
			before:  func(f *fixture) { f.nodeWrites("before", f.open()) },
			decided: true,
			finish: func(f *fixture, _ *corev1.Node, volume *corev1.PersistentVolume) {
				f.removeFinalizers(volume)
				f.delete(volume)
				f.change("before", func(c *v1alpha1.VolumeCheckpoint) { metav1.SetMetaDataAnnotation(&c.ObjectMeta, "test", "now") })
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			node, volume := f.accepted(v1alpha1.CheckpointPolicy{})
			test.before(f)
			f.delete(f.get("before"))
			if test.decided {
				c := f.wait("before", "is decided", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Decision != nil })
				if d := c.Status.Decision; d.DesiredState != v1alpha1.Committed || d.Reason != v1alpha1.ReasonDeleted {
					t.Errorf("decision %+v", d)
				}
			} else {
				time.Sleep(300 * time.Millisecond)
				if d := f.get("before").Status.Decision; d != nil {
					t.Errorf("decision %+v", d)
				}
			}
			test.finish(f, node, volume)
			f.waitGone("before")
		})
	}
}

// A node that has gone leaves its checkpoints in doubt; one that comes back goes
// on with them; without the volume they are lost.
func TestNodeGone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	node, volume := f.accepted(v1alpha1.CheckpointPolicy{})
	f.nodeWrites("before", f.open())
	f.delete(node)
	f.wait("before", "is in doubt", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == v1alpha1.PhaseUnknown })
	f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonNodeNotFound)

	node.ResourceVersion = ""
	f.create(node)
	f.waitReason("before", v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted)
	f.nodeWrites("before", f.open())
	f.wait("before", "goes on", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == v1alpha1.PhaseCheckpointed })

	f.removeFinalizers(volume)
	f.delete(volume)
	f.delete(node)
	f.waitReason("before", v1alpha1.ConditionFailed, v1alpha1.ReasonLost)
	f.advance(time.Minute, "before")
	time.Sleep(300 * time.Millisecond)
	if c := f.get("before"); c.Status.Phase != v1alpha1.PhaseFailed {
		t.Errorf("a minute later: %+v", c.Status)
	}
	f.wantEvents("before", v1alpha1.EventNodeGone)
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
	f.create(budget)
	budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
	f.updateStatus(budget)
	f.accepted(v1alpha1.CheckpointPolicy{Rollback: &v1alpha1.RollbackPolicy{PodPolicy: v1alpha1.PodPolicyEvict}})
	f.nodeWrites("before", f.open())
	pod, bystander := f.pod("db-0", "data"), f.pod("web-0", "other")

	f.change("before", func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = v1alpha1.RolledBack })
	s := f.at(v1alpha1.PhaseRollbackPending, is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen), isNot(v1alpha1.ConditionRolledBack, v1alpha1.ReasonWaitingForPods))
	now := metav1.NewTime(f.now())
	s.Rollback = &v1alpha1.RollbackProgress{StartTime: &now}
	f.nodeWrites("before", s)
	f.waitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonDisruptionBudget)
	if f.exists(pod) == false {
		t.Fatal("the pod was evicted in spite of its budget")
	}
	f.wantEvents("before", v1alpha1.EventEvictionBlocked, v1alpha1.EventRollbackWaiting)

	budget.Status.DisruptionsAllowed = 1
	f.updateStatus(budget)
	f.waitReason("before", v1alpha1.ConditionPodsReleased, v1alpha1.ReasonPodsGone)
	if f.exists(pod) {
		t.Error("the pod is still there")
	}
	if !f.exists(bystander) {
		t.Error("a pod without the claim was evicted")
	}
	time.Sleep(time.Until(now.Add(1100 * time.Millisecond))) // times have whole seconds
	successor := f.pod("db-0", "data")
	f.advance(time.Second, "before")
	time.Sleep(300 * time.Millisecond)
	if !f.exists(successor) {
		t.Error("the successor was evicted, too")
	}
	f.wantEvents("db-0", v1alpha1.EventEvicted, v1alpha1.EventRollbackWaiting)
}

func (f *fixture) deployment() *appsv1.Deployment {
	f.Helper()
	labels := map[string]string{"app": "db"}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db:1"}}},
			},
		},
	}
	f.create(d)
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, ReadyReplicas: 1, AvailableReplicas: 1}
	f.updateStatus(d)
	return d
}

func (f *fixture) pod(name, claim string) *corev1.Pod {
	f.Helper()
	none := int64(0)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "db"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			Containers:                    []corev1.Container{{Name: "db", Image: "db:1"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		},
	}
	f.create(p)
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	f.updateStatus(p)
	return p
}

func (f *fixture) update(o client.Object) {
	f.Helper()
	if err := f.client.Update(f.Context(), o); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) updateStatus(o client.Object) {
	f.Helper()
	if err := f.client.Status().Update(f.Context(), o); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) removeFinalizers(o client.Object) {
	f.Helper()
	err := f.client.Patch(f.Context(), o, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) exists(p *corev1.Pod) bool {
	f.Helper()
	var found corev1.Pod
	err := f.client.Get(f.Context(), client.ObjectKeyFromObject(p), &found)
	if client.IgnoreNotFound(err) != nil {
		f.Fatal(err)
	}
	return err == nil && found.UID == p.UID && found.DeletionTimestamp == nil
}

// wantEvents waits for events with these reasons about the object of that name.
func (f *fixture) wantEvents(name string, reasons ...string) {
	f.Helper()
	deadline := time.Now().Add(patience)
	for {
		var list eventsv1.EventList
		if err := f.client.List(f.Context(), &list, client.InNamespace(f.namespace)); err != nil {
			f.Fatal(err)
		}
		var got []string
		for _, e := range list.Items {
			if e.Regarding.Name == name {
				got = append(got, e.Reason)
			}
		}
		missing := slices.DeleteFunc(slices.Clone(reasons), func(r string) bool { return slices.Contains(got, r) })
		if len(missing) == 0 {
			sorted := slices.Sorted(slices.Values(got))
			if len(slices.Compact(slices.Clone(sorted))) != len(sorted) && name != "db-0" {
				f.Errorf("events about %q were written twice: %v", name, sorted)
			}
			return
		}
		if time.Now().After(deadline) {
			f.Fatalf("events about %q: %v; missing %v", name, got, missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
