package daemon_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// emptyImage makes an image of 16 MiB.
func emptyImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantNoDevice fails if the loop device of a volume is still there.
func wantNoDevice(t *testing.T, name string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == "/bowline:"+name {
			t.Errorf("%s is left", f)
		}
	}
}

// TestKilledWhileSteered kills the server while it attaches, opens a checkpoint,
// asks for a rollback, grows, commits and detaches. Whoever tries again gets what he
// wanted, and nothing is left.
func TestKilledWhileSteered(t *testing.T) {
	e := start(t)
	ctx, path := t.Context(), emptyImage(t)
	name := fmt.Sprintf("steered-%d", os.Getpid())
	// again calls f until it succeeds, or has failed for want of anything but a
	// server.
	again := func(what string, f func() error) error {
		t.Helper()
		var err error
		e.wait(func() error {
			if err = f(); status.Code(err) == codes.Unavailable {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
		return err
	}
	must := func(what string, f func() error) {
		t.Helper()
		if err := again(what, f); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := range 4 * kills(t) {
		time.AfterFunc(time.Duration(rand.Int64N(int64(40*time.Millisecond))), func() {
			if pid := e.server(); pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		})
		size := int64(16+i) << 20
		must("attach", func() error {
			_, err := e.Attach(ctx, &enginepb.AttachRequest{Name: name, Path: path})
			return err
		})
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		must("grow", func() error {
			v, err := e.Grow(ctx, &enginepb.GrowRequest{Name: name})
			if err == nil && v.Size != size {
				return fmt.Errorf("size %d, want %d", v.Size, size)
			}
			return err
		})
		// A checkpoint takes three calls to one server.
		must("checkpoint", func() error {
			for {
				_, err := e.StartTrim(ctx, &enginepb.StartTrimRequest{Name: name})
				if err == nil {
					_, err = e.MarkFree(ctx, &enginepb.MarkFreeRequest{Name: name, Extents: []*enginepb.Extent{{Offset: 8 << 20, Length: 8 << 20}}})
				}
				if err == nil {
					_, err = e.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: name})
				}
				code := status.Code(err)
				if v, gerr := e.Get(ctx, &enginepb.GetRequest{Name: name}); gerr == nil && v.Open != nil {
					return nil // it was opened, and the answer did not arrive
				}
				if code != codes.FailedPrecondition && code != codes.ResourceExhausted {
					return err
				}
			}
		})
		if i%2 == 0 {
			err := again("commit", func() error {
				_, err := e.Commit(ctx, &enginepb.CommitRequest{Name: name})
				return err
			})
			// Done, but the answer did not arrive.
			if v, gerr := e.Get(ctx, &enginepb.GetRequest{Name: name}); err != nil && (gerr != nil && status.Code(gerr) != codes.Unavailable || v.GetOpen() != nil) {
				t.Fatalf("commit: %v; %v, %v", err, v, gerr)
			}
		} else {
			must("request", func() error {
				_, err := e.RequestRollback(ctx, &enginepb.RequestRollbackRequest{Name: name})
				return err
			})
		}
		must("detach", func() error {
			_, err := e.Detach(ctx, &enginepb.DetachRequest{Name: name})
			return err
		})
		wantNoDevice(t, name)
		if i%2 != 0 {
			must("restore", func() error {
				_, err := engine.Restore(ctx, e, name, path, nil)
				return err
			})
		}
	}
}

// TestKeeperKilled kills both processes. Users get errors then, and the next engine
// removes what is left.
func TestKeeperKilled(t *testing.T) {
	e := start(t)
	path := emptyImage(t)
	name := fmt.Sprintf("orphan-%d", os.Getpid())
	v, err := e.Attach(t.Context(), &enginepb.AttachRequest{Name: name, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(v.Device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	server := e.server()
	if err := errors.Join(e.keeper.Process.Kill(), unix.Kill(server, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	<-e.ended
	e.ended <- nil // which is as it should be
	buf := make([]byte, 8192)
	e.wait(func() error {
		if _, err := unix.Pread(fd, buf[:4096], 0); err == nil {
			return errors.New("requests are still answered")
		}
		return nil
	})
	next := start(t)
	_, err = next.Attach(t.Context(), &enginepb.AttachRequest{Name: name, Path: path})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("attached although the old device is open: %v", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	if _, err = next.Attach(t.Context(), &enginepb.AttachRequest{Name: name, Path: path}); err != nil {
		t.Error(err)
	}
	if _, err = next.Detach(t.Context(), &enginepb.DetachRequest{Name: name}); err != nil {
		t.Error(err)
	}
	wantNoDevice(t, name)
}

// TestEnd asks an engine to end whose volume is in use, and kills its server while
// it waits for that.
func TestEnd(t *testing.T) {
	e := start(t)
	path := emptyImage(t)
	name := fmt.Sprintf("end-%d", os.Getpid())
	v, err := e.Attach(t.Context(), &enginepb.AttachRequest{Name: name, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(v.Device, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.keeper.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e.wait(func() error {
			_, err := e.Attach(t.Context(), &enginepb.AttachRequest{Name: name + "x", Path: path})
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "about to end") {
				return fmt.Errorf("attaching at the end: %w", err)
			}
			return nil
		})
		if v, err := e.Attach(t.Context(), &enginepb.AttachRequest{Name: name, Path: path}); err != nil || v.Device == "" {
			t.Errorf("what is attached: %v, %v", v, err)
		}
		e.kill(name)
	}
	if err := unix.Fsync(fd); err != nil {
		t.Error(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	select {
	case err := <-e.ended:
		if err != nil {
			t.Error(err)
		}
		e.ended <- nil
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
	wantNoDevice(t, name)
}

// TestSecond starts an engine at the socket of another one.
func TestSecond(t *testing.T) {
	e := start(t)
	if err := run([]string{superviseArg, e.socket}); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("two engines: %v", err)
	}
}

// TestKilledWithMany kills a server of many volumes.
func TestKilledWithMany(t *testing.T) {
	e := start(t)
	const n = 20
	name := func(i int) string { return fmt.Sprintf("many-%d-%d", os.Getpid(), i) }
	for i := range n {
		if _, err := e.Attach(t.Context(), &enginepb.AttachRequest{Name: name(i), Path: emptyImage(t)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		began := time.Now()
		e.kill(name(0))
		t.Logf("taken over after %s", time.Since(began))
		list, err := e.List(t.Context(), &enginepb.ListRequest{})
		if err != nil || len(list.Volumes) != n {
			t.Errorf("%d volumes, %v", len(list.GetVolumes()), err)
		}
	}
	for i := range n {
		if _, err := e.Detach(t.Context(), &enginepb.DetachRequest{Name: name(i)}); err != nil {
			t.Error(err)
		}
	}
}
