//go:build cluster

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// Limits of waiting. They are for a machine with other things to do; what takes
// how long is logged where it matters.
const (
	phaseLimit    = 60 * time.Second
	podLimit      = 90 * time.Second
	rollbackLimit = 90 * time.Second
	goneLimit     = 90 * time.Second
)

// A tenant is a test with a namespace of its own, which is deleted after it.
type tenant struct {
	*testing.T
	namespace string
}

// newTenant makes the namespace.
func newTenant(t *testing.T) *tenant {
	t.Helper()
	n := &tenant{t, strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	// One that an earlier run left is on its way out.
	n.gone(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.namespace}})
	n.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.namespace}})
	t.Cleanup(func() {
		if t.Failed() {
			n.dump()
		}
		n.deleteNamespace()
	})
	return n
}

// deleteNamespace deletes the namespace and waits until it is gone: that works in
// whatever state a test leaves it.
func (n *tenant) deleteNamespace() {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), goneLimit)
	defer cancel()
	n.volumes(ctx)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.namespace}}
	if err := api.Delete(ctx, ns); client.IgnoreNotFound(err) != nil {
		n.Errorf("deleting the namespace: %v", err)
	}
	for {
		err := api.Get(ctx, client.ObjectKeyFromObject(ns), ns)
		if apierrors.IsNotFound(err) {
			return
		}
		select {
		case <-ctx.Done():
			n.Errorf("the namespace %s is not gone after %v: %v\n%s", n.namespace, goneLimit, err, describe(ns))
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// handles has the handles of all volumes that tests had.
var handles sync.Map

// volumes returns the names of the persistent volumes of the namespace's claims
// that go with them.
func (n *tenant) volumes(ctx context.Context) []string {
	var list corev1.PersistentVolumeList
	if err := api.List(ctx, &list); err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, v := range list.Items {
		if r := v.Spec.ClaimRef; r != nil && r.Namespace == n.namespace && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			names = append(names, v.Name)
			if v.Spec.CSI != nil {
				handles.Store(v.Spec.CSI.VolumeHandle, true)
			}
		}
	}
	return names
}

// create creates an object, in the namespace if it names none and has one.
func (n *tenant) create(o client.Object) {
	n.Helper()
	if _, cluster := o.(*corev1.Namespace); !cluster && o.GetNamespace() == "" {
		o.SetNamespace(n.namespace)
	}
	if err := api.Create(n.Context(), o); err != nil {
		n.Fatalf("creating %T %s: %v", o, o.GetName(), err)
	}
}

// read reads an object of the namespace anew.
func (n *tenant) read(o client.Object) {
	n.Helper()
	if err := api.Get(n.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		n.Fatalf("reading %T %s: %v", o, o.GetName(), err)
	}
}

// change reads an object, changes it and writes it back.
func (n *tenant) change(o client.Object, f func()) {
	n.Helper()
	n.read(o)
	before := o.DeepCopyObject().(client.Object)
	f()
	if err := api.Patch(n.Context(), o, client.MergeFrom(before)); err != nil {
		n.Fatalf("changing %T %s: %v", o, o.GetName(), err)
	}
}

// remove asks for an object to be deleted.
func (n *tenant) remove(o client.Object) {
	n.Helper()
	if err := api.Delete(n.Context(), o); client.IgnoreNotFound(err) != nil {
		n.Fatalf("deleting %T %s: %v", o, o.GetName(), err)
	}
}

// gone waits until an object does not exist.
func (n *tenant) gone(o client.Object) {
	n.Helper()
	o = o.DeepCopyObject().(client.Object)
	n.until(goneLimit, func() error {
		err := api.Get(n.Context(), client.ObjectKeyFromObject(o), o)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("%T %s exists", o, o.GetName())
	})
}

// until calls check until it succeeds or limit is over.
func (n *tenant) until(limit time.Duration, check func() error) {
	n.Helper()
	for deadline := time.Now().Add(limit); ; {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("not after %v: %v", limit, err)
		}
		select {
		case <-n.Context().Done():
			n.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// exec runs a script with bash in a pod's container and returns its output without
// the last line break.
func (n *tenant) exec(pod, script string) string {
	n.Helper()
	output, err := n.tryExec(pod, script)
	if err != nil {
		n.Fatal(err)
	}
	return output
}

func (n *tenant) tryExec(pod, script string) (string, error) {
	request := clientset.CoreV1().RESTClient().Post().Namespace(n.namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Command: []string{"bash", "-c", "set -eu -o pipefail\n" + script}, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(n.Context(), 3*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		return "", fmt.Errorf("in pod %s: %w\n%s%s\nthe script was:\n%s", pod, err, stdout.String(), stderr.String(), script)
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// on runs a script on a node, as root.
func (n *tenant) on(node, script string) string {
	n.Helper()
	output, err := cluster.run(n.Context(), "exec", node, "bash", "-c", "set -eu -o pipefail\n"+script)
	if err != nil {
		n.Fatal(err)
	}
	return strings.TrimSuffix(output, "\n")
}

// dump puts what is known of a failed test's objects into its log.
func (n *tenant) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var b strings.Builder
	var checkpoints v1alpha1.VolumeCheckpointList
	if err := api.List(ctx, &checkpoints, client.InNamespace(n.namespace)); err == nil {
		for _, c := range checkpoints.Items {
			b.WriteString(describe(&c))
		}
	}
	var groups v1alpha1.VolumeCheckpointGroupList
	if err := api.List(ctx, &groups, client.InNamespace(n.namespace)); err == nil {
		for _, g := range groups.Items {
			b.WriteString(describe(&g))
		}
	}
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(n.namespace)); err == nil {
		for _, p := range pods.Items {
			fmt.Fprintf(&b, "pod %s on %s: %s, deleted %v\n", p.Name, p.Spec.NodeName, p.Status.Phase, p.DeletionTimestamp)
			b.WriteString(tail(ctx, &p, ""))
		}
	}
	var events corev1.EventList
	if err := api.List(ctx, &events, client.InNamespace(n.namespace)); err == nil {
		for _, e := range events.Items {
			fmt.Fprintf(&b, "event %s %s/%s %s x%d: %s\n", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Count, e.Message)
		}
	}
	b.WriteString(driverLogs(ctx))
	n.Logf("what is known at %s:\n%s", time.Now().UTC().Format(time.TimeOnly), b.String())
}

// driverLogs returns the ends of the logs of Bowline's own containers.
func driverLogs(ctx context.Context) string {
	var b strings.Builder
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return err.Error()
	}
	for _, p := range pods.Items {
		b.WriteString(tail(ctx, &p, p.Labels["app.kubernetes.io/component"]))
	}
	return b.String()
}

// tail returns the ends of the logs of a pod's containers, or of the one named, and
// of those before them. They are short: an overview of a failed run has room for
// little, and the first lines of it say what failed.
func tail(ctx context.Context, p *corev1.Pod, name string) string {
	var b strings.Builder
	lines := int64(12)
	for _, c := range p.Spec.Containers {
		if name != "" && c.Name != name {
			continue
		}
		for _, previous := range []bool{true, false} {
			log, err := clientset.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
				Container: c.Name, TailLines: &lines, Previous: previous,
			}).DoRaw(ctx)
			if err == nil && len(log) > 0 {
				fmt.Fprintf(&b, "--- %s %s on %s (previous container: %v)\n%s\n", p.Name, c.Name, p.Spec.NodeName, previous, log)
			}
		}
	}
	return b.String()
}

// describe returns an object as YAML.
func describe(o client.Object) string {
	o.SetManagedFields(nil)
	b, err := yaml.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("--- %T\n%s", o, b)
}
