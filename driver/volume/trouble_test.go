package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
)

// TestDeviceTakenAway: the loop device of a volume goes, and its number becomes
// that of another volume.
func TestDeviceTakenAway(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	a, b := n.create("a", 64*mib), n.create("b", 64*mib)
	n.write(filepath.Join(n.start(a, "p"), "f"), "a's")
	o := n.options(a, "p")
	n.must(n.Unpublish(ctx, a, o.TargetPath))
	device := n.status(a).Device
	n.must(unix.Unmount(o.StagingPath, 0))
	f, err := os.Open(device)
	n.must(err)
	n.must(errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0), f.Close()))
	// Others on this machine use loop devices, too.
	n.write(filepath.Join(n.start(b, "p"), "f"), "b's")
	if now := n.status(b).Device; now != device {
		t.Skipf("b got %s, not %s", now, device)
	}
	if s := n.status(a); s.Attached || s.Staged || len(s.Publishers) > 0 {
		t.Errorf("%+v", s)
	}
	n.wantFile(filepath.Join(n.start(a, "q"), "f"), "a's")
	n.end(a, "q")
	n.wantFile(filepath.Join(n.options(b, "p").TargetPath, "f"), "b's")
	n.end(b, "p")
}

// TestDeadInUse: what is dead stays mounted where pods have it, or their
// containers would write to the node's own disk when they are started again.
func TestDeadInUse(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.killEngine()
	n.startEngine()
	n.eventually("the engine is back", func() bool { _, err := n.Status(ctx, id); return err == nil })
	mounted := func() {
		t.Helper()
		if _, _, err := filesystem.MountedAt(at); err != nil {
			t.Fatal(err)
		}
	}
	n.want(n.Commit(ctx, id, uid1), volume.ErrInUse)
	mounted()
	n.want(n.Publish(ctx, n.options(id, "b")), volume.ErrInUse)
	mounted()
	n.must(n.Rollback(ctx, id, uid1))
	time.Sleep(1500 * time.Millisecond)
	mounted()
	if s := n.status(id); !s.Dead || len(s.Publishers) != 1 || s.Rollback == nil || len(s.Rollback.WaitingFor) != 1 || s.Open == nil {
		t.Fatalf("%+v", s)
	}
	n.want(n.Publish(ctx, n.options(id, "b")), volume.ErrRollbackPending)
	n.must(n.Unpublish(ctx, id, at))
	n.eventually("rolled back", func() bool { s := n.status(id); return s.Rollback == nil && s.Open == nil })
	n.wantFile(filepath.Join(n.start(id, "c"), "f"), "old")

	// What it had published is published anew in the place of what is dead.
	n.killEngine()
	n.startEngine()
	n.eventually("the engine is back", func() bool { _, err := n.Status(ctx, id); return err == nil })
	o := n.options(id, "c")
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "old")
	n.end(id, "c")
}

// TestFrozenNoRecord: a checkpoint whose record cannot be written leaves nothing
// frozen.
func TestFrozenNoRecord(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.must(n.Freeze(ctx, id, uid1, time.Second))
	records := filepath.Join(n.dir, "state", "volumes")
	n.must(unix.Mount(records, records, "", unix.MS_BIND, ""))
	n.must(unix.Mount("", records, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	n.want(n.CheckpointFrozen(ctx, id, uid1, volume.CheckpointOptions{}), unix.EROFS)
	done := make(chan struct{})
	go func() {
		n.write(filepath.Join(at, "f"), "x")
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it is still frozen")
		n.must(filesystem.Thaw(at))
		<-done
	}
	n.must(unix.Unmount(records, 0))
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.end(id, "a")
}

// engineWith is an engine that restores, or attaches volumes, as asked.
type engineWith struct {
	enginepb.EngineClient
	restore func() error
	attach  func() error // nil: always
}

func (e engineWith) Attach(ctx context.Context, req *enginepb.AttachRequest, o ...grpc.CallOption) (*enginepb.Volume, error) {
	if e.attach != nil {
		if err := e.attach(); err != nil {
			return nil, err
		}
	}
	return e.EngineClient.Attach(ctx, req, o...)
}

func (e engineWith) Restore(ctx context.Context, req *enginepb.RestoreRequest, o ...grpc.CallOption) (grpc.ServerStreamingClient[enginepb.RestoreProgress], error) {
	if err := e.restore(); err != nil {
		return nil, err
	}
	return e.EngineClient.Restore(ctx, req, o...)
}

// TestRollbackFailsLate: a rollback that fails after a while is tried again though
// nobody wants the volume.
func TestRollbackFailsLate(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	var tries atomic.Int32
	n.client = engineWith{EngineClient: n.client, restore: func() error {
		time.Sleep(700 * time.Millisecond)
		if tries.Add(1) < 3 {
			return status.Error(codes.Unavailable, "killed")
		}
		return nil
	}}
	n.restartManager()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.end(id, "a")
	n.must(n.Rollback(ctx, id, uid1))
	n.want(n.Commit(ctx, id, uid1), volume.ErrRollbackPending) // not marked on the volume
	n.eventually("rolled back", func() bool { return n.status(id).Open == nil })
	n.wantFile(filepath.Join(n.start(id, "b"), "f"), "old")
	n.end(id, "b")
}

// TestStagingBusy: somebody who looks at the staging path does not keep a rollback
// from being done, and neither does a record that was lost.
func TestStagingBusy(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.must(n.Rollback(ctx, id, uid1))
	looks, err := os.Open(n.options(id, "a").StagingPath)
	n.must(err)
	n.must(n.Unpublish(ctx, id, at))
	n.want(n.Publish(ctx, n.options(id, "b")), volume.ErrRollbackPending)
	time.Sleep(time.Second)
	n.must(looks.Close())
	n.eventually("rolled back", func() bool { return n.status(id).Open == nil })

	at = n.start(id, "a")
	n.wantFile(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid2, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.must(n.Rollback(ctx, id, uid2))
	n.must(os.Remove(filepath.Join(n.dir, "state", "volumes", id+".json")))
	n.must(n.Unpublish(ctx, id, at))
	o := n.options(id, "b")
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "old")
	n.end(id, "b")
}

// TestReadOnlyFilesystem: publishing again what is read-only as a whole is no error.
func TestReadOnlyFilesystem(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 16*mib)
	n.start(id, "a")
	n.end(id, "a")
	o := n.options(id, "a")
	o.MountOptions = []string{"ro"}
	for range 2 {
		n.must(n.Stage(ctx, o.StageOptions))
		n.must(n.Publish(ctx, o))
	}
	n.end(id, "a")
}

// TestDeletePublishedBlock: a block volume that nobody happens to have open is in
// use all the same.
func TestDeletePublishedBlock(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("raw", 16*mib)
	o := n.options(id, "a")
	o.Block = true
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.want(n.Delete(ctx, id), volume.ErrInUse)
	n.must(n.Unpublish(ctx, id, o.TargetPath))
	n.must(n.Delete(ctx, id)) // it was only staged
	n.must(n.Unstage(ctx, id, o.StagingPath))
}

// TestFrozenPrivately: a Manager that was killed while it had frozen a file system
// that only its own container saw leaves one that is frozen and not mounted.
func TestFrozenPrivately(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	for _, fsType := range []string{filesystem.Ext4, filesystem.XFS} {
		id := n.create("pvc-"+fsType, 320*mib)
		o := n.options(id, "a")
		o.FSType = fsType
		n.must(n.Stage(ctx, o.StageOptions))
		n.must(filesystem.Freeze(o.StagingPath))
		n.must(unix.Unmount(o.StagingPath, unix.MNT_DETACH))
		n.Manager.Close()
		record := filepath.Join(n.dir, "state", "volumes", id+".json")
		b, err := os.ReadFile(record)
		n.must(err)
		n.must(os.WriteFile(record, []byte(strings.Replace(string(b), "{", `{"frozen":true,`, 1)), 0o600))
		n.startManager()
		n.eventually("it is not in use any more", func() bool { return n.Unstage(ctx, id, o.StagingPath) == nil })
		n.end(id, "a")
		n.must(n.Delete(ctx, id))
	}
}

// TestGivenUpByHand: a checkpoint that was to be rolled back, and was dropped by
// hand, is not taken for rolled back.
func TestGivenUpByHand(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.must(n.Rollback(ctx, id, uid1))
	n.Manager.Close()
	for _, path := range []string{at, n.options(id, "a").StagingPath} {
		n.must(unix.Unmount(path, 0))
	}
	v := n.status(id)
	_, err := n.client.Detach(ctx, &enginepb.DetachRequest{Name: id})
	n.must(err)
	dev, err := blockdev.Open(v.Path, blockdev.Exclusive)
	n.must(err)
	n.must(errors.Join(restore.RollForward(ctx, dev), dev.Close()))
	n.startManager()
	if s := n.status(id); s.Open != nil || s.Last == nil || s.Last.UID != uid1 || s.Last.Outcome != volume.Committed || s.Last.Reason != volume.ReasonOutside {
		t.Errorf("%+v %+v", s, s.Last)
	}
	n.wantFile(filepath.Join(n.start(id, "b"), "f"), "new")
	n.end(id, "b")
}

// TestMissingDevice: a device that is late is not a volume that was deleted.
func TestMissingDevice(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	image := n.path("images", "disk")
	n.must(os.WriteFile(image, nil, 0o600))
	n.must(os.Truncate(image, 32*mib))
	o := n.options("static", "a")
	o.Device = image
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.write(filepath.Join(o.TargetPath, "f"), "old")
	n.must(n.Checkpoint(ctx, o.ID, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(o.TargetPath, "f"), "new")
	other := o // of the same name, and another volume
	other.Device = n.path("images", "other")
	n.must(os.WriteFile(other.Device, make([]byte, mib), 0o600))
	n.want(n.Publish(ctx, other), volume.ErrInvalid)
	n.must(n.Rollback(ctx, o.ID, uid1))
	n.Manager.Close()
	for _, path := range []string{o.TargetPath, o.StagingPath} {
		n.must(unix.Unmount(path, 0))
	}
	_, err := n.client.Detach(ctx, &enginepb.DetachRequest{Name: o.ID})
	n.must(err)
	n.must(os.Rename(image, image+".late"))
	n.startManager()
	_, err = n.Status(ctx, o.ID)
	n.want(err, volume.ErrMissing)
	if errors.Is(err, pool.ErrNotFound) {
		t.Errorf("%v", err)
	}
	n.want(n.Stage(ctx, o.StageOptions), pool.ErrNotFound)
	n.must(os.Rename(image+".late", image))
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "old")
	n.end(o.ID, "a")
}

// TestDamaged: a checkpoint that is damaged is left alone, and given up when it is
// committed.
func TestDamaged(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	var damaged atomic.Bool
	damage := func() error {
		if damaged.Load() {
			return status.Error(codes.DataLoss, "damaged")
		}
		return nil
	}
	n.client = engineWith{EngineClient: n.client, restore: damage, attach: damage}
	n.restartManager()
	id := n.create("pvc-1", 64*mib)
	for _, rollback := range []bool{true, false} {
		at := n.start(id, "a")
		n.write(filepath.Join(at, "f"), "old")
		n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
		n.write(filepath.Join(at, "f"), "new")
		damaged.Store(true)
		if rollback {
			n.must(n.Rollback(ctx, id, uid1))
			n.want(n.Commit(ctx, id, uid1), volume.ErrRollbackPending)
		}
		n.end(id, "a")
		if rollback {
			n.eventually("it is known to be damaged", func() bool {
				s := n.status(id)
				return s.Rollback != nil && errors.Is(s.Rollback.Err, volume.ErrDamaged)
			})
		}
		n.want(n.Stage(ctx, n.options(id, "b").StageOptions), volume.ErrDamaged)
		n.want(n.Commit(ctx, id, uid2), volume.ErrNoCheckpoint)
		n.must(n.Commit(ctx, id, uid1))
		damaged.Store(false)
		if s := n.status(id); s.Open != nil || s.Rollback != nil || s.Last == nil || s.Last.Outcome != volume.Committed || s.Last.Reason != "" {
			t.Errorf("%+v %+v", s, s.Last)
		}
		n.wantFile(filepath.Join(n.start(id, "b"), "f"), "new")
		n.end(id, "b")
	}
}

// TestHalfWritten: what a rollback under way has written is not taken for damage, and
// the same afterwards is.
func TestHalfWritten(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	begun, held := make(chan struct{}, 1), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(held) })
	defer goOn()
	n.client = engineWith{EngineClient: n.client, restore: func() error {
		select {
		case begun <- struct{}{}:
		default:
		}
		<-held
		return nil
	}}
	n.restartManager()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.must(n.Rollback(ctx, id, uid1))
	n.end(id, "a")
	<-begun

	image, err := os.OpenFile(n.status(id).Path, os.O_RDWR, 0)
	n.must(err)
	defer image.Close()
	block := make([]byte, 4096)
	_, err = image.ReadAt(block, 0)
	n.must(err)
	garbage := []byte("BOW\x00garbage")
	_, err = image.WriteAt(garbage, 0)
	n.must(err)
	if _, err = n.Status(ctx, id); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("while it is rolled back: %v", err)
	}
	_, err = image.WriteAt(block, 0)
	n.must(err)
	goOn()
	n.eventually("rolled back", func() bool {
		s, err := n.Status(ctx, id)
		return err == nil && s.Open == nil && s.Last.Outcome == volume.RolledBack
	})

	_, err = image.ReadAt(block, 0)
	n.must(err)
	_, err = image.WriteAt(garbage, 0)
	n.must(err)
	if _, err = n.Status(ctx, id); !errors.Is(err, volume.ErrDamaged) {
		t.Errorf("when nothing is under way: %v", err)
	}
	_, err = image.WriteAt(block, 0)
	n.must(err)
	n.wantFile(filepath.Join(n.start(id, "b"), "f"), "old")
	n.end(id, "b")
}

// TestNothingConnected: the device of a static volume that has no size yet is not there.
func TestNothingConnected(t *testing.T) {
	n := newNode(t)
	o := n.image("static", 32*mib)
	n.must(n.Stage(t.Context(), o.StageOptions))
	n.must(n.Publish(t.Context(), o))
	n.must(n.Checkpoint(t.Context(), o.ID, uid1, volume.CheckpointOptions{}))
	n.end(o.ID, "a")
	n.must(os.Rename(o.Device, o.Device+".late"))
	n.must(os.WriteFile(o.Device, nil, 0o600))
	_, err := n.Status(t.Context(), o.ID)
	n.want(err, volume.ErrMissing)
	n.must(os.Rename(o.Device+".late", o.Device))
	if s := n.status(o.ID); s.Open == nil || s.Last.Outcome != volume.Open {
		t.Errorf("%+v %+v", s, s.Last)
	}
}

// TestUnreadable: that block 0 cannot be read now does not mean that it is damaged.
func TestUnreadable(t *testing.T) {
	n := newNode(t)
	o := n.image("static", 32*mib)
	image := o.Device
	o.Device = newLoop(t, image)
	n.must(n.Stage(t.Context(), o.StageOptions))
	n.must(n.Publish(t.Context(), o))
	n.end(o.ID, "a")
	n.must(os.Truncate(image, 0))
	if _, err := n.Status(t.Context(), o.ID); !errors.Is(err, unix.EIO) || errors.Is(err, volume.ErrDamaged) {
		t.Errorf("%v, want an I/O error", err)
	}
}

// TestLookedAtMeanwhile: who looks while a checkpoint is opened or ended does not
// see one that nobody has ended.
func TestLookedAtMeanwhile(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 16*mib)
	n.start(id, "a")
	n.end(id, "a")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			s, err := n.Status(ctx, id)
			if errors.Is(err, volume.ErrBusy) {
				continue // half of something was seen, and not taken for the whole
			}
			if err != nil || s.Last != nil && s.Last.Reason != "" {
				t.Errorf("%+v %+v, %v", s, s.Last, err)
				return
			}
		}
	}()
	for range 4 {
		n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
		n.must(n.Rollback(ctx, id, uid1))
		n.eventually("rolled back", func() bool {
			s, err := n.Status(ctx, id)
			return err == nil && s.Open == nil && s.Last != nil && s.Last.Outcome == volume.RolledBack
		})
		n.must(n.Checkpoint(ctx, id, uid2, volume.CheckpointOptions{}))
		n.must(n.Commit(ctx, id, uid2))
	}
	close(stop)
	<-stopped
}
