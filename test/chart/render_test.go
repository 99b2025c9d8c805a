package chart

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/controllers/access"
	"github.com/bowline-csi/bowline/controllers/node"
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

// The paths that both sides of a socket or a mount name are the same.
func TestPaths(t *testing.T) {
	o := render(t, `{stateDir: /srv/bowline, imageDirs: [/srv/a, /srv/b], node: {kubeletDir: /var/lib/k0s/kubelet}}`)
	plugin := get[appsv1.DaemonSet](t, o, "DaemonSet/bowline-node").Spec.Template
	engine := get[appsv1.DaemonSet](t, o, "DaemonSet/bowline-engine").Spec.Template
	for _, c := range []struct {
		template            corev1.PodTemplateSpec
		container, at, host string
		propagation         corev1.MountPropagationMode
	}{
		{plugin, "node", "/var/lib/k0s/kubelet", "/var/lib/k0s/kubelet", corev1.MountPropagationBidirectional},
		{plugin, "node", "/srv/bowline", "/srv/bowline", corev1.MountPropagationHostToContainer},
		{plugin, "node", "/srv/b", "/srv/b", corev1.MountPropagationHostToContainer},
		{plugin, "node", "/run/bowline", "/run/bowline", ""},
		{plugin, "node", "/dev", "/dev", ""},
		{plugin, "provisioner", "/csi", "/var/lib/k0s/kubelet/plugins/csi.bowline.dev", ""},
		{engine, "engine", "/srv/bowline", "/srv/bowline", corev1.MountPropagationHostToContainer},
		{engine, "engine", "/srv/a", "/srv/a", corev1.MountPropagationHostToContainer},
		{engine, "engine", "/run/bowline", "/run/bowline", ""},
		{engine, "engine", "/dev", "/dev", ""},
	} {
		host, propagation := mounted(t, c.template, c.container, c.at)
		if host != c.host || propagation != c.propagation {
			t.Errorf("%s has at %s the host's %q (%s), want %q (%s)", c.container, c.at, host, propagation, c.host, c.propagation)
		}
	}
	for _, want := range []string{"--kubelet-dir=/var/lib/k0s/kubelet", "--state-dir=/srv/bowline", "--engine-socket=/run/bowline/engine.sock"} {
		if !slices.Contains(container(t, plugin, "node").Args, want) {
			t.Errorf("the node plugin has no %s", want)
		}
	}
	if !slices.Contains(container(t, engine, "engine").Args, "--socket=/run/bowline/engine.sock") {
		t.Error("the data plane listens elsewhere")
	}
}

// What is not the driver of a node has no privileges.
func TestConfined(t *testing.T) {
	for name, template := range podTemplates(t, render(t, "")) {
		for _, c := range template.Spec.Containers {
			s := c.SecurityContext
			if !*s.ReadOnlyRootFilesystem {
				t.Errorf("%s: %s can write to its image", name, c.Name)
			}
			if c.Name == "node" || c.Name == "engine" {
				continue
			}
			if s.Privileged != nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
				len(s.Capabilities.Add) != 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %s is not confined: %+v", name, c.Name, s)
			}
		}
	}
	o := render(t, "")
	controller := get[appsv1.Deployment](t, o, "Deployment/bowline-controller").Spec.Template.Spec
	if !*controller.SecurityContext.RunAsNonRoot {
		t.Error("the controller may be root")
	}
	for _, v := range controller.Volumes {
		if v.HostPath != nil {
			t.Errorf("the controller has the directory %s of its node", v.HostPath.Path)
		}
	}
	if engine := get[appsv1.DaemonSet](t, o, "DaemonSet/bowline-engine").Spec.Template.Spec; *engine.AutomountServiceAccountToken {
		t.Error("the data plane has a token")
	}
}

// The rights of each part are those that its program says it needs, and those of
// the sidecar beside it.
func TestRoles(t *testing.T) {
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	o := render(t, "")
	for role, want := range map[string][]rbacv1.PolicyRule{
		"bowline-node": append(node.Access(),
			rule("", "persistentvolumes", "get", "list", "watch", "create", "patch", "delete"),
			rule("", "persistentvolumeclaims", "get", "list", "watch", "update"),
			rule("storage.k8s.io", "storageclasses", "get", "list", "watch"),
			rule("", "events", "create", "patch")),
		"bowline-controller": append(access.Controller(),
			rule("", "persistentvolumes", "list", "watch", "patch"),
			rule("", "persistentvolumeclaims/status", "patch"),
			rule("", "events", "create", "patch")),
	} {
		equalRights(t, role, get[rbacv1.ClusterRole](t, o, "ClusterRole/"+role).Rules, want)
	}
	equalRights(t, "bowline-node in its namespace", get[rbacv1.Role](t, o, "Role/bowline-node").Rules, []rbacv1.PolicyRule{
		rule("storage.k8s.io", "csistoragecapacities", "get", "list", "watch", "create", "update", "delete"),
		rule("", "pods", "get"),
	})
	equalRights(t, "bowline-controller in its namespace", get[rbacv1.Role](t, o, "Role/bowline-controller").Rules, []rbacv1.PolicyRule{
		rule("coordination.k8s.io", "leases", "get", "create", "update"),
	})
}

func equalRights(t *testing.T, who string, got, want []rbacv1.PolicyRule) {
	t.Helper()
	rights := func(rules []rbacv1.PolicyRule) map[string]bool {
		all := map[string]bool{}
		for _, r := range rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						all[verb+" "+group+"/"+resource] = true
					}
				}
			}
		}
		return all
	}
	has, needs := rights(got), rights(want)
	for _, right := range slices.Sorted(maps.Keys(has)) {
		if !needs[right] {
			t.Errorf("%s may %s and does not need it", who, right)
		}
	}
	for _, right := range slices.Sorted(maps.Keys(needs)) {
		if !has[right] {
			t.Errorf("%s may not %s", who, right)
		}
	}
}

func TestImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for values, want := range map[string]string{
		"":                                     "ghcr.io/bowline-csi/bowline:v0.1.0",
		"{image: {repository: r:5/b, tag: t}}": "r:5/b:t",
		fmt.Sprintf("{image: {repository: r, tag: t, digest: %q}}", digest): "r@" + digest,
	} {
		for name, template := range podTemplates(t, render(t, values)) {
			for _, c := range template.Spec.Containers {
				if c.Image != want {
					t.Errorf("%s, %s: the image is %s, want %s", name, c.Name, c.Image, want)
				}
			}
		}
	}
}

// Values arrive where they belong, in every kind of pod.
func TestPodValues(t *testing.T) {
	o := render(t, `
imagePullSecrets: [{name: s}]
logLevel: debug
logFormat: json
node:
  nodeSelector: {disk: fast}
  tolerations: []
  affinity: {nodeAffinity: {}}
  priorityClassName: high
  maxUnavailable: 3
  podAnnotations: {a: d}
  podLabels: {l: d, app.kubernetes.io/component: wrong}
  resources: {limits: {memory: 1Gi}}
  extraArgs: [--x]
  provisioner: {logVerbosity: 5, extraArgs: [--y], resources: {limits: {memory: 2Gi}}}
engine:
  podAnnotations: {a: e}
  podLabels: {l: e}
  resources: {limits: {memory: 3Gi}}
  extraArgs: [--z]
  terminationGracePeriodSeconds: 7
controller:
  replicas: 3
  podDisruptionBudget: {enabled: false}
  nodeSelector: {role: infra}
  tolerations: [{key: k, operator: Exists}]
  affinity: {nodeAffinity: {}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
  priorityClassName: c
  podAnnotations: {a: c}
  podLabels: {l: c}
  resources: {limits: {memory: 4Gi}}
  extraArgs: [--v]
  resizer: {logVerbosity: 6, extraArgs: [--w], resources: {limits: {memory: 5Gi}}}
`)
	templates := podTemplates(t, o)
	for name, want := range map[string]struct{ letter, class, selector string }{
		"DaemonSet/bowline-node":        {"d", "high", "fast"},
		"DaemonSet/bowline-engine":      {"e", "high", "fast"},
		"Deployment/bowline-controller": {"c", "c", "infra"},
	} {
		p := templates[name]
		if p.Annotations["a"] != want.letter || p.Labels["l"] != want.letter || p.Labels["app.kubernetes.io/component"] == "wrong" {
			t.Errorf("%s: annotations %v, labels %v", name, p.Annotations, p.Labels)
		}
		selector := slices.Collect(maps.Values(p.Spec.NodeSelector))
		if p.Spec.PriorityClassName != want.class || !slices.Contains(selector, want.selector) ||
			p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.PodAntiAffinity != nil || p.Spec.ImagePullSecrets[0].Name != "s" {
			t.Errorf("%s is scheduled by %+v", name, p.Spec)
		}
	}
	for _, want := range []struct {
		template, container, memory string
		args                        []string
	}{
		{"DaemonSet/bowline-node", "node", "1Gi", []string{"--x", "--log-level=debug", "--log-format=json"}},
		{"DaemonSet/bowline-node", "provisioner", "2Gi", []string{"--y", "--v=5", "--logging-format=json"}},
		{"DaemonSet/bowline-engine", "engine", "3Gi", []string{"--z", "--log-level=debug", "--log-format=json"}},
		{"Deployment/bowline-controller", "controller", "4Gi", []string{"--v", "--log-level=debug", "--log-format=json"}},
		{"Deployment/bowline-controller", "resizer", "5Gi", []string{"--w", "--v=6", "--logging-format=json"}},
	} {
		c := container(t, templates[want.template], want.container)
		if got := c.Resources.Limits.Memory().String(); got != want.memory {
			t.Errorf("%s: memory is limited to %s, want %s", want.container, got, want.memory)
		}
		for _, arg := range want.args {
			if !slices.Contains(c.Args, arg) {
				t.Errorf("%s: no %s in %q", want.container, arg, c.Args)
			}
		}
	}
	if got := *templates["DaemonSet/bowline-engine"].Spec.TerminationGracePeriodSeconds; got != 7 {
		t.Errorf("the data plane has %d s to end", got)
	}
	if got := *get[appsv1.Deployment](t, o, "Deployment/bowline-controller").Spec.Replicas; got != 3 {
		t.Errorf("%d controllers", got)
	}
	if o["PodDisruptionBudget/bowline-controller"] != nil {
		t.Error("there is a disruption budget")
	}
}

func TestStorageClasses(t *testing.T) {
	o := render(t, `
storageClasses:
  - name: a
    default: true
    fsType: xfs
    thin: true
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
		a.Parameters["thin"] != "true" || *a.ReclaimPolicy != corev1.PersistentVolumeReclaimRetain || *a.AllowVolumeExpansion ||
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

// Ports that services, policies and probes name exist.
func TestPorts(t *testing.T) {
	o := render(t, "")
	for name, template := range podTemplates(t, o) {
		ports := map[string]int32{}
		for _, c := range template.Spec.Containers {
			for _, p := range c.Ports {
				ports[p.Name] = p.ContainerPort
				if !slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasSuffix(a, fmt.Sprintf("=:%d", p.ContainerPort)) }) {
					t.Errorf("%s: %s is not told to listen at %d", name, c.Name, p.ContainerPort)
				}
			}
			for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
				if probe != nil && ports[probe.HTTPGet.Port.String()] == 0 {
					t.Errorf("%s: the probe of %s asks port %s", name, c.Name, &probe.HTTPGet.Port)
				}
			}
		}
		_, short, _ := strings.Cut(name, "/")
		service := get[corev1.Service](t, o, "Service/"+short)
		for _, p := range service.Spec.Ports {
			if ports[p.TargetPort.String()] != p.Port {
				t.Errorf("%s: the service has port %d for %s, the pod %d", name, p.Port, &p.TargetPort, ports[p.TargetPort.String()])
			}
		}
		for label, value := range service.Spec.Selector {
			if template.Labels[label] != value {
				t.Errorf("%s: the service wants %s=%s", name, label, value)
			}
		}
	}
}

func podTemplates(t *testing.T, o objects) map[string]corev1.PodTemplateSpec {
	t.Helper()
	templates := map[string]corev1.PodTemplateSpec{}
	for name, object := range o {
		switch w := object.(type) {
		case *appsv1.DaemonSet:
			templates[name] = w.Spec.Template
		case *appsv1.Deployment:
			templates[name] = w.Spec.Template
		}
	}
	if len(templates) != 3 {
		t.Fatalf("%d kinds of pods", len(templates))
	}
	return templates
}

func container(t *testing.T, p corev1.PodTemplateSpec, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no container %s", name)
	}
	return p.Spec.Containers[i]
}

// mounted returns the directory of the host that a container has at a path.
func mounted(t *testing.T, p corev1.PodTemplateSpec, name, at string) (host string, propagation corev1.MountPropagationMode) {
	t.Helper()
	for _, m := range container(t, p, name).VolumeMounts {
		if m.MountPath != at {
			continue
		}
		if m.MountPropagation != nil {
			propagation = *m.MountPropagation
		}
		for _, v := range p.Spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				return v.HostPath.Path, propagation
			}
		}
	}
	return "", propagation
}
