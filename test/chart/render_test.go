package chart

import (
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestLint(t *testing.T) {
	if output, err := helm(t, "lint", "--strict", chartDir, "--kube-version=1.36.0"); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}

// What is installed without any values: nothing that needs something else in the
// cluster.
func TestDefaultObjects(t *testing.T) {
	want := strings.Fields(`
		CSIDriver/csi.bowline.dev
		ClusterRole/bowline-controller
		ClusterRole/bowline-edit
		ClusterRole/bowline-node
		ClusterRole/bowline-view
		ClusterRoleBinding/bowline-controller
		ClusterRoleBinding/bowline-node
		CustomResourceDefinition/volumecheckpointgroups.bowline.dev
		CustomResourceDefinition/volumecheckpoints.bowline.dev
		DaemonSet/bowline-engine
		DaemonSet/bowline-node
		Deployment/bowline-controller
		NetworkPolicy/bowline-controller
		NetworkPolicy/bowline-engine
		NetworkPolicy/bowline-node
		PodDisruptionBudget/bowline-controller
		Role/bowline-controller
		Role/bowline-node
		RoleBinding/bowline-controller
		RoleBinding/bowline-node
		Service/bowline-controller
		Service/bowline-engine
		Service/bowline-node
		ServiceAccount/bowline-controller
		ServiceAccount/bowline-engine
		ServiceAccount/bowline-node
		StorageClass/bowline
		ValidatingAdmissionPolicy/bowline-claim-deletion
		ValidatingAdmissionPolicy/bowline-claim-expansion
		ValidatingAdmissionPolicy/bowline-node-capacities
		ValidatingAdmissionPolicy/bowline-node-checkpoints
		ValidatingAdmissionPolicy/bowline-node-claims
		ValidatingAdmissionPolicy/bowline-node-volumes
		ValidatingAdmissionPolicy/bowline-second-checkpoint
		ValidatingAdmissionPolicyBinding/bowline-claim-deletion
		ValidatingAdmissionPolicyBinding/bowline-claim-expansion
		ValidatingAdmissionPolicyBinding/bowline-node-capacities
		ValidatingAdmissionPolicyBinding/bowline-node-checkpoints
		ValidatingAdmissionPolicyBinding/bowline-node-claims
		ValidatingAdmissionPolicyBinding/bowline-node-volumes
		ValidatingAdmissionPolicyBinding/bowline-second-checkpoint
	`)
	if got := slices.Sorted(maps.Keys(render(t, ""))); !slices.Equal(got, want) {
		t.Errorf("rendered are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDefaults(t *testing.T) {
	o := render(t, "")
	driver := get[storagev1.CSIDriver](t, o, "CSIDriver/csi.bowline.dev").Spec
	if *driver.AttachRequired || !*driver.PodInfoOnMount || !*driver.StorageCapacity || !*driver.SELinuxMount ||
		*driver.FSGroupPolicy != storagev1.FileFSGroupPolicy || !slices.Equal(driver.VolumeLifecycleModes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}) {
		t.Errorf("the driver is %+v", driver)
	}

	plugin := get[appsv1.DaemonSet](t, o, "DaemonSet/bowline-node").Spec
	if got := plugin.UpdateStrategy.RollingUpdate.MaxUnavailable.String(); got != "10%" {
		t.Errorf("%s of the node plugins are updated at once", got)
	}
	engine := get[appsv1.DaemonSet](t, o, "DaemonSet/bowline-engine").Spec
	if engine.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
		t.Errorf("the data plane is updated %s", engine.UpdateStrategy.Type)
	}
	if container(t, engine.Template, "engine").LivenessProbe != nil {
		t.Error("the kubelet may restart the data plane")
	}
	for _, pods := range []corev1.PodTemplateSpec{plugin.Template, engine.Template} {
		if pods.Spec.PriorityClassName != "system-node-critical" || len(pods.Spec.Tolerations) != 1 || pods.Spec.Tolerations[0].Operator != corev1.TolerationOpExists {
			t.Errorf("pods of nodes can be kept off: %q, %v", pods.Spec.PriorityClassName, pods.Spec.Tolerations)
		}
	}

	provisioner := container(t, plugin.Template, "provisioner")
	for _, want := range []string{"--node-deployment", "--enable-capacity", "--strict-topology=true", "--immediate-topology=false",
		"--feature-gates=Topology=true", "--capacity-ownerref-level=1", "--extra-create-metadata"} {
		if !slices.Contains(provisioner.Args, want) {
			t.Errorf("the provisioner has no %s", want)
		}
	}

	controller := get[appsv1.Deployment](t, o, "Deployment/bowline-controller").Spec
	if *controller.Replicas != 2 || controller.Template.Spec.Affinity.PodAntiAffinity == nil {
		t.Errorf("%d controllers with affinity %v", *controller.Replicas, controller.Template.Spec.Affinity)
	}
	budget := get[policyv1.PodDisruptionBudget](t, o, "PodDisruptionBudget/bowline-controller").Spec
	if budget.MaxUnavailable.IntValue() != 1 {
		t.Errorf("%s controllers may be away", budget.MaxUnavailable)
	}

	class := get[storagev1.StorageClass](t, o, "StorageClass/bowline")
	if class.Provisioner != "csi.bowline.dev" || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer ||
		!*class.AllowVolumeExpansion || *class.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete ||
		class.Annotations["storageclass.kubernetes.io/is-default-class"] != "false" {
		t.Errorf("the storage class is %+v", class)
	}
}

func TestStorageClasses(t *testing.T) {
	o := render(t, `
storageClasses:
  - name: a
    default: true
    fsType: xfs
    thin: true
    transport: io_uring
    reclaimPolicy: Retain
    allowVolumeExpansion: false
    mountOptions: [noatime]
    allowedTopologies: [{matchLabelExpressions: [{key: topology.bowline.dev/node, values: [m]}]}]
    annotations: {x: w}
    labels: {l: m}
  - name: b
`)
	a, b := get[storagev1.StorageClass](t, o, "StorageClass/a"), get[storagev1.StorageClass](t, o, "StorageClass/b")
	const isDefault = "storageclass.kubernetes.io/is-default-class"
	if a.Annotations[isDefault] != "true" || a.Annotations["x"] != "w" || a.Labels["l"] != "m" || a.Parameters["csi.storage.k8s.io/fstype"] != "xfs" ||
		a.Parameters["thin"] != "true" || a.Parameters["transport"] != "io_uring" || *a.ReclaimPolicy != corev1.PersistentVolumeReclaimRetain || *a.AllowVolumeExpansion ||
		!slices.Equal(a.MountOptions, []string{"noatime"}) || len(a.AllowedTopologies) != 1 {
		t.Errorf("the class with everything is %+v", a)
	}
	if b.Annotations[isDefault] != "false" || b.Parameters["csi.storage.k8s.io/fstype"] != "ext4" || b.Parameters["thin"] != "false" || !*b.AllowVolumeExpansion {
		t.Errorf("the class with a name only is %+v", b)
	}
	if o := render(t, "{storageClasses: []}"); o["StorageClass/bowline"] != nil {
		t.Error("a class was made that nobody asked for")
	}
}

// Names follow the release; what belongs together stays together.
func TestNames(t *testing.T) {
	for _, o := range []objects{render(t, "{fullnameOverride: other}")} {
		for name := range podTemplates(t, o) {
			if !strings.Contains(name, "/other-") {
				t.Errorf("%s has another name", name)
			}
		}
		binding := get[rbacv1.ClusterRoleBinding](t, o, "ClusterRoleBinding/other-node")
		account := get[appsv1.DaemonSet](t, o, "DaemonSet/other-node").Spec.Template.Spec.ServiceAccountName
		if binding.RoleRef.Name != "other-node" || binding.Subjects[0].Name != account || binding.Subjects[0].Namespace != namespace {
			t.Errorf("the binding is %+v, the account %s", binding, account)
		}
	}
}

func TestSwitches(t *testing.T) {
	off := render(t, `{crds: {install: false}, rbac: {aggregateToDefaultRoles: false}, admissionPolicies: {enabled: false}, networkPolicy: {enabled: false}}`)
	for name := range off {
		kind, _, _ := strings.Cut(name, "/")
		switch {
		case kind == "CustomResourceDefinition", kind == "NetworkPolicy", strings.HasPrefix(kind, "ValidatingAdmission"),
			name == "ClusterRole/bowline-edit", name == "ClusterRole/bowline-view":
			t.Errorf("%s is there though it was switched off", name)
		}
	}
	on := render(t, `{serviceMonitor: {enabled: true, labels: {p: m}}, prometheusRule: {enabled: true, labels: {p: r}}, grafanaDashboard: {enabled: true}}`)
	for name, label := range map[string]string{"ServiceMonitor/bowline": "m", "PrometheusRule/bowline": "r"} {
		if got := get[unstructured.Unstructured](t, on, name).GetLabels()["p"]; got != label {
			t.Errorf("%s has the label %q, want %q", name, got, label)
		}
	}
	if got := get[corev1.ConfigMap](t, on, "ConfigMap/bowline-dashboard").Labels["grafana_dashboard"]; got != "1" {
		t.Errorf("Grafana's sidecar does not find the dashboard: %q", got)
	}
}

// Definitions are not removed with the release: checkpoints would go with them.
func TestCRDsStay(t *testing.T) {
	for name, object := range render(t, "") {
		if strings.HasPrefix(name, "CustomResourceDefinition/") && object.(metav1.Object).GetAnnotations()["helm.sh/resource-policy"] != "keep" {
			t.Errorf("%s is removed with the release", name)
		}
	}
}
