package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/test/apiserver"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// userRules are those of the package comment: the tests run with them.
var userRules = []rbacv1.PolicyRule{
	{APIGroups: []string{"bowline.dev"}, Resources: []string{"volumecheckpoints"}, Verbs: []string{"list", "watch", "create", "patch"}},
	{APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"}, Verbs: []string{"get", "list"}},
	{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
	{APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Verbs: []string{"create"}},
	{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list"}},
}

// world is an API server in which a test is whatever the plugin talks to:
// controller, node, scheduler and kubelet.
type world struct {
	client.Client
	namespace  string
	kubeconfig string
}

func newWorld(t *testing.T) *world {
	admin := apiserver.Config(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme} {
		must(add(scheme))
	}
	c, err := client.New(admin, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Client: c, namespace: apiserver.Namespace(t), kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	user := "user-of-" + w.namespace
	w.create(t, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: userRules})
	w.create(t, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}}})
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: admin.CertData, ClientKeyData: admin.KeyData, Token: admin.BearerToken, Impersonate: user}
	config.Contexts["here"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u", Namespace: w.namespace}
	config.CurrentContext = "here"
	if err := clientcmd.WriteToFile(*config, w.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return w
}

// create makes an object that goes with the test.
func (w *world) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := w.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Delete(context.Background(), o, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
}

func (w *world) claim(t *testing.T, name string) {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name}}
	claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	w.create(t, claim)
	claim.Status.Phase = corev1.ClaimBound
	if err := w.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
}

func (w *world) pod(t *testing.T, name, claim string) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: "node-1", AutomountServiceAccountToken: new(false), Containers: []corev1.Container{{Name: "c", Image: "i"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}}}
	w.create(t, pod)
	// Budgets protect pods only once they run.
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if err := w.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

// plugin runs the plugin and returns its exit code, and what it wrote.
func (w *world) plugin(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e strings.Builder
	code = run(t.Context(), append(args, "--kubeconfig", w.kubeconfig), &o, &e)
	t.Logf("kubectl bowline %s: %d\n%s%s", strings.Join(args, " "), code, o.String(), e.String())
	return code, o.String(), e.String()
}

// want runs the plugin and fails the test if it ends otherwise.
func (w *world) want(t *testing.T, code int, text string, args ...string) string {
	t.Helper()
	got, out, errOut := w.plugin(t, args...)
	if got != code || !strings.Contains(out+errOut, text) {
		t.Errorf("kubectl bowline %s: exit code %d, want %d, and %q in\n%s%s", strings.Join(args, " "), got, code, text, out, errOut)
	}
	return out
}

// simulate does what controller, node and kubelet would until the test ends:
// each turn, every checkpoint gets one step further.
func (w *world) simulate(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := w.turn(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func (w *world) turn(ctx context.Context) error {
	var pods corev1.PodList
	if err := w.List(ctx, &pods, client.InNamespace(w.namespace)); err != nil {
		return err
	}
	users := map[string]string{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.DeletionTimestamp == nil {
			users[pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName] = pod.Namespace + "/" + pod.Name
		} else if err := w.Delete(ctx, pod, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	var list v1alpha1.VolumeCheckpointList
	if err := w.List(ctx, &list, client.InNamespace(w.namespace)); err != nil {
		return err
	}
	for i := range list.Items {
		c := &list.Items[i]
		if c.Finished() || strings.HasPrefix(c.Name, "stuck") {
			continue
		}
		advance(c, users[c.Spec.PersistentVolumeClaimName])
		if err := w.Status().Update(ctx, c); err != nil && client.IgnoreNotFound(err) != nil && !isConflict(err) {
			return err
		}
	}
	return nil
}

func isConflict(err error) bool { return strings.Contains(err.Error(), "modified") }

// advance takes a checkpoint one step further, as if its volume had one user or
// none.
func advance(c *v1alpha1.VolumeCheckpoint, user string) {
	s := &c.Status
	set := func(condition string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: condition, Status: status, Reason: reason, Message: message})
	}
	now := metav1.Now()
	s.NodeName, s.VolumeName, s.VolumeHandle, s.Step = "node-1", "pv", "pv", v1alpha1.StepSwitch
	switch want := c.EffectiveState(); {
	case strings.HasPrefix(c.Spec.PersistentVolumeClaimName, "bad"):
		s.Phase = v1alpha1.PhaseFailed
		set(v1alpha1.ConditionFailed, metav1.ConditionTrue, v1alpha1.ReasonNoSpace, "The volume is full.")
	case s.Phase == "" || s.Phase == v1alpha1.PhasePending:
		s.Phase, s.CheckpointTime = v1alpha1.PhaseCheckpointed, &now
		s.FreeForBackups = resource.NewQuantity(3<<30, resource.BinarySI)
		s.FreezeDuration = &metav1.Duration{Duration: 12 * time.Millisecond}
		set(v1alpha1.ConditionCheckpointed, metav1.ConditionTrue, v1alpha1.ReasonOpen, "The checkpoint is open.")
	case want == v1alpha1.Committed:
		s.Phase, s.CompletionTime = v1alpha1.PhaseCommitted, &now
		set(v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, v1alpha1.ReasonCommitted, "Over.")
		set(v1alpha1.ConditionCommitted, metav1.ConditionTrue, v1alpha1.ReasonCommitted, "The checkpoint was dropped.")
	case want == v1alpha1.RolledBack && s.Rollback == nil:
		s.Phase = v1alpha1.PhaseRollbackPending
		s.Rollback = &v1alpha1.RollbackProgress{StartTime: &now}
		if user != "" {
			s.Rollback.WaitingFor = []string{user}
		}
	case want == v1alpha1.RolledBack && user == "":
		s.Rollback.WaitingFor = nil
		if s.Rollback.BytesDone == nil {
			s.Rollback.BytesDone, s.Rollback.BytesTotal = new(int64(0)), new(int64(1<<30))
			s.Phase = v1alpha1.PhaseRollingBack
			return
		}
		if *s.Rollback.BytesDone += 1 << 29; *s.Rollback.BytesDone > 1<<30 {
			*s.Rollback.BytesDone = 1 << 30
			s.Phase, s.CompletionTime = v1alpha1.PhaseRolledBack, &now
			set(v1alpha1.ConditionCheckpointed, metav1.ConditionFalse, v1alpha1.ReasonRolledBack, "Over.")
			set(v1alpha1.ConditionRolledBack, metav1.ConditionTrue, v1alpha1.ReasonRolledBack, "The volume has the content of the checkpoint again.")
		}
	}
}
