package chart

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

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
