//go:build cluster

package e2e

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The storage classes of testdata/values.yaml.
const (
	ext4 = "bowline-ext4"
	xfs  = "bowline-xfs"
)

const (
	debian = "debian:bookworm-slim"
	claim  = "data"  // the claim of a test with one
	dir    = "/data" // where pods have it
)

// newClaim creates a claim named data and returns it; it is bound when a pod uses
// it.
func (n *tenant) newClaim(class, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	n.Helper()
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: claim, Labels: map[string]string{"app": "test"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			},
		},
	}
	for _, f := range change {
		f(c)
	}
	n.create(c)
	return c
}

func named(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Name = name }
}

func mode(m corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{m}
	}
}

// podSpec is a container that runs script with a claim mounted.
func podSpec(claim, script string) corev1.PodSpec {
	// With none at all the pod would vanish from the API before it ends.
	graceful := int64(1)
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: &graceful,
		AutomountServiceAccountToken:  new(bool),
		Containers: []corev1.Container{{
			Name: "main", Image: debian, ImagePullPolicy: corev1.PullIfNotPresent,
			Command:      []string{"bash", "-c", script},
			WorkingDir:   dir,
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: dir}},
		}},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}}},
	}
}

// idle is a script that waits for what is executed beside it.
const idle = "exec sleep infinity"

// startPod creates a pod that uses a claim, without waiting for it.
func (n *tenant) startPod(name, claim string, change ...func(*corev1.PodSpec)) *corev1.Pod {
	n.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: podSpec(claim, idle)}
	for _, f := range change {
		f(&p.Spec)
	}
	n.create(p)
	return p
}

// newPod creates a pod that uses a claim, and waits until it runs.
func (n *tenant) newPod(name, claim string, change ...func(*corev1.PodSpec)) *corev1.Pod {
	n.Helper()
	p := n.startPod(name, claim, change...)
	n.ready(p)
	return p
}

// onNode ties a pod to a node. The scheduler still has to agree.
func onNode(name string) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{corev1.LabelHostname: name} }
}

// block gives the claim to the pod as a device instead.
func block(s *corev1.PodSpec) {
	c := &s.Containers[0]
	c.VolumeMounts, c.WorkingDir = nil, "/"
	c.VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
}

// ready waits until a pod is ready and reads it.
func (n *tenant) ready(p *corev1.Pod) {
	n.Helper()
	n.until(podLimit, func() error {
		if err := api.Get(n.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		if p.Status.Phase == corev1.PodFailed {
			n.Fatalf("pod %s has failed: %s", p.Name, n.logs(p.Name))
		}
		return notReady(p)
	})
}

// notReady says why a pod is not ready, if it is not.
func notReady(p *corev1.Pod) error {
	if p.DeletionTimestamp != nil {
		return fmt.Errorf("pod %s is being deleted", p.Name)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod %s is %s: %v", p.Name, p.Status.Phase, p.Status.Conditions)
}

// deletePod deletes a pod and waits until it is gone.
func (n *tenant) deletePod(p *corev1.Pod) {
	n.Helper()
	n.remove(p)
	n.gone(p)
}

func (n *tenant) logs(pod string) string {
	b, err := clientset.CoreV1().Pods(n.namespace).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(n.Context())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// volume returns the persistent volume of a claim.
func (n *tenant) volume(claim string) *corev1.PersistentVolume {
	n.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: claim}}
	n.read(c)
	if c.Spec.VolumeName == "" {
		n.Fatalf("claim %s is not bound", claim)
	}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: c.Spec.VolumeName}}
	n.read(v)
	return v
}

// writer is a script that writes blocks and reads back what it wrote, past the
// cache, until something is wrong; /data/count says how often it did.
const writer = `
set -eu -o pipefail
i=0
while :; do
	i=$((i + 1)); file=block$((i % 16))
	head -c 262144 /dev/urandom >content
	cp content $file && sync $file
	sum=$(sha256sum <content)
	[ "$(dd if=$file iflag=direct bs=64k status=none | sha256sum)" = "$sum" ]
	echo $i >count.new && sync count.new && mv count.new count
	sleep 0.02
done`

// newWriter creates a pod that runs writer and waits until it does.
func (n *tenant) newWriter(name, claim string, change ...func(*corev1.PodSpec)) *corev1.Pod {
	n.Helper()
	p := n.newPod(name, claim, append([]func(*corev1.PodSpec){func(s *corev1.PodSpec) {
		s.Containers[0].Command[2] = writer
		s.RestartPolicy = corev1.RestartPolicyNever
	}}, change...)...)
	n.writes(p, 0)
	return p
}

// writes waits until a writer has come further than count, and returns how far it
// is. It fails if the writer has met an error.
func (n *tenant) writes(p *corev1.Pod, count int) int {
	n.Helper()
	var now int
	n.until(phaseLimit, func() error {
		n.read(p)
		if p.Status.Phase != corev1.PodRunning {
			n.Fatalf("the writer in pod %s is %s: %s", p.Name, p.Status.Phase, n.logs(p.Name))
		}
		output, err := n.tryExec(p.Name, "cat count")
		if err != nil {
			return err
		}
		if now, err = strconv.Atoi(output); err == nil && now <= count+2 {
			err = fmt.Errorf("the writer in pod %s is at %d", p.Name, now)
		}
		return err
	})
	return now
}

// fill is a script that makes files with content of the megabytes given, and what
// prints their checksum.
func fill(megabytes int) string {
	return fmt.Sprintf("mkdir -p files && head -c %dM /dev/urandom | split -b 4M - files/part. && sync -f files", megabytes)
}

const checksum = "find . -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1"

// wreck is a script that deletes and overwrites what fill made.
const wreck = `
for f in files/part.*a; do rm $f; done
for f in files/*; do dd if=/dev/urandom of=$f bs=1M count=4 conv=notrunc status=none; done
echo new >new; sync -f .`
