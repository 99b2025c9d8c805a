package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
)

const (
	uid1 = "11111111-2222-3333-4444-555555555555"
	uid2 = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

func TestStageAndPublish(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	for _, fsType := range []string{"", filesystem.Ext4, filesystem.XFS} {
		t.Run("fs="+fsType, func(t *testing.T) {
			defer func(all *testing.T) { n.t = all }(n.t) // who may still be told something
			n.t = t
			id := n.create("pvc-"+fsType+"x", 320*mib)
			o := n.options(id, "a")
			o.FSType = fsType
			n.want(n.Publish(ctx, volume.PublishOptions{StageOptions: volume.StageOptions{Ref: volume.Ref{ID: "none"}, StagingPath: "/x"}, TargetPath: "/y"}), pool.ErrNotFound)
			for range 2 { // each call twice
				n.must(n.Stage(ctx, o.StageOptions))
			}
			for range 2 {
				n.must(n.Publish(ctx, o))
			}
			n.write(filepath.Join(o.TargetPath, "f"), "one")
			ro := n.options(id, "b")
			ro.ReadOnly = true
			n.must(n.Publish(ctx, ro))
			n.wantFile(filepath.Join(ro.TargetPath, "f"), "one")
			if err := os.WriteFile(filepath.Join(ro.TargetPath, "g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("written to a read-only mount: %v", err)
			}
			alone := n.options(id, "c")
			alone.Exclusive = true
			n.want(n.Publish(ctx, alone), volume.ErrPublished)
			if s := n.status(id); !s.Staged || len(s.Publishers) != 2 || s.Open != nil {
				t.Errorf("%+v", s)
			}
			n.want(n.Unstage(ctx, id, o.StagingPath), volume.ErrInUse)
			n.want(n.Delete(ctx, id), volume.ErrInUse)
			for range 2 {
				n.must(n.Unpublish(ctx, id, o.TargetPath))
				n.must(n.Unpublish(ctx, id, ro.TargetPath))
			}
			if _, err := os.Lstat(o.TargetPath); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target path is still there: %v", err)
			}
			for range 2 {
				n.must(n.Unstage(ctx, id, o.StagingPath))
			}
			if s := n.status(id); s.Attached || s.Staged {
				t.Errorf("%+v", s)
			}
			n.wantFile(filepath.Join(n.start(id, "d"), "f"), "one")
			n.end(id, "d")
			other := o
			other.FSType = map[string]string{"": "xfs", "ext4": "xfs", "xfs": "ext4"}[fsType]
			n.want(n.Stage(ctx, other.StageOptions), volume.ErrUnsupported)
			for range 2 {
				n.must(n.Delete(ctx, id))
			}
		})
	}
}

func TestBlock(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("raw", 16*mib)
	o := n.options(id, "a")
	o.Block = true
	n.must(n.Stage(ctx, o.StageOptions))
	for range 2 {
		n.must(n.Publish(ctx, o))
	}
	f, err := os.OpenFile(o.TargetPath, os.O_RDWR, 0)
	n.must(err)
	_, err = f.WriteAt([]byte("hello"), 5*mib)
	n.must(errors.Join(err, f.Sync()))
	if s := n.status(id); len(s.Publishers) != 1 || s.Publishers[0] != o.TargetPath {
		t.Errorf("%+v", s)
	}
	if u, err := n.Stats(ctx, id, o.TargetPath); err != nil || !u.Block || u.Total != 16*mib {
		t.Errorf("%+v, %v", u, err)
	}
	ro := n.options(id, "b")
	ro.Block, ro.ReadOnly = true, true
	n.must(n.Publish(ctx, ro))
	if u, _, err := filesystem.MountedAt(ro.TargetPath); err != nil || !u.ReadOnly {
		t.Errorf("published read-only: %+v, %v", u, err)
	}
	n.must(n.Unpublish(ctx, id, ro.TargetPath))
	n.must(f.Close())
	n.must(n.Unpublish(ctx, id, o.TargetPath))
	n.must(n.Unstage(ctx, id, o.StagingPath))
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	p := make([]byte, 5)
	f, err = os.Open(o.TargetPath)
	n.must(err)
	_, err = f.ReadAt(p, 5*mib)
	n.must(errors.Join(err, f.Close()))
	if string(p) != "hello" {
		t.Errorf("%q", p)
	}
	// Now as if it had a file system.
	n.must(n.Unpublish(ctx, id, o.TargetPath))
	n.must(n.Unstage(ctx, id, o.StagingPath))
	o.Block = false
	n.want(n.Stage(ctx, o.StageOptions), volume.ErrDamaged)
	n.must(n.Delete(ctx, id))
}

// TestRollback: a rollback is asked for while a pod runs, done when it ends, and
// the next pod, which comes without staging, sees the old content.
func TestRollback(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "restarts"}[restart], func(t *testing.T) {
			n := newNode(t)
			ctx := t.Context()
			perhapsRestart := func() {
				if restart {
					n.restartManager()
				}
			}
			id := n.create("pvc-1", 64*mib)
			at := n.start(id, "a")
			file := filepath.Join(at, "f")
			n.write(file, strings.Repeat("old", 100_000))
			n.want(n.Rollback(ctx, id, uid1), volume.ErrNoCheckpoint)
			for range 2 {
				n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
				perhapsRestart()
			}
			n.want(n.Checkpoint(ctx, id, uid2, volume.CheckpointOptions{}), volume.ErrCheckpointOpen)
			n.want(n.Commit(ctx, id, uid2), volume.ErrNoCheckpoint)
			if s := n.status(id); s.Open == nil || s.Open.UID != uid1 || s.Open.Free == 0 || s.Last == nil || s.Last.Outcome != volume.Open || s.Rollback != nil {
				t.Fatalf("%+v", s)
			}
			n.write(file, strings.Repeat("new", 100_000))
			n.write(filepath.Join(at, "g"), "new")
			for range 2 {
				n.must(n.Rollback(ctx, id, uid1))
				perhapsRestart()
			}
			n.want(n.Commit(ctx, id, uid1), volume.ErrRollbackPending)
			successor := n.options(id, "b")
			n.want(n.Publish(ctx, successor), volume.ErrRollbackPending)
			if s := n.status(id); s.Rollback == nil || len(s.Rollback.WaitingFor) != 1 || s.Rollback.WaitingFor[0] != at {
				t.Fatalf("%+v", s)
			}
			n.wantFile(file, strings.Repeat("new", 100_000)) // the pod goes on
			n.must(n.Unpublish(ctx, id, at))
			perhapsRestart()
			n.must(n.Publish(ctx, successor))
			n.wantFile(filepath.Join(successor.TargetPath, "f"), strings.Repeat("old", 100_000))
			if _, err := os.Stat(filepath.Join(successor.TargetPath, "g")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("g: %v", err)
			}
			s := n.status(id)
			if s.Open != nil || s.Rollback != nil || s.Last == nil || s.Last.UID != uid1 || s.Last.Outcome != volume.RolledBack || s.Last.PutBack == 0 || !s.Staged {
				t.Fatalf("%+v %+v", s, s.Last)
			}
			n.must(n.Rollback(ctx, id, uid1)) // done already
			n.want(n.Commit(ctx, id, uid1), volume.ErrNoCheckpoint)

			// And a second one on the same mount.
			n.must(n.Checkpoint(ctx, id, uid2, volume.CheckpointOptions{}))
			n.write(filepath.Join(successor.TargetPath, "f"), "newer")
			for range 2 {
				n.must(n.Commit(ctx, id, uid2))
				perhapsRestart()
			}
			if s := n.status(id); s.Open != nil || s.Last.UID != uid2 || s.Last.Outcome != volume.Committed || s.Last.Reason != "" {
				t.Fatalf("%+v %+v", s, s.Last)
			}
			n.wantFile(filepath.Join(successor.TargetPath, "f"), "newer")
			n.end(id, "b")
			n.must(n.Delete(ctx, id))
		})
	}
}

// TestNobodyThere: all of it on a volume that nobody uses.
func TestNobodyThere(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	n.want(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}), volume.ErrInvalid) // never used
	n.write(filepath.Join(n.start(id, "a"), "f"), "old")
	n.end(id, "a")

	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	if s := n.status(id); s.Attached || s.Open == nil || s.Open.UID == "" {
		t.Fatalf("%+v", s)
	}
	at := n.start(id, "b")
	n.wantFile(filepath.Join(at, "f"), "old")
	n.write(filepath.Join(at, "f"), "new")
	if s := n.status(id); s.Open == nil || s.Open.Free == 0 {
		t.Fatalf("%+v", s)
	}
	n.end(id, "b")
	n.must(n.Rollback(ctx, id, uid1))
	n.eventually("rolled back", func() bool { s := n.status(id); return s.Open == nil && s.Last.Outcome == volume.RolledBack })
	n.wantFile(filepath.Join(n.start(id, "c"), "f"), "old")
	n.end(id, "c")

	n.must(n.Checkpoint(ctx, id, uid2, volume.CheckpointOptions{}))
	n.must(n.Commit(ctx, id, uid2))
	n.must(n.Commit(ctx, id, uid2))
	if s := n.status(id); s.Open != nil || s.Attached || s.Last.Outcome != volume.Committed {
		t.Fatalf("%+v", s)
	}
	// With a checkpoint open it can be deleted.
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.must(n.Delete(ctx, id))
	if _, err := n.Status(ctx, id); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestUnstagedRollback: the kubelet unstages with a rollback due, and stages anew.
func TestUnstagedRollback(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	file := filepath.Join(n.start(id, "a"), "f")
	n.write(file, "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(file, "new")
	n.must(n.Rollback(ctx, id, uid1))
	n.end(id, "a")
	n.wantFile(filepath.Join(n.start(id, "b"), "f"), "old")
	n.end(id, "b")
	n.must(n.Delete(ctx, id))
}

// TestHeldOpen: a mount in another name space, as of a container that has not
// ended, keeps the rollback waiting.
func TestHeldOpen(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.must(n.Rollback(ctx, id, uid1))
	// A detached copy of the mount is as good as one elsewhere.
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	n.must(err)
	n.must(n.Unpublish(ctx, id, at))
	time.Sleep(time.Second)
	if s := n.status(id); s.Rollback == nil || s.Rollback.Running || s.Open == nil {
		t.Errorf("%+v", s)
	}
	n.must(unix.Close(fd))
	n.eventually("rolled back", func() bool { return n.status(id).Rollback == nil })
	o := n.options(id, "b")
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "old")
	n.end(id, "b")
}

func TestFreeze(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	a, b := n.create("a", 64*mib), n.create("b", 64*mib)
	for _, id := range []string{a, b} {
		n.write(filepath.Join(n.start(id, "p"), "f"), "old")
	}
	writes := func(id string) chan struct{} {
		done := make(chan struct{})
		go func() {
			n.write(filepath.Join(n.options(id, "p").TargetPath, "f"), "new")
			close(done)
		}()
		return done
	}
	blocked := func(done chan struct{}) bool {
		select {
		case <-done:
			return false
		case <-time.After(200 * time.Millisecond):
			return true
		}
	}
	n.must(n.Prepare(ctx, a, uid1))
	n.must(n.Prepare(ctx, a, uid1))
	n.must(n.Prepare(ctx, b, uid1)) // of a group that came to nothing
	n.want(n.Prepare(ctx, n.create("c", 64*mib), uid1), volume.ErrInvalid)
	n.must(n.Freeze(ctx, a, uid1, 5*time.Second))
	n.must(n.Freeze(ctx, a, uid1, 5*time.Second))
	n.must(n.Freeze(ctx, b, uid2, 5*time.Second))
	wa, wb := writes(a), writes(b)
	if !blocked(wa) || !blocked(wb) {
		t.Error("not frozen")
	}
	n.must(n.CheckpointFrozen(ctx, a, uid1, volume.CheckpointOptions{}))
	n.must(n.CheckpointFrozen(ctx, a, uid1, volume.CheckpointOptions{}))
	<-wa
	n.must(n.Thaw(ctx, b)) // given up
	<-wb
	n.want(n.CheckpointFrozen(ctx, b, uid2, volume.CheckpointOptions{}), volume.ErrNotFrozen)
	n.must(n.Rollback(ctx, a, uid1))
	n.end(a, "p")
	n.wantFile(filepath.Join(n.start(a, "p"), "f"), "old")
	n.wantFile(filepath.Join(n.options(b, "p").TargetPath, "f"), "new")

	// Nobody comes back: thawed after the hold.
	n.must(n.Freeze(ctx, b, uid2, 300*time.Millisecond))
	<-writes(b)
	n.want(n.CheckpointFrozen(ctx, b, uid2, volume.CheckpointOptions{}), volume.ErrNotFrozen)
	// The Manager ends: thawed.
	n.must(n.Freeze(ctx, b, uid2, 9*time.Second))
	n.restartManager()
	<-writes(b)
	// What was not frozen here stays as it is.
	at := n.options(b, "p").TargetPath
	n.must(filesystem.Freeze(at))
	n.restartManager()
	if w := writes(b); !blocked(w) {
		t.Error("thawed what was not ours")
	} else {
		n.must(filesystem.Thaw(at))
		<-w
	}
	n.end(a, "p")
	n.end(b, "p")
}

// TestNeverOver: what is on a volume is never made a file system over.
func TestNeverOver(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	v, err := n.pool.Get(id)
	n.must(err)
	scribble := func() {
		f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
		n.must(err)
		_, err = f.WriteAt([]byte("what an interrupted mkfs leaves"), 2048)
		n.must(errors.Join(err, f.Close()))
	}
	scribble()
	at := n.start(id, "a") // never used: rubbish of ours
	n.write(filepath.Join(at, "f"), "x")
	n.end(id, "a")
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	n.must(err)
	_, err = f.WriteAt(make([]byte, mib), 0)
	n.must(errors.Join(err, f.Close()))
	n.want(n.Stage(ctx, n.options(id, "a").StageOptions), volume.ErrDamaged)
	scribble()
	n.want(n.Stage(ctx, n.options(id, "a").StageOptions), volume.ErrDamaged)
	n.must(n.Unstage(ctx, id, n.options(id, "a").StagingPath))

	// A static volume: empty is fine, anything else is not ours.
	image := n.path("images", "disk")
	n.must(os.WriteFile(image, nil, 0o600))
	n.must(os.Truncate(image, 32*mib))
	static := n.options("a static one: ../x", "a")
	static.StagingPath, static.TargetPath = n.path("plugin", "s"), n.path("pods", "s")
	static.Device = image
	n.must(n.Stage(ctx, static.StageOptions))
	n.must(n.Publish(ctx, static))
	n.write(filepath.Join(static.TargetPath, "f"), "x")
	second := n.options("another", "a")
	second.Device = image
	n.want(n.Stage(ctx, second.StageOptions), volume.ErrInUse)
	n.must(n.Checkpoint(ctx, static.ID, uid1, volume.CheckpointOptions{}))
	n.must(n.Commit(ctx, static.ID, uid1))
	n.must(n.Unpublish(ctx, static.ID, static.TargetPath))
	n.must(n.Unstage(ctx, static.ID, static.StagingPath))
	n.must(os.WriteFile(image, []byte(strings.Repeat("somebody's", mib)), 0o600))
	n.want(n.Stage(ctx, static.StageOptions), volume.ErrDamaged)
	if b, err := os.ReadFile(image); err != nil || !strings.HasPrefix(string(b), "somebody's") {
		t.Error("changed")
	}
	n.must(n.Unstage(ctx, static.ID, static.StagingPath))
}

func TestExpandAndClone(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 320*mib)
	o := n.options(id, "a")
	o.FSType = filesystem.XFS
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.write(filepath.Join(o.TargetPath, "f"), "x")
	before, err := n.Stats(ctx, id, o.TargetPath)
	n.must(err)
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	_, err = n.Expand(ctx, volume.Ref{ID: id}, 640*mib)
	n.want(err, volume.ErrCheckpointOpen)
	_, err = n.Clone(ctx, id, pool.CreateOptions{Name: "clone", Size: 320 * mib})
	n.want(err, volume.ErrCheckpointOpen)
	n.must(n.Commit(ctx, id, uid1))
	for range 2 {
		if size, err := n.Expand(ctx, volume.Ref{ID: id}, 640*mib); err != nil || size != 640*mib {
			t.Fatalf("%d, %v", size, err)
		}
	}
	after, err := n.Stats(ctx, id, o.TargetPath)
	n.must(err)
	if after.Total < before.Total*3/2 {
		t.Errorf("%+v, then %+v", before, after)
	}
	_, err = n.Expand(ctx, volume.Ref{ID: id}, 1<<60)
	n.want(err, pool.ErrFull)

	n.must(n.Unpublish(ctx, id, o.TargetPath))
	n.must(n.Unstage(ctx, id, o.StagingPath))
	clone, err := n.Clone(ctx, id, pool.CreateOptions{Name: "clone", Size: 1280 * mib})
	n.must(err)
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	at := n.start(clone.ID, "b")
	n.wantFile(filepath.Join(at, "f"), "x") // both mounted, with one UUID
	if u, err := n.Stats(ctx, clone.ID, at); err != nil || u.Total < after.Total*3/2 {
		t.Errorf("a clone twice as large: %+v, %v; its source: %+v", u, err, after)
	}
	n.end(clone.ID, "b")
	n.end(id, "a")
}

// TestEngineKilled: an engine that is killed, with no successor, costs its users
// I/O errors; when their pods come back everything is well.
func TestEngineKilled(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.killEngine()
	if _, err := n.Status(ctx, id); !errors.Is(err, volume.ErrEngineDown) {
		t.Errorf("%v", err)
	}
	n.startEngine()
	n.eventually("the engine is back", func() bool { _, err := n.Status(ctx, id); return err == nil })
	if s := n.status(id); !s.Dead || s.Open == nil || s.Open.UID == "" {
		t.Fatalf("%+v", s)
	}
	if h, err := n.Health(ctx, id); err != nil || !h.Abnormal || h.Reason != volume.HealthEngineLost {
		t.Errorf("%+v, %v", h, err)
	}
	// The pod is replaced, without unstaging.
	n.must(n.Unpublish(ctx, id, at))
	o := n.options(id, "b")
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "new")
	if s := n.status(id); s.Dead || s.Open == nil || s.Open.UID != uid1 {
		t.Fatalf("%+v", s)
	}
	n.must(n.Rollback(ctx, id, uid1))
	n.killEngine() // with a rollback noted on the volume
	n.startEngine()
	n.must(n.Unpublish(ctx, id, o.TargetPath))
	n.eventually("rolled back", func() bool {
		err := n.Publish(ctx, o)
		return err == nil
	})
	n.wantFile(filepath.Join(o.TargetPath, "f"), "old")
	n.end(id, "b")
	n.must(n.Delete(ctx, id))
}

func TestBadInput(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 16*mib)
	o := n.options(id, "a")
	bad := o
	bad.StagingPath = "relative"
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	bad = o
	bad.FSType = "btrfs"
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	bad = o
	bad.ID = ""
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	bad.ID = "../../etc"
	n.want(n.Stage(ctx, bad.StageOptions), pool.ErrNotFound)
	bad.ID = strings.Repeat("x", 300)
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	bad = o
	bad.StagingPath = n.path("file")
	n.must(os.WriteFile(bad.StagingPath, []byte("x"), 0o600))
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	bad = o
	bad.TargetPath = n.path("file")
	n.want(n.Publish(ctx, bad), volume.ErrInvalid)
	n.want(n.Unpublish(ctx, id, bad.TargetPath), volume.ErrInvalid)
	n.wantFile(bad.TargetPath, "x")
	bad = o
	bad.Device = n.dir
	bad.ID = "dir"
	n.want(n.Stage(ctx, bad.StageOptions), volume.ErrInvalid)
	n.want(n.Commit(ctx, id, ""), volume.ErrInvalid)
	n.must(n.Unstage(ctx, id, o.StagingPath))
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := n.Stage(ctx, o.StageOptions); err == nil {
		t.Error("staged with a context that has ended")
	}
}

// TestInterruptedExpansion: the image has grown and nothing else. A checkpoint is of
// the whole of it, or a crash would leave one of another size than the image.
func TestInterruptedExpansion(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("pvc-1", 64*mib)
	at := n.start(id, "a")
	n.write(filepath.Join(at, "f"), "old")
	_, err := n.pool.Grow(ctx, id, 128*mib)
	n.must(err)
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	n.write(filepath.Join(at, "f"), "new")
	n.killEngine()
	n.startEngine()
	n.eventually("the engine is back", func() bool { _, err := n.Status(ctx, id); return err == nil })
	n.must(n.Unpublish(ctx, id, at))
	o := n.options(id, "b")
	n.must(n.Publish(ctx, o))
	n.wantFile(filepath.Join(o.TargetPath, "f"), "new")
	n.must(n.Rollback(ctx, id, uid1))
	n.end(id, "b")
	n.wantFile(filepath.Join(n.start(id, "c"), "f"), "old")
	n.end(id, "c")
}

// TestIncompatible: what is asked for does not go with how the volume is used.
func TestIncompatible(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("fs", 64*mib)
	o, here := n.options(id, "a"), n.options(id, "a")
	n.start(id, "a")
	here.ReadOnly = true
	n.want(n.Publish(ctx, here), volume.ErrIncompatible)
	n.must(n.Publish(ctx, o))
	here = o
	here.FSType = filesystem.XFS
	n.want(n.Stage(ctx, here.StageOptions), volume.ErrIncompatible)
	n.want(n.Publish(ctx, here), volume.ErrIncompatible)
	here = o
	here.Block = true
	n.want(n.Stage(ctx, here.StageOptions), volume.ErrIncompatible)
	n.want(n.Publish(ctx, here), volume.ErrIncompatible)
	elsewhere := n.options(id, "b")
	elsewhere.Block, elsewhere.StagingPath = true, n.path("plugin", "other", "globalmount")
	n.want(n.Publish(ctx, elsewhere), volume.ErrInUse)
	n.end(id, "a")

	raw := n.create("raw", 64*mib)
	o = n.options(raw, "a")
	o.Block = true
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	here = o
	here.Block = false
	n.want(n.Publish(ctx, here), volume.ErrIncompatible)
	here.TargetPath = n.options(raw, "b").TargetPath
	n.want(n.Publish(ctx, here), volume.ErrInUse)
	n.want(n.Stage(ctx, here.StageOptions), volume.ErrInUse)
	n.end(raw, "a")
}

// TestPoolAway: with the disk of the pool away nothing is said of its volumes, and
// pods that have them get rid of them.
func TestPoolAway(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	used, idle := n.create("used", 64*mib), n.create("idle", 64*mib)
	n.write(filepath.Join(n.start(used, "a"), "f"), "content")
	dir, away := filepath.Join(n.dir, "pool"), filepath.Join(n.dir, "away")
	n.must(os.Rename(dir, away))
	n.must(os.Mkdir(dir, 0o700)) // what is below the disk

	o := n.options(idle, "b")
	n.want(n.Stage(ctx, o.StageOptions), pool.ErrUnavailable)
	n.want(n.Publish(ctx, o), pool.ErrUnavailable)
	n.want(n.Delete(ctx, idle), pool.ErrUnavailable)
	n.want(n.Delete(ctx, used), pool.ErrUnavailable)
	_, err := n.Status(ctx, idle)
	n.want(err, pool.ErrUnavailable)
	_, err = n.Expand(ctx, volume.Ref{ID: idle}, 128*mib)
	n.want(err, pool.ErrUnavailable)
	n.end(used, "a")

	n.must(os.Remove(dir))
	n.must(os.Rename(away, dir))
	n.wantFile(filepath.Join(n.start(used, "a"), "f"), "content")
	n.end(used, "a")
	n.must(n.Delete(ctx, idle))
}
