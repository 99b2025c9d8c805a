//go:build cluster

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// TestFileSystem: a claim gets a volume on the node of its pod, keeps it and its
// content, and gives the space back.
func TestFileSystem(t *testing.T) {
	t.Parallel()
	for _, class := range []string{ext4, xfs} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			n := newTenant(t)
			c := n.newClaim(class, "512Mi")
			first := n.newPod("first", claim)
			equal(n, "the file system", n.exec("first", "stat -f -c %T "+dir), map[string]string{ext4: "ext2/ext3", xfs: "xfs"}[class])
			n.exec("first", fill(32))
			sum := n.exec("first", checksum)
			n.deletePod(first)

			second := n.newPod("second", claim)
			equal(n, "the node of the second pod", second.Spec.NodeName, first.Spec.NodeName)
			equal(n, "the content that the second pod finds", n.exec("second", checksum), sum)
			n.exec("second", "echo more >more")

			volume := n.volume(claim)
			image := "/var/lib/bowline/pool/" + volume.Spec.CSI.VolumeHandle + "/image"
			node := second.Spec.NodeName
			if size := n.on(node, "stat -c %s "+image); size != fmt.Sprint(512<<20) {
				t.Errorf("the image has %s bytes", size)
			}
			n.remove(c)
			n.remove(second)
			n.gone(c)
			n.gone(volume)
			equal(n, "the image of a deleted volume", n.on(node, "ls "+image+" 2>/dev/null || echo none"), "none")
		})
	}
}

// TestKeepsToItsNode: a pod that may run elsewhere only does not run.
func TestKeepsToItsNode(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(xfs, "512Mi")
	n.deletePod(n.newPod("here", claim, onNode("node-2")))
	equal(n, "the node that the volume names",
		n.volume(claim).Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0], "node-2")
	n.unschedulable(n.startPod("elsewhere", claim, onNode("node-1")))
	anywhere := n.newPod("anywhere", claim)
	equal(n, "the node of a pod that may run anywhere", anywhere.Spec.NodeName, "node-2")
}

// unschedulable waits until the scheduler says that a pod fits nowhere.
func (n *tenant) unschedulable(p *corev1.Pod) {
	n.Helper()
	n.until(podLimit, func() error {
		n.read(p)
		if p.Spec.NodeName != "" {
			n.Fatalf("pod %s was scheduled to %s", p.Name, p.Spec.NodeName)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not said to be unschedulable", p.Name)
	})
}

// TestBlock: a raw block volume, what is on it, a checkpoint of it and back.
func TestBlock(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	raw := corev1.PersistentVolumeBlock
	n.newClaim(ext4, "64Mi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &raw })
	first := n.newPod("first", claim, block)
	equal(n, "the size of the device", n.exec("first", "blockdev --getsize64 /dev/data"), fmt.Sprint(64<<20))
	n.exec("first", "head -c 8M /dev/urandom >/tmp/content && dd if=/tmp/content of=/dev/data bs=1M seek=16 oflag=direct status=none")
	const sum = "dd if=/dev/data bs=1M skip=16 count=8 iflag=direct status=none | sha256sum"
	was := n.exec("first", sum)
	n.deletePod(first)

	second := n.newPod("second", claim, block)
	equal(n, "the content that the second pod finds", n.exec("second", sum), was)
	// Free space is what the user has discarded.
	n.exec("second", "blkdiscard --offset 32M --length 32M /dev/data")
	c := n.newCheckpoint("checkpoint", claim)
	n.exec("second", "dd if=/dev/urandom of=/dev/data bs=1M seek=16 count=4 oflag=direct status=none")
	n.desire(c, v1alpha1.RolledBack)
	n.deletePod(second)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.newPod("third", claim, block)
	equal(n, "the content after the rollback", n.exec("third", sum), was)
}

// TestExpansion: a claim grows while it is used.
func TestExpansion(t *testing.T) {
	t.Parallel()
	for _, class := range []string{ext4, xfs} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			n := newTenant(t)
			c := n.newClaim(class, "320Mi")
			p := n.newPod("user", claim)
			n.exec("user", fill(32))
			sum := n.exec("user", checksum)
			const size = "df -B1 --output=size " + dir + " | tail -n 1 | tr -d ' '"
			before := n.exec("user", size)
			n.change(c, func() { c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("640Mi") })
			n.until(2*time.Minute, func() error {
				n.read(c)
				if got := c.Status.Capacity[corev1.ResourceStorage]; got.Cmp(resource.MustParse("640Mi")) < 0 {
					if why := n.eventOf(c.Name, "VolumeResizeFailed", p.Name); class == ext4 && growthForbidden(why) {
						t.Skipf("this machine does not let ext4 grow: %s", why)
					}
					return fmt.Errorf("the claim has %v", got.String())
				}
				return nil
			})
			if after := n.exec("user", size); len(after) < len(before) || after <= before {
				t.Errorf("the file system has %s bytes, before %s", after, before)
			}
			equal(n, "the content after it has grown", n.exec("user", checksum), sum)
			equal(n, "restarts of the pod", p.Status.ContainerStatuses[0].RestartCount, 0)
		})
	}
}

// growthForbidden recognises ext4's refusal to one without CAP_SYS_RESOURCE,
// which a container may not have even if it is privileged.
func growthForbidden(message string) bool {
	return strings.Contains(message, "resize2fs") && strings.Contains(message, "Permission denied")
}

// eventOf returns the message of the last event with that reason on an object of
// one of the names.
func (n *tenant) eventOf(object, reason string, or ...string) string {
	n.Helper()
	events, err := clientset.CoreV1().Events(n.namespace).List(n.Context(), metav1.ListOptions{})
	if err != nil {
		n.Fatal(err)
	}
	message := ""
	for _, e := range events.Items {
		for _, name := range append([]string{object}, or...) {
			if e.InvolvedObject.Name == name && e.Reason == reason {
				message = e.Message
			}
		}
	}
	return message
}

// TestReadWriteOncePod: one pod at a time, and the next one when it has gone.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi", mode(corev1.ReadWriteOncePod))
	first := n.newPod("first", claim)
	n.exec("first", "echo content >file; sync file")
	second := n.startPod("second", claim)
	n.unschedulable(second)
	// Past the scheduler the kubelet and the driver refuse it.
	past := n.startPod("past", claim, func(s *corev1.PodSpec) { s.NodeName = first.Spec.NodeName })
	n.until(podLimit, func() error {
		n.read(past)
		if past.Status.Phase == corev1.PodRunning {
			t.Fatal("two pods run with a claim for one")
		}
		if n.eventOf("past", "FailedMount") == "" {
			return errors.New("nobody says why the pod does not run")
		}
		return nil
	})
	n.deletePod(past)
	n.deletePod(first)
	n.ready(second)
	equal(n, "the content that the next pod finds", n.exec("second", "cat file"), "content")
}

// TestFSGroup: a pod that is not root writes to its volume; another one that may
// only read does not.
func TestFSGroup(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	user := func(s *corev1.PodSpec) {
		id, group := int64(1000), int64(4321)
		s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &id, RunAsGroup: &id, FSGroup: &group}
	}
	n.newPod("writer", claim, user)
	n.exec("writer", "echo content >file")
	equal(n, "owner and group of a file", n.exec("writer", "stat -c %u:%g file"), "1000:4321")
	n.newPod("reader", claim, user, func(s *corev1.PodSpec) {
		s.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	})
	equal(n, "what the reader finds", n.exec("reader", "cat file"), "content")
	if _, err := n.tryExec("reader", "echo other >file"); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
		t.Errorf("writing to a volume that is mounted to be read: %v", err)
	}
}

// TestClone: a claim with another one as its source has its content, on the same
// node, and a life of its own. Where the pool's file system shares no blocks, the
// source must not be in use.
func TestClone(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	n.newClaim(xfs, "512Mi")
	source := n.newPod("source", claim)
	n.exec("source", fill(32))
	sum := n.exec("source", checksum)
	n.deletePod(source)
	n.newClaim(xfs, "640Mi", named("clone"), func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: claim}
	})
	n.newPod("clone", "clone", onNode(source.Spec.NodeName))
	equal(n, "the content of the clone", n.exec("clone", checksum), sum)
	n.exec("clone", wreck)
	n.newPod("source", claim)
	equal(n, "the content of the source", n.exec("source", checksum), sum)
}

// TestManyClaims: one pod with several claims of both kinds.
func TestManyClaims(t *testing.T) {
	t.Parallel()
	n := newTenant(t)
	var volumes []string
	n.newClaim(ext4, "64Mi")
	for i := range 6 {
		volumes = append(volumes, fmt.Sprintf("data-%d", i))
		n.newClaim([]string{ext4, xfs}[i%2], "320Mi", named(volumes[i]))
	}
	several := func(s *corev1.PodSpec) {
		for _, name := range volumes {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}})
			s.Containers[0].VolumeMounts = append(s.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
		}
	}
	first := n.newPod("first", claim, several)
	n.exec("first", "for d in /data-*; do echo $d >$d/name; done")
	n.deletePod(first)
	n.newPod("second", claim, several)
	equal(n, "what is in the volumes", n.exec("second", "cat /data-*/name"), "/"+strings.Join(volumes, "\n/"))
}
