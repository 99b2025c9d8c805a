//go:build cluster

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// What the chart calls its parts.
const (
	nodePart       = "node"
	enginePart     = "engine"
	controllerPart = "controller"
)

// part returns the pod of a part of Bowline on a node; any node if that is empty.
func (n *tenant) part(name, node string) *corev1.Pod {
	n.Helper()
	var pods corev1.PodList
	if err := api.List(n.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/component": name}); err != nil {
		n.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil && (node == "" || p.Spec.NodeName == node) {
			return &p
		}
	}
	n.Fatalf("there is no pod of %s on node %q", name, node)
	return nil
}

// restart deletes the pod of a part on a node and waits until its successor is
// ready.
func (n *tenant) restart(name, node string) {
	n.Helper()
	old := n.part(name, node)
	n.remove(old)
	n.gone(old)
	n.partReady(name, node)
}

// partReady waits until a part is ready on a node.
func (n *tenant) partReady(name, node string) {
	n.Helper()
	n.until(podLimit, func() error {
		var pods corev1.PodList
		if err := api.List(n.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/component": name}); err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.Spec.NodeName == node && notReady(&p) == nil {
				return nil
			}
		}
		return fmt.Errorf("%s is not ready on %s", name, node)
	})
}

// kill ends the first container of a part with SIGKILL.
func (n *tenant) kill(name, node string) {
	n.Helper()
	p := n.part(name, node)
	id, found := strings.CutPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	if !found {
		n.Fatalf("pod %s has no container", p.Name)
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == name {
			id = strings.TrimPrefix(s.ContainerID, "containerd://")
		}
	}
	n.on(node, "ctr --namespace=k8s.io tasks kill --signal SIGKILL "+id)
}

// TestRestartNodePlugin: I/O does not notice that the node plugin is restarted or
// killed, and what it has to do is done afterwards.
func TestRestartNodePlugin(t *testing.T) {
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	n.newClaim(xfs, "512Mi", named("other"))
	w := n.newWriter("writer", claim, onNode("node-1"))
	p := n.newPod("other", "other", onNode("node-1"))
	n.exec("other", fill(160))
	sum := n.exec("other", checksum)
	c := n.newCheckpoint("checkpoint", "other")
	n.exec("other", wreck)

	count := n.writes(w, 0)
	n.restart(nodePart, "node-1")
	count = n.writes(w, count)

	// Asked for while it is away, and killed in the middle of the rollback.
	n.kill(nodePart, "node-1")
	n.desire(c, v1alpha1.RolledBack)
	n.phase(c, v1alpha1.PhaseRollbackPending, podLimit)
	n.remove(p)
	killed := n.underway(c)
	n.kill(nodePart, "node-1")
	t.Logf("the node plugin was killed when the checkpoint was %s", killed)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("next", "other")
	equal(n, "the content after the rollback", n.exec("next", checksum), sum)
	n.writes(w, count)
	n.partReady(nodePart, "node-1")
}

// underway waits until a rollback is being done, or over if that was missed, and
// returns the phase.
func (n *tenant) underway(c *v1alpha1.VolumeCheckpoint) v1alpha1.Phase {
	n.Helper()
	for deadline := time.Now().Add(rollbackLimit); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		n.read(c)
		if now := c.Status.Phase; now == v1alpha1.PhaseRollingBack || now.Final() {
			return now
		}
	}
	n.Fatalf("the rollback does not begin\n%s", describe(c))
	return ""
}

// TestKillEngine: the process that serves is killed under I/O, and in the middle
// of a rollback; the one that takes its place goes on, and nobody gets an error.
func TestKillEngine(t *testing.T) {
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	n.newClaim(xfs, "512Mi", named("other"))
	w := n.newWriter("writer", claim, onNode("node-1"))
	p := n.newPod("other", "other", onNode("node-1"))
	n.exec("other", fill(160))
	sum := n.exec("other", checksum)
	load := n.newCheckpoint("load", claim)
	c := n.newCheckpoint("checkpoint", "other")
	n.exec("other", wreck)
	wrecked := n.exec("other", checksum)
	count := n.writes(w, 0)
	for range 3 {
		n.killServer("node-1")
		count = n.writes(w, count)
	}
	equal(n, "the content after the server was killed", n.exec("other", checksum), wrecked)
	n.desire(load, v1alpha1.Committed)
	n.phase(load, v1alpha1.PhaseCommitted, phaseLimit)
	n.desire(c, v1alpha1.RolledBack)
	n.phase(c, v1alpha1.PhaseRollbackPending, phaseLimit)
	n.remove(p)
	killed := n.underway(c)
	n.killServer("node-1")
	t.Logf("the server was killed when the checkpoint was %s", killed)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("next", "other")
	equal(n, "the content after the rollback", n.exec("next", checksum), sum)
	n.writes(w, count)
}

// killServer kills the process of a node's engine that serves. The script sees
// the processes of that node only.
func (n *tenant) killServer(node string) {
	n.Helper()
	killed := n.on(node, `
		for p in /proc/[0-9]*; do
			command=$(tr '\0' ' ' <$p/cmdline 2>/dev/null) || continue
			case $command in
			'/proc/self/exe engine '*' --serve '*) kill -KILL ${p#/proc/}; echo $command ;;
			esac
		done`)
	if killed == "" {
		n.Fatalf("no engine serves on %s", node)
	}
}

// TestRestartController: deadlines and evictions wait for the controller and are
// not lost.
func TestRestartController(t *testing.T) {
	n := newTenant(t)
	n.newClaim(ext4, "64Mi")
	p := n.newPod("user", claim)
	n.exec("user", "echo old >file; sync file")
	c := n.newCheckpoint("checkpoint", claim, func(s *v1alpha1.VolumeCheckpointSpec) {
		s.Deadline = &v1alpha1.Deadline{After: metav1.Duration{Duration: 2 * time.Second}, Action: v1alpha1.DeadlineRollBack}
		evict(s)
	})
	n.exec("user", "echo new >file; sync file")
	var pods corev1.PodList
	if err := api.List(n.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/component": controllerPart}); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		n.remove(&p)
	}
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("next", claim)
	equal(n, "the content after the rollback", n.exec("next", "cat file"), "old")
}

// TestRestartEngine: the volumes of an engine that was replaced are found again
// when their pods restart, with their checkpoints.
func TestRestartEngine(t *testing.T) {
	n := newTenant(t)
	n.newClaim(xfs, "512Mi")
	p := n.newPod("user", claim, onNode("node-1"))
	n.exec("user", fill(32))
	sum := n.exec("user", checksum)
	c := n.newCheckpoint("checkpoint", claim)
	n.exec("user", wreck)
	n.restart(enginePart, "node-1")
	n.deletePod(p)
	n.newPod("next", claim)
	n.read(c)
	equal(n, "the phase after the engine was replaced", c.Status.Phase, v1alpha1.PhaseCheckpointed)
	n.desire(c, v1alpha1.RolledBack)
	n.remove(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: "next"}})
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.newPod("last", claim)
	equal(n, "the content after the rollback", n.exec("last", checksum), sum)
}

// TestPowerCut: a node is cut off with checkpoints open: one that is to stay, and
// one that is being rolled back. Its pods come back with their data.
func TestPowerCut(t *testing.T) {
	const node = "node-2"
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	n.newClaim(xfs, "512Mi", named("other"))
	p := n.newPod("user", claim, onNode(node))
	other := n.newPod("other", "other", onNode(node))
	n.exec("user", fill(48))
	n.exec("other", fill(160))
	sum, sumOther := n.exec("user", checksum), n.exec("other", checksum)
	open := n.newCheckpoint("open", claim)
	rolling := n.newCheckpoint("rolling", "other")
	n.exec("user", wreck)
	n.exec("other", wreck)
	wrecked := n.exec("user", checksum)
	n.desire(rolling, v1alpha1.RolledBack)
	n.phase(rolling, v1alpha1.PhaseRollbackPending, phaseLimit)
	n.remove(other)
	t.Logf("the power is cut when the checkpoint is %s", n.underway(rolling))
	if _, err := cluster.run(t.Context(), "kill-node", node); err != nil {
		t.Fatal(err)
	}
	// Whatever happens next, the tests after this one need the node.
	if _, err := cluster.run(t.Context(), "start-node", node); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n.partReady(enginePart, node)
	n.partReady(nodePart, node)
	n.until(podLimit, func() error {
		n.read(p)
		if s := p.Status.ContainerStatuses; len(s) == 0 || s[0].RestartCount == 0 {
			return fmt.Errorf("the pod has not started again: %v", s)
		}
		return notReady(p)
	})
	t.Logf("the pod ran again %v after the node was ready", time.Since(began).Round(100*time.Millisecond))
	equal(n, "the content after the power cut", n.exec("user", checksum), wrecked)
	n.read(open)
	equal(n, "the phase after the power cut", open.Status.Phase, v1alpha1.PhaseCheckpointed)

	n.phase(rolling, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(other)
	n.newPod("other", "other")
	equal(n, "the content that was being rolled back", n.exec("other", checksum), sumOther)

	n.desire(open, v1alpha1.RolledBack)
	n.remove(p)
	n.phase(open, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("user", claim)
	equal(n, "the content after the rollback", n.exec("user", checksum), sum)
}

// TestAPIServerAway: a rollback that was asked for is done although the node cannot
// reach the API server, and is told of afterwards.
func TestAPIServerAway(t *testing.T) {
	const node = "node-1"
	n := newTenant(t)
	n.newClaim(ext4, "256Mi")
	grace := int64(5) // time to cut the node off, for sleep does not end earlier
	p := n.newPod("user", claim, onNode(node), func(s *corev1.PodSpec) { s.TerminationGracePeriodSeconds = &grace })
	n.exec("user", fill(32))
	sum := n.exec("user", checksum)
	c := n.newCheckpoint("checkpoint", claim)
	n.exec("user", wreck)
	n.desire(c, v1alpha1.RolledBack)
	n.phase(c, v1alpha1.PhaseRollbackPending, phaseLimit)
	n.remove(p)
	n.until(podLimit, func() error {
		if n.eventOf(p.Name, "Killing") == "" {
			return errors.New("the kubelet does not stop the pod")
		}
		return nil
	})

	address := n.on("control-plane", "hostname -I | cut -d' ' -f1")
	t.Cleanup(func() {
		if _, err := cluster.run(context.Background(), "exec", node, "bash", "-c", "ip route del blackhole "+address+" || true"); err != nil {
			t.Error(err)
		}
	})
	restored := func() string {
		return n.on(node, "grep -h 'Restore.*"+c.Status.VolumeHandle+".*code=OK' /var/log/pods/"+namespace+"_*/engine/*.log || true")
	}
	n.on(node, "ip route add blackhole "+address)
	if early := restored(); early != "" {
		t.Fatalf("the volume was rolled back before the node was cut off: %s", early)
	}
	n.until(rollbackLimit, func() error {
		if restored() == "" {
			return errors.New("the volume is not rolled back while the API server is away")
		}
		return nil
	})
	n.read(c)
	equal(n, "the phase that the API server knows of", c.Status.Phase, v1alpha1.PhaseRollbackPending)
	n.on(node, "ip route del blackhole "+address)
	n.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	n.gone(p)
	n.newPod("next", claim)
	equal(n, "the content after the rollback", n.exec("next", checksum), sum)
	n.partReady(nodePart, node)
}
