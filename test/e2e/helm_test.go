//go:build cluster

package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// TestHelmUpgrade: another configuration is rolled out while a checkpoint is open
// and pods write.
func TestHelmUpgrade(t *testing.T) {
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	n.newClaim(xfs, "512Mi", named("other"))
	w := n.newWriter("writer", claim, onNode("node-1"))
	n.newPod("other", "other", onNode("node-2"))
	n.exec("other", fill(32))
	sum := n.exec("other", checksum)
	c := n.newCheckpoint("checkpoint", "other", evict)
	k := n.newCheckpoint("under-load", claim)
	n.exec("other", wreck)
	before, engine := n.part(nodePart, "node-1"), n.part(enginePart, "node-1")
	count := n.writes(w, 0)
	began := time.Now()
	t.Cleanup(func() {
		if err := install(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := install(t.Context(), "--set=logLevel=debug"); err != nil {
		t.Fatal(err)
	}
	t.Logf("helm upgrade took %v", time.Since(began).Round(100*time.Millisecond))
	n.partReady(nodePart, "node-1")
	n.partReady(nodePart, "node-2")
	if after := n.part(nodePart, "node-1"); after.UID == before.UID {
		t.Error("the upgrade did not replace the node plugin")
	}
	if after := n.part(enginePart, "node-1"); after.UID != engine.UID {
		t.Error("the upgrade replaced the engine, which serves pods that write")
	}
	n.writes(w, count)
	for _, k := range []*v1alpha1.VolumeCheckpoint{c, k} {
		n.read(k)
		equal(n, "the phase after the upgrade", k.Status.Phase, v1alpha1.PhaseCheckpointed)
	}
	n.desire(k, v1alpha1.Committed)
	n.phase(k, v1alpha1.PhaseCommitted, phaseLimit)
	n.desire(c, v1alpha1.RolledBack)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.newPod("next", "other")
	equal(n, "the content after the rollback", n.exec("next", checksum), sum)
	n.writes(w, count)
}

// TestHelmUninstall: without Bowline the volumes stay, with what is on them, and
// serve again when it is back.
func TestHelmUninstall(t *testing.T) {
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	p := n.newPod("user", claim)
	n.exec("user", fill(32))
	sum := n.exec("user", checksum)
	c := n.newCheckpoint("checkpoint", claim, evict)
	n.exec("user", wreck)
	wrecked := n.exec("user", checksum)
	v := n.volume(claim)
	n.deletePod(p)
	n.unstaged(p.Spec.NodeName, v)
	t.Cleanup(func() {
		// Deleting the namespace needs it, and so do the tests after this one.
		if t.Failed() {
			if err := install(context.Background()); err != nil {
				t.Log(err)
			}
		}
	})
	if _, err := cluster.run(t.Context(), "helm", "uninstall", release, "--namespace="+namespace, "--wait", "--timeout=2m"); err != nil {
		t.Fatal(err)
	}
	n.read(v)
	n.read(c)
	equal(n, "the size of the image", n.on(p.Spec.NodeName, "stat -c %s /var/lib/bowline/pool/"+v.Spec.CSI.VolumeHandle+"/image"), "268435456")
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := n.newPod("next", claim)
	equal(n, "the content", n.exec("next", checksum), wrecked)
	n.desire(c, v1alpha1.RolledBack)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(next)
	n.newPod("last", claim)
	equal(n, "the content after the rollback", n.exec("last", checksum), sum)
}

// unstaged waits until a volume is mounted nowhere on a node. The kubelet lets go
// of it some time after the last pod is gone.
func (n *tenant) unstaged(node string, v *corev1.PersistentVolume) {
	n.Helper()
	n.until(phaseLimit, func() error {
		directory := fmt.Sprintf("%x", sha256.Sum256([]byte(v.Spec.CSI.VolumeHandle)))
		if lines := n.on(node, "grep -e "+directory+" -e "+v.Name+" /proc/mounts || true"); lines != "" {
			return fmt.Errorf("volume %s is mounted on %s:\n%s", v.Name, node, lines)
		}
		return nil
	})
}

// TestLatency measures what people wait for, on a volume of 10 GiB.
func TestLatency(t *testing.T) {
	n := newTenant(t)
	for _, class := range []string{ext4, xfs} {
		n.newClaim(class, "10Gi", named(class))
		p := n.newWriter("writer-"+class, class)
		n.exec(p.Name, fill(128))
		began := time.Now()
		c := n.newCheckpoint(class, class)
		t.Logf("%s: apply to Checkpointed %v, of that frozen %v", class, since(began), c.Status.FreezeDuration)
		began = time.Now()
		n.desire(c, v1alpha1.Committed)
		n.phase(c, v1alpha1.PhaseCommitted, phaseLimit)
		t.Logf("%s: commit to Committed %v", class, since(began))
		began = time.Now()
		n.deletePod(p)
		v := n.volume(class)
		n.unstaged(p.Spec.NodeName, v)
		t.Logf("%s: pod deleted and volume unstaged %v", class, since(began))
		began = time.Now()
		n.newPod("next-"+class, class)
		t.Logf("%s: next pod ready %v", class, since(began))
		for _, line := range n.requests(p.Spec.NodeName, v.Spec.CSI.VolumeHandle) {
			t.Logf("%s: %s", class, line)
		}
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

// requests returns the lines of the node plugin's log on staging a volume and
// undoing it.
func (n *tenant) requests(node, volume string) []string {
	n.Helper()
	p := n.part(nodePart, node)
	log, err := clientset.CoreV1().Pods(namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: nodePart}).DoRaw(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, volume) && (strings.Contains(line, "StageVolume") || strings.Contains(line, "UnstageVolume")) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
