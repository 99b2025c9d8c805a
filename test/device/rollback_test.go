package device

import (
	"fmt"
	"testing"
	"time"
)

// Exit codes of the program, see `bowline device --help`.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitState   = 3
	exitNoLog   = 4
	exitDamaged = 5
)

// Checkpoint under load, wreck everything, roll back: every byte is as it was at
// that instant. Then the same with a commit.
func TestRollBackAndCommit(t *testing.T) {
	for _, k := range briefly(kinds) {
		t.Run(k.name, func(t *testing.T) {
			t.Run("made before", func(t *testing.T) {
				// The block size comes out of the superblock.
				v := newHost(t).newImage("image", k.size)
				k.make(t, v.path)
				v.attach()
				testRollBackAndCommit(t, k, v)
			})
			t.Run("made on the mapped device", func(t *testing.T) {
				v := newHost(t).newImage("image", k.size)
				if k.blockSize == 4096 {
					v.attach()
				} else {
					v.attach("--block-size", fmt.Sprint(k.blockSize))
				}
				k.make(t, v.device)
				testRollBackAndCommit(t, k, v, "discard")
			})
		})
	}
}

func testRollBackAndCommit(t *testing.T, k kind, v *volume, options ...string) {
	r := newRand(t)
	if s := v.status(); s.BlockSize != int64(k.blockSize) || s.Size != k.size || s.State != "trim" {
		t.Errorf("attached as %+v; want blocks of %d bytes", s, k.blockSize)
	}
	v.mount(options...)
	plant(t, r, v.in("still"), 12*mib)
	want := readTree(t, v.in("still"))

	l := startLoad(t, v.in("load"))
	from := l.before()
	v.must("checkpoint", v.mountpoint)
	to := l.after()
	opened := v.status()
	if opened.State != "checkpoint" || opened.Checkpoint == "" || opened.Free < v.status().Size/4 {
		t.Errorf("after the checkpoint: %+v", opened)
	}
	wreck(t, r, v.in("still"), 12*mib)
	if k.isExt4() {
		tool(t, "fstrim", v.mountpoint)
	}
	wreck(t, r, v.in("still", "new"), 5*mib)
	time.Sleep(200 * time.Millisecond)
	l.halt(t)
	v.checkStatus()

	v.umount()
	if said := v.detach(); said == "" {
		t.Error("detach says nothing of the checkpoint")
	}
	v.resume(opened.Checkpoint)
	wreck(t, r, v.in("still", "new"), 2*mib)
	v.umount()
	v.detach()
	v.restoreDetached(k)
	readTree(t, v.in("still")).mustEqual(t, want, "after the rollback")
	checkLoad(t, v.in("load"), from, to)

	v.must("checkpoint", v.mountpoint)
	wreck(t, r, v.in("still"), 12*mib)
	want = readTree(t, v.in("still"))
	v.must("commit", v.mountpoint)
	readTree(t, v.in("still")).mustEqual(t, want, "after the commit")
	if s := v.status(); s.State != "committed" {
		t.Errorf("after the commit: state %s", s.State)
	}
	v.finish(k)
	v.exits(exitNoLog, "restore", v.path)
	v.attach()
	v.mount()
	readTree(t, v.in("still")).mustEqual(t, want, "after the commit and another attach")
	v.finish(k)
}

// resume attaches and mounts a volume that has a checkpoint, which goes on.
func (v *volume) resume(checkpoint string) {
	v.t.Helper()
	v.attach()
	if s := v.status(); s.State != "checkpoint" || s.Checkpoint != checkpoint {
		v.t.Errorf("attached with a checkpoint open: %+v; want %s to go on", s, checkpoint)
	}
	v.mount()
	free := v.status().Free
	v.must("trim", v.mountpoint)
	if found := v.status().Free; found < free || found < v.status().Size/8 {
		v.t.Errorf("free after trim: %d bytes, before %d", found, free)
	}
}

// checkStatus compares the numbers of an open checkpoint with each other.
func (v *volume) checkStatus() {
	v.t.Helper()
	s := v.status()
	switch {
	case s.Changed < s.BackedUp || s.BackedUp == 0 || s.BackupUsed == 0 || s.LogWrites == 0:
		v.t.Errorf("the numbers make no sense: %+v", s)
	case s.Free+s.BackupUsed+s.Changed > s.Size:
		v.t.Errorf("more than the device has: %+v", s)
	case s.OutOfSpace != 0 || s.LogUnsettled:
		v.t.Errorf("something went wrong: %+v", s)
	}
}
