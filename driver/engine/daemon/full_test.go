package daemon_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
)

// host is a small file system with a thin image on it that does not fit.
type host struct {
	t       *testing.T
	dir     string
	ballast *os.File
}

const (
	hostSize  = 160 << 20
	thinSize  = 512 << 20
	hostSpare = 3 << 20 // left by fill
)

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE and loop devices")
	}
	h := &host{t: t, dir: t.TempDir()}
	image := sparse(t, t.TempDir(), hostSize)
	mustRun(t, "mkfs.ext4", "-q", "-m", "0", image)
	// Not with the option loop, which looks at all loop devices there are, those of
	// other tests among them that do not answer for a while.
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	defer mustRun(t, "losetup", "--detach", device) // when it is not mounted any more
	mustRun(t, "mount", device, h.dir)
	t.Cleanup(func() {
		if h.ballast != nil {
			_ = h.ballast.Close()
		}
		if err := unix.Unmount(h.dir, 0); err != nil {
			t.Errorf("unmounting the host's file system: %v", err)
			_ = unix.Unmount(h.dir, unix.MNT_DETACH)
		}
	})
	return h
}

// fill takes the space of the host but for a little.
func (h *host) fill() {
	h.t.Helper()
	f, err := os.Create(filepath.Join(h.dir, "ballast"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.ballast = f
	var st unix.Statfs_t
	if err := unix.Statfs(h.dir, &st); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-hostSpare); err != nil {
		h.t.Fatal(err)
	}
}

// makeRoom gives the space back.
func (h *host) makeRoom() {
	h.t.Helper()
	if err := errors.Join(h.ballast.Truncate(0), h.ballast.Close()); err != nil {
		h.t.Fatal(err)
	}
	h.ballast = nil
}

// thin is a volume whose image is on a host.
func (h *host) thin() *mounted {
	h.t.Helper()
	m := &mounted{testEngine: start(h.t), image: sparse(h.t, h.dir, thinSize)}
	m.attach()
	h.t.Cleanup(m.remove)
	if _, err := m.StopTrim(h.t.Context(), &enginepb.StopTrimRequest{Name: m.name()}); err != nil {
		h.t.Fatal(err)
	}
	return m
}

// wantFull fails the test unless the volume tells of the full disk, and has not taken
// it for its own want of space.
func (m *mounted) wantFull(state enginepb.State) {
	m.t.Helper()
	v := m.get()
	if v.State != state || v.Open.GetOutOfSpace() != 0 || v.Ended.GetReason() == enginepb.Ended_OUT_OF_SPACE {
		m.t.Errorf("the full disk is taken for want of space for backups: %v", v)
	}
	if v.Failures.GetCount() == 0 || !strings.Contains(v.Failures.GetLast(), unix.ENOSPC.Error()) {
		m.t.Errorf("the full disk is not told of: %v", v.Failures)
	}
}

// openCheckpoint opens a checkpoint of a volume without a file system, of which the
// second half is free. The policy is the one that a full disk could be mistaken for.
func (m *mounted) openCheckpoint() {
	m.t.Helper()
	v := engine.Volume{Client: m.EngineClient, Name: m.name()}
	err := v.StartTrim(m.t.Context())
	if err == nil {
		err = v.MarkFree(m.t.Context(), []blockdev.Extent{{Offset: thinSize / 2, Length: thinSize / 2}})
	}
	if err == nil {
		_, err = m.Checkpoint(m.t.Context(), &enginepb.CheckpointRequest{Name: m.name(), CommitWhenFull: true})
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// TestHostDiskFull: the disk of the host is full under a thin image. Who writes gets
// ENOSPC, the checkpoint stays although it is to be committed for want of space, and
// what was flushed is there. When there is room, everything goes on.
func TestHostDiskFull(t *testing.T) {
	h := newHost(t)
	m := h.thin()
	l := &ledger{t: t, path: m.device, seed: 1}
	fill := func() {
		t.Helper()
		h.fill()
		// Into what was never written, which takes space.
		wantErrno(t, "writing on a full disk", writeUntil(m.device, ledgerCells*cell, thinSize/2), unix.ENOSPC)
		end := l.generation + 200
		if err := l.write(func() bool { return l.generation >= end }); err != nil {
			wantErrno(t, "overwriting on a full disk", err, unix.ENOSPC)
		}
		l.verify()
	}
	goOn := func() {
		t.Helper()
		h.makeRoom()
		end := l.generation + 200
		if err := l.write(func() bool { return l.generation >= end }); err != nil {
			t.Errorf("writing when there is room: %v", err)
		}
		l.verify()
	}
	end := l.generation + 100
	if err := l.write(func() bool { return l.generation >= end }); err != nil {
		t.Fatal(err)
	}
	fill()
	m.wantFull(enginepb.State_COMMITTED)
	goOn()

	m.openCheckpoint()
	fill()
	m.wantFull(enginepb.State_CHECKPOINT)
	goOn()
	fill()
	if _, err := m.Commit(t.Context(), &enginepb.CommitRequest{Name: m.name()}); err != nil {
		t.Errorf("committing on a full disk: %v", err)
	}
	l.verify()
	goOn()

	before := head(t, m.device)
	m.openCheckpoint()
	fill()
	m.wantFull(enginepb.State_CHECKPOINT)
	if _, err := m.RequestRollback(t.Context(), &enginepb.RequestRollbackRequest{Name: m.name()}); err != nil {
		t.Fatalf("asking for a rollback on a full disk: %v", err)
	}
	m.remove()
	r, err := engine.Restore(t.Context(), m, m.name(), m.image, nil)
	if err != nil {
		// What was not there before it was to be overwritten, and not after that
		// failed, takes space when it is put back.
		if !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
			t.Errorf("rolling back on a full disk: %v", err)
		}
		h.makeRoom()
		if r, err = engine.Restore(t.Context(), m, m.name(), m.image, nil); err != nil {
			t.Fatal(err)
		}
	}
	if r.Outcome != enginepb.RestoreResult_RESTORED {
		t.Errorf("%v", r)
	}
	m.attach()
	if !bytes.Equal(head(t, m.device), before) {
		t.Error("the content is not that of the checkpoint")
	}
}

// writeUntil writes to a device from off to end, one megabyte after the other, and
// flushes, until that fails.
func writeUntil(path string, off, end int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p := noise(3, 1<<20)
	for ; off < end; off += int64(len(p)) {
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// head is the first half of a volume without a file system, as the device has it.
func head(t *testing.T, device string) []byte {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := blockdev.Buffer(thinSize / 2)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestHostDiskFullUnderFilesystem: the same below ext4 and XFS. What they have
// flushed is there. They may have to be mounted anew.
func TestHostDiskFullUnderFilesystem(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t)
			m := h.thin()
			mustRun(t, "mkfs."+kind, "-q", m.device)
			dir := t.TempDir()
			mustRun(t, "mount", m.device, dir)
			m.dir = dir
			l := &ledger{t: t, path: filepath.Join(m.dir, "ledger"), seed: 1}
			end := l.generation + 100
			if err := l.write(func() bool { return l.generation >= end }); err != nil {
				t.Fatal(err)
			}
			kept := m.kept([]*ledger{l})
			for _, state := range []enginepb.State{enginepb.State_COMMITTED, enginepb.State_CHECKPOINT} {
				if state == enginepb.State_CHECKPOINT {
					kept = m.kept([]*ledger{l})
					m.checkpoint()
				}
				h.fill()
				wantErrno(t, "writing on a full disk", writeFiles(m.dir, hostSize>>20), unix.ENOSPC, unix.EIO, unix.EROFS)
				end := l.generation + 200
				if err := l.write(func() bool { return l.generation >= end }); err != nil {
					wantErrno(t, "overwriting on a full disk", err, unix.ENOSPC, unix.EIO, unix.EROFS)
				}
				m.wantFull(state)
				h.makeRoom()
				m.remount()
				l.verify()
				end = l.generation + 100
				if err := l.write(func() bool { return l.generation >= end }); err != nil {
					t.Errorf("writing when there is room: %v", err)
				}
				l.verify()
			}
			m.rollBack()
			for path, want := range kept {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s is not what it was at the checkpoint: %v", path, err)
				}
			}
			m.remove()
			check(t, kind, m.image)
		})
	}
}

// writeFiles makes n files of a megabyte through the page cache, each of which is
// flushed, until that fails.
func writeFiles(dir string, n int) error {
	for i := range n {
		path := filepath.Join(dir, "big"+strconv.Itoa(i))
		if err := errors.Join(os.WriteFile(path, noise(uint64(i), 1<<20), 0o600), syncFile(path)); err != nil {
			return err
		}
	}
	return nil
}
