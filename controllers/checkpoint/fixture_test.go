package checkpoint

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/test/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// A fixture is a namespace of its own and a controller that runs for the test.
// The clock goes on by itself and jumps when advance is called.
type fixture struct {
	*testing.T
	client    client.Client
	namespace string
	jumped    *atomic.Int64
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	config := apiserver.Config(t)
	f := &fixture{T: t, namespace: apiserver.Namespace(t), jumped: new(atomic.Int64)}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if f.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{f.namespace: {}}}, Controller: configOfController(), Logger: logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &Reconciler{
		Client: m.GetClient(), Live: m.GetAPIReader(), Now: f.now, Log: slog.New(slog.NewTextHandler(output(), nil)),
		Events: &Events{Client: m.GetClient(), Instance: "test", Log: slog.New(slog.NewTextHandler(output(), nil))},
	}
	if err := r.SetUp(ctx, m); err != nil {
		t.Fatal(err)
	}
	go func() { stopped <- m.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("the manager: %v", err)
		}
	})
	return f
}

// output is where logs go: to the terminal with BOWLINE_TEST_LOG set.
func output() io.Writer {
	if os.Getenv("BOWLINE_TEST_LOG") != "" {
		return os.Stderr
	}
	return io.Discard
}

func logger() logr.Logger { return logr.FromSlogHandler(slog.NewTextHandler(output(), nil)) }

func configOfController() config.Controller {
	again := true // each test has a manager in the same process
	return config.Controller{SkipNameValidation: &again}
}

func (f *fixture) now() time.Time { return time.Now().Add(time.Duration(f.jumped.Load())) }

// advance lets time pass, and touches the checkpoint: what the controller has
// planned goes by the real clock.
func (f *fixture) advance(d time.Duration, name string) {
	f.Helper()
	f.jumped.Add(int64(d))
	f.change(name, func(c *v1alpha1.VolumeCheckpoint) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, "test", fmt.Sprint(f.jumped.Load()))
	})
}

func (f *fixture) create(objects ...client.Object) {
	f.Helper()
	for _, o := range objects {
		if _, cluster := o.(*corev1.Node); !cluster {
			o.SetNamespace(f.namespace)
		}
		if err := f.client.Create(f.Context(), o); err != nil {
			f.Fatal(err)
		}
	}
}

func (f *fixture) delete(o client.Object) {
	f.Helper()
	if err := f.client.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
		f.Fatal(err)
	}
}

// node makes a node that has volumes and returns its name.
func (f *fixture) node() *corev1.Node {
	f.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-of-" + f.namespace}}
	f.create(n)
	f.Cleanup(func() { f.delete(n) })
	return n
}

// claim makes a claim that is not bound.
func (f *fixture) claim(name string) *corev1.PersistentVolumeClaim {
	f.Helper()
	class := "bowline"
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: &class,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	f.create(c)
	return c
}

// bind gives the claim a volume, as the provisioner and the binder do.
func (f *fixture) bind(c *corev1.PersistentVolumeClaim, driver, node string) *corev1.PersistentVolume {
	f.Helper()
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: c.Name + "-" + f.namespace},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: c.Spec.AccessModes, StorageClassName: *c.Spec.StorageClassName,
			Capacity: c.Spec.Resources.Requests,
			ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: f.namespace, Name: c.Name, UID: c.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: c.Name + "." + f.namespace},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: v1alpha1.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
	if err := f.client.Create(f.Context(), v); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		// Without the controllers of Kubernetes nobody takes its
		// finalizer away.
		v.Finalizers = nil
		_ = f.client.Patch(context.Background(), v, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
		f.delete(v)
	})
	c.Spec.VolumeName = v.Name
	if err := f.client.Update(f.Context(), c); err != nil {
		f.Fatal(err)
	}
	c.Status.Phase = corev1.ClaimBound
	if err := f.client.Status().Update(f.Context(), c); err != nil {
		f.Fatal(err)
	}
	return v
}

// checkpoint creates a checkpoint of the claim.
func (f *fixture) checkpoint(name, claim string, policy v1alpha1.CheckpointPolicy) *v1alpha1.VolumeCheckpoint {
	f.Helper()
	c := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: claim, CheckpointPolicy: policy},
	}
	f.create(c)
	return c
}

// accepted makes a node, a claim and a checkpoint called "before", and waits
// until a node may begin.
func (f *fixture) accepted(policy v1alpha1.CheckpointPolicy) (*corev1.Node, *corev1.PersistentVolume) {
	f.Helper()
	node := f.node()
	volume := f.bind(f.claim("data"), v1alpha1.DriverName, node.Name)
	f.checkpoint("before", "data", policy)
	f.wait("before", "is accepted", func(c *v1alpha1.VolumeCheckpoint) bool { return c.Status.Step == v1alpha1.StepSwitch })
	return node, volume
}

func (f *fixture) get(name string) *v1alpha1.VolumeCheckpoint {
	f.Helper()
	var c v1alpha1.VolumeCheckpoint
	if err := f.client.Get(f.Context(), types.NamespacedName{Namespace: f.namespace, Name: name}, &c); err != nil {
		f.Fatal(err)
	}
	return &c
}

func (f *fixture) change(name string, change func(*v1alpha1.VolumeCheckpoint)) {
	f.Helper()
	c := f.get(name)
	before := c.DeepCopy()
	change(c)
	if err := f.client.Patch(f.Context(), c, client.MergeFrom(before)); err != nil {
		f.Fatal(err)
	}
}

const patience = 10 * time.Second

func (f *fixture) wait(name, what string, holds func(*v1alpha1.VolumeCheckpoint) bool) *v1alpha1.VolumeCheckpoint {
	f.Helper()
	deadline := time.Now().Add(patience)
	for {
		c := f.get(name)
		if holds(c) {
			return c
		}
		if time.Now().After(deadline) {
			f.Fatalf("checkpoint %q never %s; status %+v", name, what, c.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (f *fixture) waitGone(name string) {
	f.Helper()
	deadline := time.Now().Add(patience)
	for {
		var c v1alpha1.VolumeCheckpoint
		err := f.client.Get(f.Context(), types.NamespacedName{Namespace: f.namespace, Name: name}, &c)
		if client.IgnoreNotFound(err) != nil {
			f.Fatal(err)
		}
		if err != nil {
			return
		}
		if time.Now().After(deadline) {
			f.Fatalf("checkpoint %q never went; finalizers %v, status %+v", name, c.Finalizers, c.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitReason waits for a condition with that reason.
func (f *fixture) waitReason(name, condition, reason string) *v1alpha1.VolumeCheckpoint {
	f.Helper()
	return f.wait(name, "has "+condition+" "+reason, func(c *v1alpha1.VolumeCheckpoint) bool {
		got := c.Condition(condition)
		return got != nil && got.Reason == reason
	})
}

// nodeWrites writes the status of a checkpoint as its node does: all fields that
// are the node's.
func (f *fixture) nodeWrites(name string, s v1alpha1.VolumeCheckpointStatus) {
	f.Helper()
	c := f.get(name)
	c.ResourceVersion = "" // the node's fields are nobody else's business
	for i := range s.Conditions {
		if known := c.Condition(s.Conditions[i].Type); known != nil && known.Status == s.Conditions[i].Status {
			s.Conditions[i].LastTransitionTime = known.LastTransitionTime
		}
	}
	if err := apply.Status(f.Context(), f.client, c, &s, v1alpha1.FieldManagerNode); err != nil {
		f.Fatal(err)
	}
}

// at returns the status of a node in that phase.
func (f *fixture) at(phase v1alpha1.Phase, conditions ...metav1.Condition) v1alpha1.VolumeCheckpointStatus {
	s := v1alpha1.VolumeCheckpointStatus{Phase: phase}
	now := metav1.NewTime(f.now())
	for _, c := range conditions {
		c.LastTransitionTime = now
		meta.SetStatusCondition(&s.Conditions, c)
	}
	s.CheckpointTime = &now
	return s
}

func is(t, reason string) metav1.Condition {
	return metav1.Condition{Type: t, Status: metav1.ConditionTrue, Reason: reason}
}

func isNot(t, reason string) metav1.Condition {
	return metav1.Condition{Type: t, Status: metav1.ConditionFalse, Reason: reason}
}

// open is the status of an open checkpoint.
func (f *fixture) open() v1alpha1.VolumeCheckpointStatus {
	return f.at(v1alpha1.PhaseCheckpointed, is(v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen))
}
