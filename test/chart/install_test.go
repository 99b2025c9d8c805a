package chart

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/test/apiserver"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// installed is the chart in an API server, in which nothing else runs.
type installed struct {
	*testing.T
	config     *rest.Config
	kubeconfig string
	admin      client.Client
	tenant     string // a namespace
}

// install installs the chart.
func install(t *testing.T) *installed {
	t.Helper()
	config := apiserver.Config(t)
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	file.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "c"
	i := &installed{T: t, config: config, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if err := clientcmd.WriteToFile(*file, i.kubeconfig); err != nil {
		t.Fatal(err)
	}
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(all); err != nil {
			t.Fatal(err)
		}
	}
	log.SetLogger(logr.Discard())
	var err error
	if i.admin, err = client.New(config, client.Options{Scheme: all}); err != nil {
		t.Fatal(err)
	}
	i.tenant = apiserver.Namespace(t)
	// The server came with the definitions.
	i.helm("install", release, chartDir, "--create-namespace", "--take-ownership")
	return i
}

func (i *installed) helm(args ...string) string {
	i.Helper()
	output, err := helm(i.T, append(args, "--namespace="+namespace, "--kubeconfig="+i.kubeconfig)...)
	if err != nil {
		i.Fatal(err)
	}
	return output
}

// plugin returns what the node plugin on that node can do.
func (i *installed) plugin(node string) client.Client {
	i.Helper()
	config := rest.CopyConfig(i.config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":bowline-node",
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
		Extra:    map[string][]string{},
	}
	if node != "" {
		config.Impersonate.Extra["authentication.kubernetes.io/node-name"] = []string{node}
	}
	c, err := client.New(config, client.Options{Scheme: i.admin.Scheme(), Mapper: i.admin.RESTMapper()})
	if err != nil {
		i.Fatal(err)
	}
	return c
}

// allowed and denied say whether err is what was expected. What is denied has to
// be so by a policy with that message.
func (i *installed) allowed(what string, err error) {
	i.Helper()
	if err != nil {
		i.Errorf("%s: %v", what, err)
	}
}

func (i *installed) denied(what string, err error, message string) {
	i.Helper()
	if err == nil {
		i.Errorf("%s is allowed", what)
	} else if !strings.Contains(err.Error(), message) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
		i.Errorf("%s: %v, want a policy that says %q", what, err, message)
	}
}

// until waits for what the API server takes a moment to notice.
func (i *installed) until(what string, done func() bool) {
	i.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			i.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestInstalled installs the chart, tries out its policies, updates and removes it.
func TestInstalled(t *testing.T) {
	i := install(t)
	if notes := i.helm("get", "notes", release); strings.Count(notes, "kubectl") < 3 || !strings.Contains(notes, "daemonset/bowline-node") {
		t.Errorf("the notes are %q", notes)
	}
	// Policies are in force a moment after they were made.
	i.until("the policies are in force", func() bool {
		err := i.plugin("node-1").Create(t.Context(), volume("probe", "node-2"), client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
	})
	t.Run("Volumes", func(t *testing.T) { i.with(t).testVolumes() })
	t.Run("Capacities", func(t *testing.T) { i.with(t).testCapacities() })
	t.Run("Claims", func(t *testing.T) { i.with(t).testClaims() })
	t.Run("Checkpoints", func(t *testing.T) { i.with(t).testCheckpoints() })
	t.Run("Warnings", func(t *testing.T) { i.with(t).testWarnings() })
	t.Run("PodSecurity", func(t *testing.T) { i.with(t).testPodSecurity() })
	t.Run("Expansion", func(t *testing.T) { i.with(t).testExpansion() })

	i.helm("upgrade", release, chartDir, "--set=logLevel=debug")
	i.helm("uninstall", release)
	var list v1alpha1.VolumeCheckpointList
	if err := i.admin.List(t.Context(), &list); err != nil || len(list.Items) == 0 {
		t.Errorf("after the uninstall there are %d checkpoints, %v", len(list.Items), err)
	}
	// And once more, over what has stayed.
	i.helm("install", release, chartDir)
	i.helm("uninstall", release)
}

func (i *installed) with(t *testing.T) *installed {
	c := *i
	c.T = t
	return &c
}

func volume(name, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: name}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: v1alpha1.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
}

// testVolumes: a node plugin makes and deletes volumes of its node, and no others.
func (i *installed) testVolumes() {
	const message = "of its own node only"
	ctx, one := i.Context(), i.plugin("node-1")
	own, others := volume(i.tenant+"-own", "node-1"), volume(i.tenant+"-others", "node-2")
	i.allowed("making its own", one.Create(ctx, own))
	i.denied("making another node's", one.Create(ctx, others), message)
	i.denied("making one without knowing where", i.plugin("").Create(ctx, volume(i.tenant+"-nowhere", "node-1")), message)
	several := volume(i.tenant+"-several", "node-1")
	terms := &several.Spec.NodeAffinity.Required.NodeSelectorTerms[0]
	terms.MatchExpressions[0].Values = []string{"node-1", "node-2"}
	i.denied("making one of two nodes", one.Create(ctx, several), message)
	foreign := volume(i.tenant+"-foreign", "node-1")
	foreign.Spec.CSI.Driver = "other.example"
	i.denied("making one of another driver", one.Create(ctx, foreign), message)
	host := volume(i.tenant+"-host", "node-1")
	host.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
	i.denied("making a directory of the host one", one.Create(ctx, host), message)

	i.allowed("what an administrator makes", i.admin.Create(ctx, others))
	i.denied("deleting another node's", one.Delete(ctx, others), message)
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"a":"b"}}}`))
	i.denied("changing another node's", one.Patch(ctx, others, patch), message)
	i.allowed("changing its own", one.Patch(ctx, own, patch))
	i.allowed("deleting its own", one.Delete(ctx, own))
	i.allowed("what an administrator deletes", i.admin.Delete(ctx, others))
}

func (i *installed) testCapacities() {
	capacity := func(node string) *storagev1.CSIStorageCapacity {
		return &storagev1.CSIStorageCapacity{
			ObjectMeta:       metav1.ObjectMeta{GenerateName: "c-", Namespace: namespace},
			StorageClassName: "bowline",
			NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.TopologyKey: node}},
		}
	}
	ctx, one := i.Context(), i.plugin("node-1")
	own, others := capacity("node-1"), capacity("node-2")
	i.allowed("publishing its own", one.Create(ctx, own))
	i.denied("publishing another node's", one.Create(ctx, others), "of its own node only")
	i.allowed("what an administrator publishes", i.admin.Create(ctx, others))
	i.denied("removing another node's", one.Delete(ctx, others), "of its own node only")
	i.allowed("removing its own", one.Delete(ctx, own))
	i.allowed("what an administrator removes", i.admin.Delete(ctx, others))
}

// claim makes a claim, bound if that is true.
func (i *installed) claim(name string, bound bool) *corev1.PersistentVolumeClaim {
	i.Helper()
	class := "bowline"
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: i.tenant, Annotations: map[string]string{"volume.kubernetes.io/storage-provisioner": v1alpha1.DriverName}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	if err := i.admin.Create(i.Context(), c); err != nil {
		i.Fatal(err)
	}
	if bound {
		c.Status.Phase = corev1.ClaimBound
		c.Status.Capacity = c.Spec.Resources.Requests
		if err := i.admin.Status().Update(i.Context(), c); err != nil {
			i.Fatal(err)
		}
	}
	return c
}

// testClaims: a node plugin marks claims of its driver and changes nothing else
// of them.
func (i *installed) testClaims() {
	ctx, one := i.Context(), i.plugin("node-1")
	c := i.claim("marked", false)
	marked := c.DeepCopy()
	marked.Annotations["volume.kubernetes.io/selected-node"] = "node-1"
	marked.Finalizers = append(marked.Finalizers, "provisioner.storage.kubernetes.io/cloning-protection")
	i.allowed("marking a claim", one.Update(ctx, marked, client.DryRunAll))
	labelled := c.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	i.denied("labelling a claim", one.Update(ctx, labelled), "nothing of a claim but annotations and finalizers")
	bound := c.DeepCopy()
	bound.Spec.VolumeName = "mine"
	i.denied("binding a claim", one.Update(ctx, bound), "nothing of a claim but annotations and finalizers")
	foreign := i.claim("foreign", false)
	foreign.Annotations["volume.kubernetes.io/storage-provisioner"] = "other.example"
	i.allowed("what an administrator does", i.admin.Update(ctx, foreign))
	foreign.Annotations["a"] = "b"
	i.denied("marking a claim of another driver", one.Update(ctx, foreign), "of its own driver only")
}

// checkpoint makes a checkpoint that a node has been told to open.
func (i *installed) checkpoint(name, claim, node string) *v1alpha1.VolumeCheckpoint {
	i.Helper()
	c := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: i.tenant}}
	c.Spec.PersistentVolumeClaimName = claim
	if err := i.admin.Create(i.Context(), c); err != nil {
		i.Fatal(err)
	}
	c.Status.NodeName, c.Status.Step, c.Status.Phase = node, v1alpha1.StepSwitch, v1alpha1.PhasePending
	if err := i.admin.Status().Update(i.Context(), c); err != nil {
		i.Fatal(err)
	}
	return c
}

// testCheckpoints: a node plugin reports on the checkpoints of its node only.
func (i *installed) testCheckpoints() {
	ctx := i.Context()
	c := i.checkpoint("of-node-1", "data", "node-1")
	report := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"phase":"Checkpointed"}}`))
	take := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"nodeName":"node-2"}}`))
	const message = "the checkpoints of its own node only"
	i.denied("reporting for another node", i.plugin("node-2").Status().Patch(ctx, c.DeepCopy(), report), message)
	i.denied("taking another node's over", i.plugin("node-2").Status().Patch(ctx, c.DeepCopy(), take), message)
	i.denied("reporting without knowing where", i.plugin("").Status().Patch(ctx, c.DeepCopy(), report), message)
	i.allowed("reporting", i.plugin("node-1").Status().Patch(ctx, c.DeepCopy(), report))
	if err := i.plugin("node-1").Patch(ctx, c.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Committed"}}`))); !apierrors.IsForbidden(err) {
		i.Errorf("deciding in the place of people: %v", err)
	}
}

// warnings are what the API server warned of.
type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) { *w = append(*w, text) }

// testWarnings: people are told what will not work, or what they lose.
func (i *installed) testWarnings() {
	ctx := i.Context()
	claim := i.claim("warned", true)
	c := i.checkpoint("first", claim.Name, "node-1")
	var said warnings
	config := rest.CopyConfig(i.config)
	config.WarningHandler = &said
	admin, err := client.New(config, client.Options{Scheme: i.admin.Scheme()})
	if err != nil {
		i.Fatal(err)
	}
	second := func() string {
		said = nil
		k := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Name: "second", Namespace: i.tenant}}
		k.Spec.PersistentVolumeClaimName = claim.Name
		i.allowed("a second checkpoint", admin.Create(ctx, k, client.DryRunAll))
		return strings.Join(said, "\n")
	}
	deletion := func() string {
		said = nil
		i.allowed("deleting the claim", admin.Delete(ctx, claim.DeepCopy(), client.DryRunAll))
		return strings.Join(said, "\n")
	}
	i.until("a second checkpoint is warned of", func() bool { return strings.Contains(second(), "VolumeCheckpoint first: this one will fail") })
	i.until("deleting the claim is warned of", func() bool {
		return strings.Contains(deletion(), "has an open checkpoint, VolumeCheckpoint first: it is lost")
	})
	// Without a condition it has failed for good, and nothing is warned of.
	c.Status.Phase = v1alpha1.PhaseFailed
	i.allowed("failing", i.admin.Status().Update(ctx, c))
	i.until("nothing is warned of after a failure", func() bool { return second()+deletion() == "" })
	c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionCheckpointed, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDamaged, LastTransitionTime: metav1.Now()}}
	i.allowed("reporting damage", i.admin.Status().Update(ctx, c))
	i.until("deleting the claim of a damaged one is warned of", func() bool { return strings.Contains(deletion(), "VolumeCheckpoint first: it is lost") })
	c.Status.Phase, c.Status.Conditions = v1alpha1.PhaseRolledBack, nil
	i.allowed("rolling back", i.admin.Status().Update(ctx, c))
	i.until("nothing is warned of after the rollback", func() bool { return second()+deletion() == "" })
}

// testExpansion: a claim does not grow while a checkpoint is open on it.
func (i *installed) testExpansion() {
	ctx := i.Context()
	claim, other := i.claim("growing", true), i.claim("growing-too", true)
	grow := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`))
	c := i.checkpoint("before-growth", claim.Name, "node-1")
	// Parameters of policies are watched.
	i.until("the policy knows the checkpoint", func() bool {
		return i.admin.Patch(ctx, claim.DeepCopy(), grow, client.DryRunAll) != nil
	})
	i.denied("expanding a claim with an open checkpoint", i.admin.Patch(ctx, claim.DeepCopy(), grow), "commit VolumeCheckpoint before-growth or roll it back first")
	i.allowed("expanding another claim", i.admin.Patch(ctx, other.DeepCopy(), grow))
	label := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`))
	i.allowed("another change of a claim with an open checkpoint", i.admin.Patch(ctx, claim.DeepCopy(), label))
	c.Status.Phase = v1alpha1.PhaseCommitted
	i.allowed("committing", i.admin.Status().Update(ctx, c))
	i.until("the claim can be expanded after the commit", func() bool {
		return i.admin.Patch(ctx, claim.DeepCopy(), grow) == nil
	})
}

// testPodSecurity: the controller runs where only restricted pods may; the pods of
// nodes need to be privileged.
func (i *installed) testPodSecurity() {
	ctx := i.Context()
	strict := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "strict-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := i.admin.Create(ctx, strict); err != nil {
		i.Fatal(err)
	}
	for name, template := range podTemplates(i.T, render(i.T, "")) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: strict.Name}, Spec: template.Spec}
		err := i.admin.Create(ctx, pod, client.DryRunAll)
		if name == "Deployment/bowline-controller" {
			i.allowed(name, err)
		} else if err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
			i.Errorf("%s runs in a restricted namespace: %v", name, err)
		}
	}
}
