package node

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/test/apiserver"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// fixture is an API server, of which a test is the administrator, the user and
// the controller.
type fixture struct {
	client.Client
	api       *rest.Config // as the node
	namespace string
	node      string
}

func newFixture(t *testing.T) *fixture {
	admin := apiserver.Config(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(admin, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Client: c, api: rest.CopyConfig(admin), namespace: apiserver.Namespace(t), node: "node-" + rand.String(5)}
	user := "node-of-" + f.namespace
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: Access()}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}}}
	for _, o := range []client.Object{role, binding} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Delete(context.Background(), o); err != nil {
				t.Error(err)
			}
		})
	}
	f.api.Impersonate = rest.ImpersonationConfig{UserName: user}
	return f
}

// start runs the node's part until stop is called or the test ends.
func (f *fixture) start(t *testing.T, v Volumes) (metrics *prometheus.Registry, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	metrics = prometheus.NewPedanticRegistry()
	done := make(chan error)
	go func() {
		done <- Run(ctx, Config{Node: f.node, API: f.api, Volumes: v, Metrics: metrics, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return metrics, stop
}

// create makes a checkpoint that the controller has handed to a node.
func (f *fixture) create(t *testing.T, name string, change ...change) *v1alpha1.VolumeCheckpoint {
	t.Helper()
	c := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: name, Labels: map[string]string{v1alpha1.LabelNode: f.node}},
		Spec:       v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: "claim-" + name},
	}
	status := v1alpha1.VolumeCheckpointStatus{Phase: v1alpha1.PhasePending, NodeName: f.node, VolumeName: "pv-" + name, VolumeHandle: name, Step: v1alpha1.StepSwitch}
	template := &v1alpha1.VolumeCheckpoint{Spec: c.Spec, Status: status}
	for _, f := range change {
		f(template)
	}
	c.Spec = template.Spec
	if template.Labels != nil {
		template.Labels[v1alpha1.LabelNode] = f.node
		c.Labels = template.Labels
	}
	c.Finalizers = template.Finalizers
	if err := f.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	f.control(t, c, template.Status)
	return c
}

// control writes the controller's part of a status.
func (f *fixture) control(t *testing.T, c *v1alpha1.VolumeCheckpoint, s v1alpha1.VolumeCheckpointStatus) {
	t.Helper()
	object := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, UID: c.UID}}
	if err := apply.Status(t.Context(), f.Client, object, &s, v1alpha1.FieldManagerController); err != nil {
		t.Fatal(err)
	}
}

// step lets the node go on.
func (f *fixture) step(t *testing.T, c *v1alpha1.VolumeCheckpoint, step v1alpha1.Step) {
	t.Helper()
	f.control(t, c, v1alpha1.VolumeCheckpointStatus{NodeName: f.node, VolumeName: "pv-" + c.Name, VolumeHandle: c.Name, Step: step})
}

func (f *fixture) want(t *testing.T, c *v1alpha1.VolumeCheckpoint, s v1alpha1.DesiredState) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"desiredState":%q}}`, s)
	if err := f.Patch(t.Context(), c.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

// await waits until the checkpoint is as ok says.
func (f *fixture) await(t *testing.T, c *v1alpha1.VolumeCheckpoint, what string, ok func(*v1alpha1.VolumeCheckpoint) bool) *v1alpha1.VolumeCheckpoint {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	var now v1alpha1.VolumeCheckpoint
	for time.Now().Before(deadline) {
		if err := f.Get(t.Context(), client.ObjectKeyFromObject(c), &now); err != nil {
			t.Fatal(err)
		}
		if ok(&now) {
			return &now
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s is not %s: %+v", c.Name, what, now.Status)
	return nil
}

func (f *fixture) awaitPhase(t *testing.T, c *v1alpha1.VolumeCheckpoint, p v1alpha1.Phase) *v1alpha1.VolumeCheckpoint {
	t.Helper()
	return f.await(t, c, string(p), func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Phase == p })
}

func wantCondition(t *testing.T, c *v1alpha1.VolumeCheckpoint, condition string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	got := c.Condition(condition)
	if got == nil || got.Status != status || got.Reason != reason {
		t.Errorf("condition %s of %s is %+v, want %s/%s", condition, c.Name, got, status, reason)
	}
}

func TestCommit(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("commit")
	f.start(t, v)
	c := f.create(t, "commit")
	began := time.Now()
	open := f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed)
	t.Logf("Checkpointed after %v", time.Since(began))
	wantCondition(t, open, v1alpha1.ConditionCheckpointed, metav1.ConditionTrue, v1alpha1.ReasonOpen)
	wantCondition(t, open, v1alpha1.ConditionSpaceLow, metav1.ConditionFalse, v1alpha1.ReasonEnoughSpace)
	if s := open.Status; s.FreeForBackups.String() != "10Gi" || s.FreezeDuration.Duration != 12*time.Millisecond || s.CheckpointTime == nil {
		t.Errorf("status %+v", s)
	}
	if s := open.Status; s.VolumeName != "pv-commit" || s.Step != v1alpha1.StepSwitch || s.NodeName != f.node {
		t.Errorf("what the controller wrote is gone: %+v", s)
	}

	// The controller goes on without the fields that are the node's now.
	f.step(t, c, v1alpha1.StepSwitch)

	// Amounts alone are not worth a write at once, however often they change.
	before := f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed).ResourceVersion
	for range 100 {
		v.change("commit", func(v *fakeVolume) { v.facts.Open.Free -= mebibyte; v.facts.Open.BackedUp += 100 * mebibyte })
		time.Sleep(5 * time.Millisecond)
	}
	if now := f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed).ResourceVersion; now != before {
		t.Errorf("written again: resource version %s, was %s", now, before)
	}

	v.change("commit", func(v *fakeVolume) { v.facts.Open.Free = gib / 2; v.facts.Open.Changed = 9 * gib })
	low := f.await(t, c, "low on space", func(c *v1alpha1.VolumeCheckpoint) bool {
		condition := c.Condition(v1alpha1.ConditionSpaceLow)
		return condition != nil && condition.Status == metav1.ConditionTrue
	})
	if low.Status.Phase != v1alpha1.PhaseCheckpointed || low.Status.Changed.String() != "9Gi" || low.Status.FreeForBackups.String() != "512Mi" {
		t.Errorf("status %+v", low.Status)
	}

	f.want(t, c, v1alpha1.Committed)
	began = time.Now()
	done := f.awaitPhase(t, c, v1alpha1.PhaseCommitted)
	t.Logf("Committed after %v", time.Since(began))
	wantCondition(t, done, v1alpha1.ConditionCommitted, metav1.ConditionTrue, v1alpha1.ReasonCommitted)
	wantCondition(t, done, v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, v1alpha1.ReasonCommitted)
	if done.Condition(v1alpha1.ConditionSpaceLow) != nil || done.Status.FreeForBackups != nil || done.Status.CompletionTime == nil {
		t.Errorf("status %+v", done.Status)
	}
	if n := v.called("checkpoint", "commit"); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if n := v.called("commit", "commit"); n != 1 {
		t.Errorf("committed %d times", n)
	}
}

func TestRollback(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("rollback")
	metrics, _ := f.start(t, v)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "db-0"},
		Spec: corev1.PodSpec{NodeName: f.node, AutomountServiceAccountToken: new(false), Containers: []corev1.Container{{Name: "db", Image: "db"}}}}
	if err := f.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	target := "/var/lib/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~csi/pv-rollback/mount"
	v.change("rollback", func(v *fakeVolume) { v.facts.Publishers = []string{target, "/mnt/by-hand"} })

	c := f.create(t, "rollback")
	f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed)
	f.want(t, c, v1alpha1.RolledBack)
	waiting := f.awaitPhase(t, c, v1alpha1.PhaseRollbackPending)
	if got := strings.Join(waiting.Status.Rollback.WaitingFor, " "); got != "/mnt/by-hand "+f.namespace+"/db-0" {
		t.Errorf("waits for %q", got)
	}
	wantCondition(t, waiting, v1alpha1.ConditionRolledBack, metav1.ConditionFalse, v1alpha1.ReasonWaitingForPods)

	v.change("rollback", func(v *fakeVolume) { v.restore(0, 1000) })
	restoring := f.awaitPhase(t, c, v1alpha1.PhaseRollingBack)
	if len(restoring.Status.Rollback.WaitingFor) > 0 {
		t.Errorf("still waits for %v", restoring.Status.Rollback.WaitingFor)
	}
	v.change("rollback", func(v *fakeVolume) { v.restore(500, 1000) })
	f.await(t, c, "half done", func(c *v1alpha1.VolumeCheckpoint) bool { return *c.Status.Rollback.BytesDone == 500 })
	v.change("rollback", func(v *fakeVolume) { v.restore(1000, 1000) })
	done := f.awaitPhase(t, c, v1alpha1.PhaseRolledBack)
	wantCondition(t, done, v1alpha1.ConditionRolledBack, metav1.ConditionTrue, v1alpha1.ReasonRolledBack)
	if *done.Status.Rollback.BytesDone != 1000 || done.Status.Rollback.StartTime == nil {
		t.Errorf("progress %+v", done.Status.Rollback)
	}
	if n := v.called("rollback", "rollback"); n != 1 {
		t.Errorf("asked for %d times", n)
	}
	// It is counted when the report has been written, which was seen just now.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := counter(t, metrics, "bowline_rollback_total", "success")
		if got == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v rollbacks are counted", got)
		}
	}
}

func counter(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name && len(m.Label) == 1 && m.Label[0].GetValue() == label {
				return m.Counter.GetValue()
			}
		}
	}
	return -1
}

// TestDeviceFails: nobody tells that a device fails, or that it does not any more. What
// it fails with changes all the time, which is not worth a write each time.
func TestDeviceFails(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("fails")
	f.start(t, v)
	c := f.create(t, "fails")
	if open := f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed); open.Condition(v1alpha1.ConditionDeviceFailing) != nil {
		t.Errorf("status %+v", open.Status)
	}
	fails := func(what string) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.volumes["fails"].facts.DeviceError = what
	}
	await := func(status metav1.ConditionStatus, reason string) *v1alpha1.VolumeCheckpoint {
		t.Helper()
		now := f.await(t, c, "DeviceFailing "+string(status), func(c *v1alpha1.VolumeCheckpoint) bool {
			condition := c.Condition(v1alpha1.ConditionDeviceFailing)
			return condition != nil && condition.Status == status
		})
		wantCondition(t, now, v1alpha1.ConditionDeviceFailing, status, reason)
		return now
	}
	fails("I/O error at offset 0")
	before := await(metav1.ConditionTrue, v1alpha1.ReasonDeviceErrors)
	if message := before.Condition(v1alpha1.ConditionDeviceFailing).Message; !strings.Contains(message, "I/O error at offset 0") {
		t.Errorf("the message is %q", message)
	}
	for i := range 100 {
		v.change("fails", func(v *fakeVolume) { v.facts.DeviceError = fmt.Sprintf("I/O error at offset %d", 4096*i) })
		time.Sleep(5 * time.Millisecond)
	}
	if now := f.awaitPhase(t, c, v1alpha1.PhaseCheckpointed); now.ResourceVersion != before.ResourceVersion {
		t.Errorf("written again: resource version %s, was %s", now.ResourceVersion, before.ResourceVersion)
	}
	fails("")
	await(metav1.ConditionFalse, v1alpha1.ReasonNoDeviceErrors)
	fails("I/O error")
	await(metav1.ConditionTrue, v1alpha1.ReasonDeviceErrors)
	f.want(t, c, v1alpha1.Committed)
	if done := f.awaitPhase(t, c, v1alpha1.PhaseCommitted); done.Condition(v1alpha1.ConditionDeviceFailing) != nil {
		t.Errorf("status %+v", done.Status)
	}
}

// TestKilled says that a node plugin that was killed at any point between an
// action and the report of it, and started again, reports what is so.
func TestKilled(t *testing.T) {
	f := newFixture(t)
	ids := []string{"opened", "committed", "marked", "rolledback", "full", "dropped"}
	v := newFakeVolumes(ids...)
	created := map[string]*v1alpha1.VolumeCheckpoint{}
	for _, id := range ids {
		created[id] = f.create(t, id)
	}
	do := func(id string, do func(uid string) error) {
		t.Helper()
		if err := do(string(created[id].UID)); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		do(id, func(uid string) error { return v.Checkpoint(t.Context(), id, uid, Options{}) })
	}
	f.want(t, created["committed"], v1alpha1.Committed)
	do("committed", func(uid string) error { return v.Commit(t.Context(), "committed", uid) })
	f.want(t, created["marked"], v1alpha1.RolledBack)
	do("marked", func(uid string) error { return v.Rollback(t.Context(), "marked", uid) })
	f.want(t, created["rolledback"], v1alpha1.RolledBack)
	v.change("rolledback", func(v *fakeVolume) { v.end(RolledBack) })
	v.change("full", func(v *fakeVolume) { v.end(OutOfSpace) })
	v.change("dropped", func(v *fakeVolume) { v.end(Lost) })

	_, stop := f.start(t, v)
	for id, phase := range map[string]v1alpha1.Phase{
		"opened": v1alpha1.PhaseCheckpointed, "committed": v1alpha1.PhaseCommitted, "marked": v1alpha1.PhaseRollbackPending,
		"rolledback": v1alpha1.PhaseRolledBack, "full": v1alpha1.PhaseCommitted, "dropped": v1alpha1.PhaseFailed,
	} {
		f.awaitPhase(t, created[id], phase)
	}
	for _, id := range ids {
		if n := v.called("checkpoint", id); n != 1 {
			t.Errorf("%s was opened %d times", id, n)
		}
	}
	stop()

	// And once more, with what goes on while it is away.
	v.change("marked", func(v *fakeVolume) { v.restore(1, 1) })
	v.change("opened", func(v *fakeVolume) { v.end(OutOfSpace) })
	f.start(t, v)
	f.awaitPhase(t, created["marked"], v1alpha1.PhaseRolledBack)
	full := f.awaitPhase(t, created["opened"], v1alpha1.PhaseCommitted)
	wantCondition(t, full, v1alpha1.ConditionCommitted, metav1.ConditionTrue, v1alpha1.ReasonOutOfSpace)
}

// TestOwn says that a node leaves alone what is not its own, whatever the label
// says, and what the controller has not accepted.
func TestOwn(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("mine", "labelled", "early", "elsewhere")
	f.create(t, "labelled", func(c *v1alpha1.VolumeCheckpoint) { c.Status.NodeName = "another" })
	early := f.create(t, "early", inStep(""))
	elsewhere := f.create(t, "elsewhere")
	if err := f.Patch(t.Context(), elsewhere, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"bowline.dev/node":"another"}}}`))); err != nil {
		t.Fatal(err)
	}
	f.start(t, v)
	mine := f.create(t, "mine")
	f.awaitPhase(t, mine, v1alpha1.PhaseCheckpointed)
	for _, id := range []string{"labelled", "early", "elsewhere"} {
		if n := v.called("facts", id); n > 0 {
			t.Errorf("volume %s was looked at", id)
		}
	}
	f.step(t, early, v1alpha1.StepSwitch)
	f.awaitPhase(t, early, v1alpha1.PhaseCheckpointed)
}

func TestTroubles(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("unused", "down", "small", "deleted")
	v.change("unused", func(v *fakeVolume) { v.failing(map[string]error{"checkpoint": ErrNotStaged}) })
	v.change("down", func(v *fakeVolume) { v.failing(map[string]error{"facts": ErrEngineDown}) })
	f.start(t, v)

	unused, down := f.create(t, "unused"), f.create(t, "down")
	small := f.create(t, "small", minimumFree(11*gib))
	reason := func(reason string) func(*v1alpha1.VolumeCheckpoint) bool {
		return func(c *v1alpha1.VolumeCheckpoint) bool {
			condition := c.Condition(v1alpha1.ConditionCheckpointed)
			return condition != nil && condition.Reason == reason
		}
	}
	f.await(t, unused, "waiting", reason(v1alpha1.ReasonVolumeNotInUse))
	f.await(t, down, "waiting", reason(v1alpha1.ReasonEngineDown))
	failed := f.awaitPhase(t, small, v1alpha1.PhaseFailed)
	wantCondition(t, failed, v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonNoSpace)
	if failed.OnVolume() {
		t.Error("a checkpoint that was refused is on the volume")
	}

	v.change("unused", func(v *fakeVolume) { v.failing(nil) })
	v.change("down", func(v *fakeVolume) { v.failing(nil) })
	f.awaitPhase(t, unused, v1alpha1.PhaseCheckpointed)
	f.awaitPhase(t, down, v1alpha1.PhaseCheckpointed)

	// A checkpoint that the volume lost, and one that was dropped by itself.
	v.change("down", func(v *fakeVolume) { v.facts.Open = nil })
	lost := f.awaitPhase(t, down, v1alpha1.PhaseFailed)
	wantCondition(t, lost, v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonLost)
	v.change("unused", func(v *fakeVolume) { v.end(OutOfSpace) })
	full := f.awaitPhase(t, unused, v1alpha1.PhaseCommitted)
	wantCondition(t, full, v1alpha1.ConditionCommitted, metav1.ConditionTrue, v1alpha1.ReasonOutOfSpace)

	// Deleting an open one commits it; the finalizer is the controller's.
	gone := f.create(t, "deleted", func(c *v1alpha1.VolumeCheckpoint) { c.Finalizers = []string{v1alpha1.Finalizer} })
	f.awaitPhase(t, gone, v1alpha1.PhaseCheckpointed)
	if err := f.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	f.awaitPhase(t, gone, v1alpha1.PhaseCommitted)
	if err := f.Patch(t.Context(), gone, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	if err := f.Get(t.Context(), client.ObjectKeyFromObject(gone), gone); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestGroup(t *testing.T) {
	f := newFixture(t)
	v := newFakeVolumes("together", "late", "aborted")
	f.start(t, v)
	prepare := []change{ofGroup, inStep(v1alpha1.StepPrepare)}
	together, late, aborted := f.create(t, "together", prepare...), f.create(t, "late", prepare...), f.create(t, "aborted", prepare...)
	all := []*v1alpha1.VolumeCheckpoint{together, late, aborted}
	for _, c := range all {
		f.awaitPhase(t, c, v1alpha1.PhasePrepared)
	}
	for _, c := range all {
		f.step(t, c, v1alpha1.StepFreeze)
	}
	for _, c := range all {
		f.awaitPhase(t, c, v1alpha1.PhaseFrozen)
	}
	v.change("late", func(v *fakeVolume) { v.frozen = "" })
	f.step(t, together, v1alpha1.StepSwitch)
	f.step(t, late, v1alpha1.StepSwitch)
	f.step(t, aborted, v1alpha1.StepAbort)
	f.awaitPhase(t, together, v1alpha1.PhaseCheckpointed)
	wantCondition(t, f.awaitPhase(t, late, v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonFreezeExpired)
	wantCondition(t, f.awaitPhase(t, aborted, v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonAborted)
	if n := v.called("thaw", "aborted"); n == 0 {
		t.Error("the volume of an aborted member was not thawed")
	}
	for _, c := range all {
		if n := v.called("freeze", c.Name); n != 1 {
			t.Errorf("%s was frozen %d times", c.Name, n)
		}
	}

	// The one that was opened already has to go, too.
	f.step(t, together, v1alpha1.StepAbort)
	wantCondition(t, f.awaitPhase(t, together, v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonAborted)
	if n := v.called("commit", "together"); n != 1 {
		t.Errorf("committed %d times", n)
	}
}
