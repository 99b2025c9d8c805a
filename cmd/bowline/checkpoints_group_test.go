package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const podOfTest = "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a00"

// step lets the node go on with the checkpoint of a volume.
func (n *testNode) step(c *v1alpha1.VolumeCheckpoint, s v1alpha1.Step) {
	n.Helper()
	patch := fmt.Appendf(nil, `{"status":{"step":%q}}`, s)
	n.must(n.api.Status().Patch(n.Context(), c.DeepCopy(), client.RawPatch("application/merge-patch+json", patch)))
}

func wantReason(t *testing.T, c *v1alpha1.VolumeCheckpoint, condition, reason string) {
	t.Helper()
	if got := c.Condition(condition); got == nil || got.Status != metav1.ConditionTrue || got.Reason != reason {
		t.Errorf("condition %s of %s is %+v, want reason %s", condition, c.Name, got, reason)
	}
}

// TestGroupOnNode freezes several volumes for their group: nothing is written
// while they are, and everything after.
func TestGroupOnNode(t *testing.T) {
	n := newTestNode(t)
	ofGroup := func(c *v1alpha1.VolumeCheckpoint) {
		c.Labels[v1alpha1.LabelGroup] = podOfTest + "9"
		c.Status.Step = v1alpha1.StepPrepare
	}
	var ids, pods, files []string
	for i := range 2 {
		ids, pods = append(ids, n.create(fmt.Sprintf("pv-%d", i))), append(pods, fmt.Sprintf("%s%d", podOfTest, i))
		files = append(files, filepath.Join(n.publish(ids[i], pods[i]), "file"))
		n.write(files[i], "old")
	}
	begin := func(name string) (members []*v1alpha1.VolumeCheckpoint) {
		for i, id := range ids {
			members = append(members, n.checkpoint(fmt.Sprintf("%s-%d", name, i), id, ofGroup))
		}
		for _, step := range []struct {
			step  v1alpha1.Step
			phase v1alpha1.Phase
		}{{v1alpha1.StepPrepare, v1alpha1.PhasePrepared}, {v1alpha1.StepFreeze, v1alpha1.PhaseFrozen}} {
			for _, c := range members {
				n.step(c, step.step)
			}
			for _, c := range members {
				n.await(c, step.phase)
			}
		}
		return members
	}
	// write writes to the first volume and tells when it is done.
	write := func() chan error {
		done := make(chan error, 1)
		go func() { done <- os.WriteFile(files[0]+"-new", []byte("new"), 0o600) }()
		select {
		case err := <-done:
			t.Errorf("written to a frozen volume: %v", err)
			done <- err
		case <-time.After(200 * time.Millisecond):
		}
		return done
	}

	members := begin("abort")
	done := write()
	for _, c := range members {
		n.step(c, v1alpha1.StepAbort)
	}
	n.must(<-done)
	for _, c := range members {
		wantReason(t, n.await(c, v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, v1alpha1.ReasonAborted)
	}

	// The one is switched, the other one has been thawed by a new plugin.
	members = begin("late")
	n.step(members[0], v1alpha1.StepSwitch)
	n.await(members[0], v1alpha1.PhaseCheckpointed)
	n.killPlugin(n.kubeconfig)
	n.eventually("writing to a volume that was left frozen", func() error { return os.WriteFile(files[1]+"-thawed", nil, 0o600) })
	n.step(members[1], v1alpha1.StepSwitch)
	wantReason(t, n.await(members[1], v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, v1alpha1.ReasonFreezeExpired)
	n.step(members[0], v1alpha1.StepAbort)
	wantReason(t, n.await(members[0], v1alpha1.PhaseFailed), v1alpha1.ConditionFailed, v1alpha1.ReasonAborted)

	members = begin("together")
	for _, c := range members {
		n.step(c, v1alpha1.StepSwitch)
	}
	for i, c := range members {
		n.await(c, v1alpha1.PhaseCheckpointed)
		n.write(files[i], "new")
		n.want(c, v1alpha1.RolledBack)
		n.await(c, v1alpha1.PhaseRollbackPending)
		n.unpublish(ids[i], pods[i])
		n.await(c, v1alpha1.PhaseRolledBack)
		n.publish(ids[i], pods[i])
		n.wantFile(files[i], "old")
		n.unpublish(ids[i], pods[i])
		n.remove(ids[i])
	}
}

// awaitTrue waits until a condition is true.
func (n *testNode) awaitTrue(c *v1alpha1.VolumeCheckpoint, condition string) *metav1.Condition {
	n.Helper()
	var got *metav1.Condition
	n.eventually("waiting for "+condition+" of "+c.Name, func() error {
		var now v1alpha1.VolumeCheckpoint
		n.must(n.api.Get(n.Context(), client.ObjectKeyFromObject(c), &now))
		if got = now.Condition(condition); got == nil || got.Status != metav1.ConditionTrue {
			return fmt.Errorf("%+v", now.Status)
		}
		return nil
	})
	return got
}

// TestOutOfSpaceOnNode fills volumes with a checkpoint, under either policy.
func TestOutOfSpaceOnNode(t *testing.T) {
	n := newTestNode(t)
	for i, policy := range []v1alpha1.OutOfSpacePolicy{v1alpha1.OutOfSpaceCommit, v1alpha1.OutOfSpaceFailWrites} {
		pod := fmt.Sprintf("%s%d", podOfTest, i)
		id := n.create(fmt.Sprintf("pv-%d", i))
		file := filepath.Join(n.publish(id, pod), "file")
		fill := func(b byte) error {
			f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
			n.must(err)
			p := make([]byte, 1<<20)
			for j := range p {
				p[j] = b
			}
			for range 40 {
				if _, err = f.Write(p); err != nil {
					break
				}
			}
			return errors.Join(err, f.Sync(), f.Close())
		}
		n.must(fill('o'))
		c := n.checkpoint(fmt.Sprintf("full-%d", i), id, func(c *v1alpha1.VolumeCheckpoint) { c.Spec.OutOfSpacePolicy = policy })
		n.await(c, v1alpha1.PhaseCheckpointed)
		err := fill('n')
		if policy == v1alpha1.OutOfSpaceCommit {
			if err != nil {
				t.Errorf("writing to a volume whose checkpoint makes way: %v", err)
			}
			wantReason(t, n.await(c, v1alpha1.PhaseCommitted), v1alpha1.ConditionCommitted, v1alpha1.ReasonOutOfSpace)
		} else {
			if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
				t.Errorf("writing to a volume whose checkpoint stays: %v, want no space", err)
			}
			n.awaitTrue(c, v1alpha1.ConditionSpaceLow)
			n.want(c, v1alpha1.RolledBack)
			n.await(c, v1alpha1.PhaseRollbackPending)
		}
		n.unpublish(id, pod)
		if policy == v1alpha1.OutOfSpaceFailWrites {
			n.await(c, v1alpha1.PhaseRolledBack)
		}
		n.remove(id)
	}
}

// TestDamagePassesOnNode: a checkpoint that looks damaged has failed, and goes on when
// it does not any more.
func TestDamagePassesOnNode(t *testing.T) {
	n := newTestNode(t)
	const pod = podOfTest + "0"
	id := n.create("pv")
	file := filepath.Join(n.publish(id, pod), "file")
	n.write(file, "old")
	c := n.checkpoint("damaged", id)
	n.await(c, v1alpha1.PhaseCheckpointed)
	n.write(file, "new")

	image := filepath.Join(n.dir, "state", "pool", id, "image")
	whole, err := os.Stat(image)
	n.must(err)
	for _, want := range []v1alpha1.DesiredState{v1alpha1.Checkpointed, v1alpha1.RolledBack} {
		n.must(os.Truncate(image, whole.Size()-4096)) // a block that the file system does not use
		failed := n.await(c, v1alpha1.PhaseFailed)
		if condition := failed.Condition(v1alpha1.ConditionFailed); condition == nil || condition.Reason != v1alpha1.ReasonDamaged || !failed.OnVolume() {
			t.Errorf("%+v", failed.Status)
		}
		n.want(c, want)
		n.must(os.Truncate(image, whole.Size()))
		phase := v1alpha1.PhaseCheckpointed
		if want == v1alpha1.RolledBack {
			phase = v1alpha1.PhaseRollbackPending
		}
		if now := n.await(c, phase); now.Condition(v1alpha1.ConditionFailed) != nil || now.Status.CompletionTime != nil {
			t.Errorf("%+v", now.Status)
		}
	}
	n.unpublish(id, pod)
	n.await(c, v1alpha1.PhaseRolledBack)
	n.wantFile(filepath.Join(n.publish(id, pod), "file"), "old")
	n.unpublish(id, pod)
	n.remove(id)
}

// TestDeviceFailingOnNode reads what is not in the image of a volume, as of a disk
// that fails: its checkpoint says so until it has ended.
func TestDeviceFailingOnNode(t *testing.T) {
	n := newTestNode(t)
	const pod = podOfTest + "0"
	id := n.create("pv")
	file := filepath.Join(n.publish(id, pod), "file")
	n.write(file, "old")
	c := n.checkpoint("failing", id)
	if open := n.await(c, v1alpha1.PhaseCheckpointed); open.Condition(v1alpha1.ConditionDeviceFailing) != nil {
		t.Errorf("nothing has failed: %+v", open.Status)
	}

	image := filepath.Join(n.dir, "state", "pool", id, "image")
	whole, err := os.Stat(image)
	n.must(err)
	_, device, err := filesystem.MountedAt(n.staging(id))
	n.must(err)
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	n.must(err)
	// The node plugin must not see that the image is too short meanwhile, which is
	// another trouble.
	n.must(n.plugin.Process.Signal(unix.SIGSTOP))
	const end = 4096 // a block that the file system does not use
	n.must(os.Truncate(image, whole.Size()-end))
	_, err = f.ReadAt(blockdev.Buffer(end), whole.Size()-end)
	n.must(os.Truncate(image, whole.Size()))
	n.must(n.plugin.Process.Signal(unix.SIGCONT))
	if !errors.Is(err, unix.EIO) {
		t.Errorf("reading what is not there: %v", err)
	}
	n.must(f.Close())
	if failing := n.awaitTrue(c, v1alpha1.ConditionDeviceFailing); failing.Reason != v1alpha1.ReasonDeviceErrors || !strings.Contains(failing.Message, image) {
		t.Errorf("%+v", failing)
	}

	n.write(file, "new")
	n.want(c, v1alpha1.RolledBack)
	n.await(c, v1alpha1.PhaseRollbackPending)
	n.awaitTrue(c, v1alpha1.ConditionDeviceFailing)
	n.unpublish(id, pod)
	if done := n.await(c, v1alpha1.PhaseRolledBack); done.Condition(v1alpha1.ConditionDeviceFailing) != nil {
		t.Errorf("it is over: %+v", done.Status)
	}
	n.wantFile(filepath.Join(n.publish(id, pod), "file"), "old")
	n.unpublish(id, pod)
	n.remove(id)
}
