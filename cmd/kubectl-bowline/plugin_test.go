package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

func TestCheckpointAndCommit(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "data")
	w.simulate(t)

	w.want(t, exitState, "has no checkpoint", "status", "data")
	w.want(t, exitState, "has no checkpoint", "commit", "data")
	w.want(t, exitOK, "no checkpoints in namespace", "list")
	w.want(t, exitOK, "is open: writes stood still for 12ms, 3.0Gi free", "checkpoint", "data", "--name", "before", "--wait", "--minimum-free", "1Gi", "--out-of-space", "commit")
	w.want(t, exitState, `claim "data" has checkpoint "before"`, "checkpoint", "data")
	w.want(t, exitOK, "If space ends:     the checkpoint is dropped", "status", "data")
	w.want(t, exitOK, "Phase:             Checkpointed", "status", "before")
	w.want(t, exitOK, "before   data    node-1   Checkpointed", "status")
	w.want(t, exitOK, "is committed", "commit", "data", "--wait")
	w.want(t, exitOK, "is committed", "commit", "data", "--wait") // once more does nothing
	w.want(t, exitState, "no open checkpoint", "rollback", "data")
	w.want(t, exitOK, "Committed", "status", "data", "--watch")
	w.want(t, exitOK, "no checkpoints in namespace", "status")
	w.want(t, exitOK, "before   data    node-1   Committed", "list")
	w.want(t, exitOK, w.namespace, "list", "-A")
	w.want(t, exitState, "there is a checkpoint \"before\"", "checkpoint", "data", "--name", "before")

	// A second one on the same claim, with a name of its own.
	var c v1alpha1.VolumeCheckpoint
	out := w.want(t, exitOK, "", "checkpoint", "data", "-o", "json")
	if err := json.Unmarshal([]byte(out), &c); err != nil || !strings.HasPrefix(c.Name, "data-") || c.Kind != "VolumeCheckpoint" || c.ManagedFields != nil {
		t.Errorf("%v: %+v", err, c)
	}
	w.want(t, exitOK, "is committed", "commit", c.Name, "--wait")
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "data")
	w.pod(t, "db-0", "data")
	w.pod(t, "other", "logs")
	w.simulate(t)
	w.want(t, exitOK, "", "checkpoint", "data", "--name", "before", "--wait")

	// Nobody removes the pod.
	w.want(t, exitTimeout, "waiting until nobody uses the volume any more: "+w.namespace+"/db-0", "rollback", "data", "--wait", "--timeout", "1s")
	w.want(t, exitState, "is to be rolled back, which is final", "commit", "data")

	// A disruption budget protects it, for a while.
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "db"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db-0"}}}}
	w.create(t, budget)
	budget.Status.ObservedGeneration, budget.Status.ExpectedPods, budget.Status.CurrentHealthy, budget.Status.DesiredHealthy = budget.Generation, 1, 1, 1
	if err := w.Status().Update(t.Context(), budget); err != nil {
		t.Fatal(err)
	}
	w.want(t, exitTimeout, "a disruption budget protects pods", "rollback", "data", "--evict", "--timeout", "1s")
	deleteLater(t, w, budget)
	code, _, errOut := w.plugin(t, "rollback", "before", "--evict", "--wait")
	for _, want := range []string{"pod " + w.namespace + "/db-0 is evicted", "before: rolling back", "is rolled back: The volume has the content"} {
		if code != exitOK || !strings.Contains(errOut, want) {
			t.Errorf("exit code %d, and %q is not in\n%s", code, want, errOut)
		}
	}
	if strings.Contains(errOut, "other") {
		t.Errorf("another pod was evicted:\n%s", errOut)
	}
	w.want(t, exitOK, "is rolled back", "rollback", "data", "--evict", "--wait") // once more does nothing
	w.want(t, exitOK, "Put back:          1.0Gi of 1.0Gi", "status", "data")
}

// deleteLater deletes an object while the plugin waits.
func deleteLater(t *testing.T, w *world, o client.Object) {
	done := make(chan struct{})
	time.AfterFunc(time.Second, func() {
		defer close(done)
		if err := w.Delete(context.Background(), o); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { <-done })
}

// TestEvictOnly evicts without waiting for the rollback, and without a pod.
func TestEvictOnly(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "used")
	w.claim(t, "unused")
	w.pod(t, "db-0", "used")
	w.simulate(t)
	for _, claim := range []string{"used", "unused"} {
		w.want(t, exitOK, "", "checkpoint", claim, "--wait")
		w.want(t, exitOK, "rolled back", "rollback", claim, "--evict")
		w.want(t, exitOK, "RolledBack", "status", claim, "--watch")
	}
}

func TestTroubles(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "data")
	w.claim(t, "bad")
	w.simulate(t)

	w.want(t, exitNotFound, `there is no claim "nothing"`, "checkpoint", "nothing")
	w.want(t, exitNotFound, `there is no claim and no checkpoint "nothing"`, "status", "nothing")
	w.want(t, exitNotFound, "there is no checkpoint", "status", "vckpt/nothing")
	w.want(t, exitUsage, "", "checkpoint")
	w.want(t, exitUsage, "", "checkpoint", "data", "--no-such-flag")
	w.want(t, exitUsage, "want json or yaml", "list", "-o", "xml")
	w.want(t, exitUsage, "--watch needs", "status", "--watch")
	w.want(t, exitUsage, "unknown command", "explode")
	w.want(t, exitUsage, "no cluster to talk to", "list", "--context", "nowhere")
	w.want(t, exitState, "was not opened, or not for long; it is Failed: The volume is full.", "checkpoint", "bad", "--wait")
	w.want(t, exitTimeout, "has not looked at it yet", "checkpoint", "data", "--name", "stuck", "--wait", "--timeout", "500ms")

	// Deleted while somebody waits for it.
	deleteLater(t, w, &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "stuck"}})
	w.want(t, exitState, "was deleted", "commit", "stuck", "--wait")

	// The API server's own validation comes through.
	w.want(t, exitState, "8784h", "checkpoint", "data", "--deadline", "10000h", "--deadline-action", "commit")

	// A member of a group is not ended alone.
	member := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "member", OwnerReferences: []metav1.OwnerReference{{
		APIVersion: "bowline.dev/v1alpha1", Kind: v1alpha1.KindVolumeCheckpointGroup, Name: "both", UID: "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a001", Controller: new(true)}}}}
	member.Spec.PersistentVolumeClaimName = "data"
	w.create(t, member)
	w.want(t, exitState, `belongs to group "both"`, "rollback", "data")
}

func TestOutput(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "data")
	w.simulate(t)
	var c v1alpha1.VolumeCheckpoint
	out := w.want(t, exitOK, "", "checkpoint", "data", "--name", "a", "--wait", "-o", "yaml")
	if err := yaml.UnmarshalStrict([]byte(out), &c); err != nil || c.Status.Phase != v1alpha1.PhaseCheckpointed {
		t.Errorf("%v: %+v", err, c)
	}
	out = w.want(t, exitOK, "", "commit", "data", "--wait", "-o", "json")
	if err := json.Unmarshal([]byte(out), &c); err != nil || c.Status.Phase != v1alpha1.PhaseCommitted {
		t.Errorf("%v: %+v", err, c)
	}
	out = w.want(t, exitOK, "", "status", "data", "-o", "json", "--watch")
	if err := json.Unmarshal([]byte(out), &c); err != nil || c.Name != "a" {
		t.Errorf("%v: %+v", err, c)
	}
	var list v1alpha1.VolumeCheckpointList
	out = w.want(t, exitOK, "", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 1 || list.Kind != "VolumeCheckpointList" {
		t.Errorf("%v: %+v", err, list)
	}
}

func TestCompletion(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"data", "logs"} {
		w.claim(t, name)
	}
	w.simulate(t)
	w.want(t, exitOK, "", "checkpoint", "data", "--name", "before", "--wait")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"checkpoint", ""}, "data logs"},
		{[]string{"commit", ""}, "before data"},
		{[]string{"rollback", "data", ""}, ""},
		{[]string{"checkpoint", "data", "--out-of-space", ""}, "commit fail-writes"},
		{[]string{"list", "--context", ""}, "here"},
		{[]string{"list", "--output", ""}, "json yaml"},
	} {
		// What is completed comes last, so the cluster goes first.
		args := append([]string{"__complete", test.args[0], "--kubeconfig", w.kubeconfig}, test.args[1:]...)
		var out, errOut strings.Builder
		code := run(t.Context(), args, &out, &errOut)
		var found []string
		for line := range strings.Lines(out.String()) {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); name != "" && !strings.HasPrefix(name, ":") {
				found = append(found, name)
			}
		}
		slices.Sort(found)
		if got := strings.Join(found, " "); code != exitOK || got != test.want {
			t.Errorf("%q completes to %q, want %q\n%s", test.args, got, test.want, errOut.String())
		}
	}
}

// TestFollow sees a checkpoint as it is, and what changes.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.claim(t, "data")
	w.simulate(t)
	w.want(t, exitOK, "", "checkpoint", "data", "--name", "a", "--wait")
	c := &cli{kubeconfig: w.kubeconfig, errOut: t.Output(), now: time.Now}
	s, err := c.connect()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	v, err := s.follow(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "a"}, func(v *v1alpha1.VolumeCheckpoint) (bool, error) {
		if seen++; seen == 1 {
			if err := s.desire(t.Context(), v.DeepCopy(), v1alpha1.Committed); err != nil {
				return false, err
			}
		}
		return !unfinished(v), nil
	})
	if err != nil || v.Status.Phase != v1alpha1.PhaseCommitted || seen < 2 {
		t.Errorf("%v after %d times: %+v", err, seen, v)
	}
}
