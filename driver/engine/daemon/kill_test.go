package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"golang.org/x/sys/unix"
)

// kills is how often the server is killed in each state, $BOWLINE_TEST_KILLS or
// few.
func kills(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("BOWLINE_TEST_KILLS"))
	if err != nil {
		n = 5
	}
	return n
}

// mounted is a file system on a volume of an engine.
type mounted struct {
	*testEngine
	image, device, dir string
}

// mount attaches an image, makes a file system of the given kind on it and mounts
// that. At the end it is unmounted, detached and checked.
func mount(t *testing.T, kind string) *mounted {
	t.Helper()
	m := mountOn(t, kind, sparse(t, t.TempDir(), 512<<20))
	if !m.get().SurvivesRestart {
		t.Skip("this kernel cannot send requests again")
	}
	return m
}

// mountOn is mount with an image, or a device, that is there.
func mountOn(t *testing.T, kind, image string) *mounted {
	t.Helper()
	return start(t).mount(kind, image)
}

// mount attaches an image, makes a file system of the given kind on it and mounts
// that. At the end it is unmounted and detached.
func (e *testEngine) mount(kind, image string) *mounted {
	t := e.t
	t.Helper()
	m := &mounted{testEngine: e, image: image, dir: t.TempDir()}
	m.attach()
	t.Cleanup(m.remove)
	mustRun(t, "mkfs."+kind, "-q", m.device)
	mustRun(t, "mount", m.device, m.dir)
	return m
}

// attach attaches the volume.
func (m *mounted) attach() {
	m.t.Helper()
	v, err := m.Attach(m.t.Context(), &enginepb.AttachRequest{Name: m.name(), Path: m.image})
	if err != nil {
		m.t.Fatal(err)
	}
	m.device = v.Device
}

// name is the name of the volume, unique on the machine.
func (m *mounted) name() string { return "kill-" + strconv.Itoa(os.Getpid()) }

func (m *mounted) remove() {
	ctx := context.Background()
	if m.dir != "" {
		if err := unix.Unmount(m.dir, 0); err != nil {
			m.t.Errorf("unmount: %v", err)
			_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		}
		m.dir = ""
	}
	if _, err := m.Detach(ctx, &enginepb.DetachRequest{Name: m.name()}); err != nil {
		m.t.Error(err)
	}
}

// findFree reports what the file system says is free.
func (m *mounted) findFree() {
	m.t.Helper()
	v := engine.Volume{Client: m.EngineClient, Name: m.name()}
	err := filesystem.FreeSpace(m.t.Context(), m.dir, func(off, length int64) error {
		return v.MarkFree(m.t.Context(), []blockdev.Extent{{Offset: off, Length: length}})
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// checkpoint opens a checkpoint at an instant in which the file system is frozen.
func (m *mounted) checkpoint() {
	m.t.Helper()
	v := engine.Volume{Client: m.EngineClient, Name: m.name()}
	if err := v.StartTrim(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	m.findFree()
	if err := filesystem.Freeze(m.dir); err != nil {
		m.t.Fatal(err)
	}
	err := v.Checkpoint(m.t.Context())
	if err := errors.Join(err, filesystem.Thaw(m.dir)); err != nil {
		m.t.Fatal(err)
	}
}

// killOften kills the server at random moments, and lets get on with it in between
// who uses the volume.
func (m *mounted) killOften(t *testing.T, want enginepb.State) {
	t.Helper()
	for i := range kills(t) {
		time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
		v := m.kill(m.name())
		if v.State != want || v.Device != m.device {
			t.Errorf("kill %d: %v", i, v)
		}
		// The successor knows all that was known.
		if v.Open.GetStale() != 0 || want == enginepb.State_CHECKPOINT && v.Free < 64<<20 {
			t.Errorf("kill %d: free space is forgotten: %v", i, v)
		}
		if t.Failed() {
			return
		}
	}
}

// TestKilledUnderLoad kills the server in every state while a file system is
// written. Nobody gets an error, everything that was written is there, and a
// rollback gives the content of the checkpoint.
func TestKilledUnderLoad(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := mount(t, kind)
			before := bytes.Repeat([]byte("before "), 100_000)
			path := filepath.Join(m.dir, "kept")
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := syncFile(path); err != nil {
				t.Fatal(err)
			}
			work := filepath.Join(m.dir, "work")
			if err := os.Mkdir(work, 0o700); err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, work)
			ended := false
			defer func() {
				if !ended {
					l.end()
				}
			}()

			m.killOften(t, enginepb.State_COMMITTED)
			m.checkpoint()
			m.killOften(t, enginepb.State_CHECKPOINT)
			if _, err := m.Commit(t.Context(), &enginepb.CommitRequest{Name: m.name()}); err != nil {
				t.Fatal(err)
			}
			m.killOften(t, enginepb.State_COMMITTED)

			m.checkpoint()
			if err := os.WriteFile(path, []byte("after"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := m.RequestRollback(t.Context(), &enginepb.RequestRollbackRequest{Name: m.name()}); err != nil {
				t.Fatal(err)
			}
			m.killOften(t, enginepb.State_CHECKPOINT)
			ended = true
			l.end()
			dir := m.dir
			m.remove()
			if _, err := m.Attach(t.Context(), &enginepb.AttachRequest{Name: m.name(), Path: m.image}); err == nil {
				t.Error("attached although a rollback was asked for")
			}
			r, err := engine.Restore(t.Context(), m, m.name(), m.image, nil)
			if err != nil || r.Outcome != enginepb.RestoreResult_RESTORED {
				t.Fatalf("%v, %v", r, err)
			}
			m.attach()
			// The journal is replayed first: the file system was frozen, not
			// unmounted, at the checkpoint.
			mustRun(t, "mount", m.device, dir)
			m.dir = dir
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, before) {
				t.Errorf("the content is not that of the checkpoint: %d bytes, %v", len(got), err)
			}
			m.remove()
			check(t, kind, m.image)
		})
	}
}

// check looks for damage in a file system.
func check(t *testing.T, kind, image string) {
	t.Helper()
	if kind == "ext4" {
		mustRun(t, "e2fsck", "-fn", image)
		return
	}
	mustRun(t, "xfs_repair", "-n", "-f", image)
}

// TestKilledUnderFio is the same with a load that is not ours, on the bare device.
func TestKilledUnderFio(t *testing.T) {
	m := mount(t, "ext4")
	file := filepath.Join(m.dir, "fio")
	fio := exec.Command("fio", "--name=verify", "--filename="+file, "--size=64m", "--direct=1", "--ioengine=libaio",
		"--iodepth=16", "--rw=randwrite", "--bsrange=4k-512k", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
		"--time_based", "--runtime="+fmt.Sprint(2+kills(t)/4), "--verify_backlog=256", "--output-format=terse")
	var out bytes.Buffer
	fio.Dir = t.TempDir() // for the state of its verification
	fio.Stdout, fio.Stderr = &out, &out
	if err := fio.Start(); err != nil {
		t.Skipf("needs fio: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- fio.Wait() }()
	m.checkpoint()
	n := 0
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("fio: %v\n%s", err, out.Bytes())
			}
			t.Logf("killed %d times", n)
			return
		case <-time.After(time.Duration(rand.Int64N(int64(200 * time.Millisecond)))):
			m.kill(m.name())
			n++
		}
	}
}
