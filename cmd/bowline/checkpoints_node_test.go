package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/controllers/node"
	"github.com/bowline-csi/bowline/test/apiserver"
	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// testNode is a node as the kubelet, the provisioner and the controller of
// checkpoints see it, all of which the test is: an engine and a node plugin, which
// talk to a real API server.
type testNode struct {
	*testing.T
	api        client.Client
	namespace  string
	name       string
	dir        string
	kubeconfig string

	engine, plugin *exec.Cmd
	conn           *grpc.ClientConn
}

func newTestNode(t *testing.T) *testNode {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE, loop devices and mounts")
	}
	admin := apiserver.Config(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	n := &testNode{T: t, namespace: apiserver.Namespace(t), dir: t.TempDir()}
	n.name = "node-of-" + n.namespace
	n.kubeconfig = filepath.Join(n.dir, "kubeconfig")
	var err error
	n.api, err = client.New(admin, client.Options{Scheme: scheme})
	n.must(err)
	n.grant()

	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: admin.CertData, ClientKeyData: admin.KeyData, Token: admin.BearerToken, Impersonate: n.name}
	config.Contexts["here"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "here"
	n.must(clientcmd.WriteToFile(*config, n.kubeconfig))

	n.must(os.MkdirAll(filepath.Join(n.kubelet(), "plugins_registry"), 0o750)) // the kubelet's own
	n.engine = n.start("", "engine", "--socket", n.engineSocket(), "--http-address", "")
	n.startPlugin(n.kubeconfig)
	n.conn, err = grpc.NewClient("unix://"+filepath.Join(n.kubelet(), "plugins/csi.bowline.dev/csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	n.must(err)
	t.Cleanup(n.stop)
	return n
}

// grant gives the node its rights, and no others.
func (n *testNode) grant() {
	n.Helper()
	for _, o := range []client.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: n.name}, Rules: node.Access()},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: n.name},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: n.name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: n.name}}},
	} {
		n.must(n.api.Create(n.Context(), o))
		n.Cleanup(func() {
			if err := n.api.Delete(context.Background(), o); err != nil {
				n.Error(err)
			}
		})
	}
}

func (n *testNode) kubelet() string      { return filepath.Join(n.dir, "kubelet") }
func (n *testNode) engineSocket() string { return filepath.Join(n.dir, "engine.sock") }

func (n *testNode) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

// start runs the program until the test ends or it is killed.
func (n *testNode) start(kubeconfig string, args ...string) *exec.Cmd {
	n.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "KUBECONFIG="+kubeconfig)
	log, err := os.Create(filepath.Join(n.dir, fmt.Sprintf("%s-%d.log", args[0], time.Now().UnixNano())))
	n.must(err)
	cmd.Stderr = log
	n.must(cmd.Start())
	n.Cleanup(func() {
		if n.Failed() {
			text, _ := os.ReadFile(log.Name())
			n.Logf("%s:\n%s", args[0], text)
		}
		log.Close()
	})
	return cmd
}

// startPlugin starts the node plugin; without a kubeconfig file it has no API
// server.
func (n *testNode) startPlugin(kubeconfig string) {
	n.Helper()
	n.plugin = n.start(kubeconfig, "node", "--node-name", n.name, "--kubelet-dir", n.kubelet(),
		"--state-dir", filepath.Join(n.dir, "state"), "--engine-socket", n.engineSocket(), "--http-address", "")
}

// killPlugin is a SIGKILL; a successor starts.
func (n *testNode) killPlugin(kubeconfig string) {
	n.Helper()
	n.must(n.plugin.Process.Kill())
	_ = n.plugin.Wait()
	n.startPlugin(kubeconfig)
}

// stop ends the processes; what is still mounted then is an error of the test, and
// taken away.
func (n *testNode) stop() {
	n.conn.Close()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		n.Error(err)
	}
	for _, line := range slices.Backward(strings.Split(string(table), "\n")) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], n.kubelet()) {
			n.Errorf("still mounted: %s", fields[1])
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
	for _, cmd := range []*exec.Cmd{n.plugin, n.engine} {
		_ = cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() {
			n.Errorf("process %v does not end", cmd.Args[1:2])
			_ = cmd.Process.Kill()
		})
		_ = cmd.Wait()
		late.Stop()
	}
}

// eventually repeats what fails until it does not, as the kubelet does.
func (n *testNode) eventually(what string, try func() error) {
	n.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	n.Fatalf("%s: %v", what, err)
}

var ext4 = &csi.VolumeCapability{
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
}

// create provisions a volume and returns its handle.
func (n *testNode) create(name string) string {
	n.Helper()
	var id string
	n.eventually("creating a volume", func() error {
		resp, err := csi.NewControllerClient(n.conn).CreateVolume(n.Context(), &csi.CreateVolumeRequest{
			Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20}, VolumeCapabilities: []*csi.VolumeCapability{ext4},
			AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{v1alpha1.TopologyKey: n.name}}}},
		})
		id = resp.GetVolume().GetVolumeId()
		return err
	})
	return id
}

func (n *testNode) staging(id string) string {
	return filepath.Join(n.kubelet(), "plugins/kubernetes.io/csi/csi.bowline.dev", id, "globalmount")
}

func (n *testNode) target(pod string) string {
	return filepath.Join(n.kubelet(), "pods", pod, "volumes/kubernetes.io~csi/pv/mount")
}

// publish gives the volume to a pod and returns where.
func (n *testNode) publish(id, pod string) string {
	n.Helper()
	c := csi.NewNodeClient(n.conn)
	target := n.target(pod)
	n.must(os.MkdirAll(n.staging(id), 0o750))
	n.must(os.MkdirAll(filepath.Dir(target), 0o750))
	n.eventually("publishing", func() error {
		if _, err := c.NodeStageVolume(n.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: n.staging(id), VolumeCapability: ext4}); err != nil {
			return err
		}
		_, err := c.NodePublishVolume(n.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: n.staging(id), TargetPath: target, VolumeCapability: ext4})
		return err
	})
	return target
}

func (n *testNode) unpublish(id, pod string) {
	n.Helper()
	n.eventually("unpublishing", func() error {
		_, err := csi.NewNodeClient(n.conn).NodeUnpublishVolume(n.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: n.target(pod)})
		return err
	})
}

// remove ends the volume.
func (n *testNode) remove(id string) {
	n.Helper()
	n.eventually("unstaging", func() error {
		_, err := csi.NewNodeClient(n.conn).NodeUnstageVolume(n.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: n.staging(id)})
		return err
	})
	n.eventually("deleting", func() error {
		_, err := csi.NewControllerClient(n.conn).DeleteVolume(n.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	})
}

// write writes the whole of a file, which is on the disk then.
func (n *testNode) write(path, text string) {
	n.Helper()
	f, err := os.Create(path)
	n.must(err)
	_, err = io.WriteString(f, strings.Repeat(text, 100_000))
	n.must(err)
	n.must(f.Sync())
	n.must(f.Close())
}

func (n *testNode) wantFile(path, text string) {
	n.Helper()
	got, err := os.ReadFile(path)
	n.must(err)
	if string(got) != strings.Repeat(text, 100_000) {
		n.Fatalf("%s has %d bytes that begin with %.20q, want %d times %q", path, len(got), got, 100_000, text)
	}
}

// checkpoint asks for a checkpoint, and lets the node open it, unless change says
// otherwise.
func (n *testNode) checkpoint(name, volume string, change ...func(*v1alpha1.VolumeCheckpoint)) *v1alpha1.VolumeCheckpoint {
	n.Helper()
	c := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: name, Labels: map[string]string{v1alpha1.LabelNode: n.name}},
		Spec:       v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: "data"},
		Status: v1alpha1.VolumeCheckpointStatus{
			Phase: v1alpha1.PhasePending, NodeName: n.name, VolumeName: "pv", VolumeHandle: volume, Step: v1alpha1.StepSwitch,
		},
	}
	for _, f := range change {
		f(c)
	}
	status := c.Status
	n.must(n.api.Create(n.Context(), c))
	object := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: name, UID: c.UID}}
	n.must(apply.Status(n.Context(), n.api, object, &status, v1alpha1.FieldManagerController))
	return c
}

func (n *testNode) want(c *v1alpha1.VolumeCheckpoint, s v1alpha1.DesiredState) {
	n.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"desiredState":%q}}`, s)
	n.must(n.api.Patch(n.Context(), c.DeepCopy(), client.RawPatch("application/merge-patch+json", patch)))
}

func (n *testNode) await(c *v1alpha1.VolumeCheckpoint, p v1alpha1.Phase) *v1alpha1.VolumeCheckpoint {
	n.Helper()
	began := time.Now()
	var now v1alpha1.VolumeCheckpoint
	n.eventually(fmt.Sprintf("waiting for %s to be %s", c.Name, p), func() error {
		if err := n.api.Get(n.Context(), client.ObjectKeyFromObject(c), &now); err != nil {
			return err
		}
		if now.Status.Phase != p {
			return fmt.Errorf("it is %+v", now.Status)
		}
		return nil
	})
	n.Logf("%s is %s after %v", c.Name, p, time.Since(began).Round(time.Millisecond))
	return &now
}

// TestCheckpointsOfNode takes volumes with real file systems through their
// checkpoints by way of the API server, with the node plugin killed at the worst
// moments.
func TestCheckpointsOfNode(t *testing.T) {
	n := newTestNode(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: "db-0"},
		Spec: corev1.PodSpec{NodeName: n.name, AutomountServiceAccountToken: new(false), Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	n.must(n.api.Create(n.Context(), pod))
	first, second := string(pod.UID), "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a001"
	id := n.create("pv")

	// Not in use yet, never used even: it is opened when there is something to
	// go back to.
	early := n.checkpoint("early", id)
	n.eventually("waiting for a user", func() error {
		var c v1alpha1.VolumeCheckpoint
		n.must(n.api.Get(n.Context(), client.ObjectKeyFromObject(early), &c))
		if condition := c.Condition(v1alpha1.ConditionCheckpointed); condition == nil || condition.Reason != v1alpha1.ReasonVolumeNotInUse {
			return fmt.Errorf("%+v", c.Status)
		}
		return nil
	})
	file := filepath.Join(n.publish(id, first), "file")
	n.await(early, v1alpha1.PhaseCheckpointed)
	n.want(early, v1alpha1.Committed)
	n.await(early, v1alpha1.PhaseCommitted)

	// Roll back, with the plugin killed while it waits.
	n.write(file, "old")
	c := n.checkpoint("rollback", id)
	open := n.await(c, v1alpha1.PhaseCheckpointed)
	if s := open.Status; s.FreezeDuration == nil || s.FreeForBackups.IsZero() || s.CheckpointTime == nil {
		t.Errorf("status %+v", s)
	}
	n.write(file, "new")
	n.killPlugin(n.kubeconfig)
	n.want(c, v1alpha1.RolledBack)
	waiting := n.await(c, v1alpha1.PhaseRollbackPending)
	if got := strings.Join(waiting.Status.Rollback.WaitingFor, " "); got != n.namespace+"/db-0" {
		t.Errorf("it waits for %q", got)
	}
	n.killPlugin(n.kubeconfig)
	n.unpublish(id, first)
	file = filepath.Join(n.publish(id, second), "file")
	n.wantFile(file, "old")
	n.await(c, v1alpha1.PhaseRolledBack)

	// A second checkpoint on the same mount, committed.
	c = n.checkpoint("commit", id)
	n.await(c, v1alpha1.PhaseCheckpointed)
	n.write(file, "new")
	n.want(c, v1alpha1.Committed)
	n.await(c, v1alpha1.PhaseCommitted)
	n.wantFile(file, "new")

	// A rollback that is marked happens without the API server, too.
	c = n.checkpoint("away", id)
	n.await(c, v1alpha1.PhaseCheckpointed)
	n.write(file, "newer")
	n.want(c, v1alpha1.RolledBack)
	n.await(c, v1alpha1.PhaseRollbackPending)
	n.killPlugin("")
	n.unpublish(id, second)
	file = filepath.Join(n.publish(id, first), "file")
	n.wantFile(file, "new")
	n.killPlugin(n.kubeconfig)
	n.await(c, v1alpha1.PhaseRolledBack)

	// Deleting an open one commits it.
	c = n.checkpoint("deleted", id)
	patch := fmt.Appendf(nil, `{"metadata":{"finalizers":[%q]}}`, v1alpha1.Finalizer)
	n.must(n.api.Patch(n.Context(), c.DeepCopy(), client.RawPatch("application/merge-patch+json", patch)))
	n.await(c, v1alpha1.PhaseCheckpointed)
	n.must(n.api.Delete(n.Context(), c.DeepCopy()))
	n.await(c, v1alpha1.PhaseCommitted)
	n.must(n.api.Patch(n.Context(), c.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))))

	n.unpublish(id, first)
	n.remove(id)
}
