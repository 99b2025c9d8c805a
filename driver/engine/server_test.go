package engine_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// startEngine runs an engine behind a socket, and returns a client of it. At the
// end nothing of it may be left.
func startEngine(t *testing.T) enginepb.EngineClient {
	t.Helper()
	return startServer(t, engine.NewServer())
}

// startServer is startEngine with a server that is made already.
func startServer(t *testing.T, s *engine.Server) enginepb.EngineClient {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE and loop devices")
	}
	socket := filepath.Join(t.TempDir(), "engine.sock")
	l, err := engine.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(engine.LogCalls(slog.New(slog.NewTextHandler(io.Discard, nil)))...)
	s.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	client, conn, err := engine.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		conn.Close()
		g.GracefulStop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return client
}

// image makes an empty image of 16 MiB.
func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %v, want %v: %v", got, want, err)
	}
}

func TestLifeOfAVolume(t *testing.T) {
	c, ctx, path := startEngine(t), t.Context(), image(t)
	must := func(v *enginepb.Volume, err error) *enginepb.Volume {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := must(c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path}))
	if v.BlockSize != 4096 || v.Size != 16<<20 || v.State != enginepb.State_TRIM || v.Open != nil {
		t.Errorf("%v", v)
	}
	if again := must(c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path})); again.Device != v.Device {
		t.Errorf("attached twice: %s and %s", v.Device, again.Device)
	}
	_, err := c.Commit(ctx, &enginepb.CommitRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a"})
	wantCode(t, err, codes.ResourceExhausted)

	must(c.StartTrim(ctx, &enginepb.StartTrimRequest{Name: "a"}))
	must(c.MarkFree(ctx, &enginepb.MarkFreeRequest{Name: "a", Extents: []*enginepb.Extent{{Offset: 8 << 20, Length: 8 << 20}}}))
	v = must(c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a"}))
	if v.State != enginepb.State_CHECKPOINT || v.Open.GetId() == "" {
		t.Errorf("%v", v)
	}
	dev, err := blockdev.Open(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt(blockdev.Buffer(8192), 4096); err != nil {
		t.Error(err)
	}
	// The mapped device is open.
	_, err = c.Detach(ctx, &enginepb.DetachRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	v = must(c.Get(ctx, &enginepb.GetRequest{Name: "a"}))
	if kept := v.Open.GetBackedUp(); kept < 8192 { // with what is next to it
		t.Errorf("%v", v)
	}

	// Detached and attached again, it carries on.
	for range 2 { // a volume that is not attached is no error
		if _, err := c.Detach(ctx, &enginepb.DetachRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	again := must(c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path}))
	if again.Open.GetId() != v.Open.Id || again.Open.GetBackedUp() != v.Open.BackedUp {
		t.Errorf("%v", again)
	}
	if v := must(c.Commit(ctx, &enginepb.CommitRequest{Name: "a"})); v.State != enginepb.State_COMMITTED || v.Open != nil {
		t.Errorf("%v", v)
	}
}

func TestErrors(t *testing.T) {
	c, ctx, path := startEngine(t), t.Context(), image(t)
	if _, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path}); err != nil {
		t.Fatal(err)
	}
	log := image(t)
	if err := os.WriteFile(log, append([]byte("BOW\x00garbage"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, attach := range map[string]struct {
		req  *enginepb.AttachRequest
		want codes.Code
	}{
		"no name":             {&enginepb.AttachRequest{Path: path}, codes.InvalidArgument},
		"no path":             {&enginepb.AttachRequest{Name: "b"}, codes.InvalidArgument},
		"another path":        {&enginepb.AttachRequest{Name: "a", Path: image(t)}, codes.AlreadyExists},
		"another block size":  {&enginepb.AttachRequest{Name: "a", Path: path, BlockSize: 512}, codes.AlreadyExists},
		"attached elsewhere":  {&enginepb.AttachRequest{Name: "b", Path: path}, codes.FailedPrecondition},
		"nothing there":       {&enginepb.AttachRequest{Name: "b", Path: path + "x"}, codes.Internal},
		"a damaged log":       {&enginepb.AttachRequest{Name: "b", Path: log}, codes.DataLoss},
		"no block size is 77": {&enginepb.AttachRequest{Name: "b", Path: image(t), BlockSize: 77}, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Attach(ctx, attach.req)
			wantCode(t, err, attach.want)
		})
	}
	_, err := c.Get(ctx, &enginepb.GetRequest{Name: "b"})
	wantCode(t, err, codes.NotFound)
	_, err = c.StartTrim(ctx, &enginepb.StartTrimRequest{Name: "b"})
	wantCode(t, err, codes.NotFound)
	_, err = c.MarkFree(ctx, &enginepb.MarkFreeRequest{Name: "a", Extents: []*enginepb.Extent{{Offset: 1 << 40, Length: 1}}})
	wantCode(t, err, codes.InvalidArgument)
	list, err := c.List(ctx, &enginepb.ListRequest{})
	if err != nil || len(list.Volumes) != 1 || list.Volumes[0].Name != "a" {
		t.Errorf("%v, %v", list, err)
	}
}

// TestAtOnce attaches, looks at and detaches the same few volumes from many
// goroutines. The race detector is what it is for.
func TestAtOnce(t *testing.T) {
	c, ctx := startEngine(t), t.Context()
	images := []string{image(t), image(t)}
	var wg sync.WaitGroup
	for i := range 8 {
		name, path := string(rune('a'+i%2)), images[i%2]
		wg.Go(func() {
			for range 4 {
				if _, err := c.Attach(ctx, &enginepb.AttachRequest{Name: name, Path: path}); err != nil {
					t.Error(err)
				}
				if _, err := c.List(ctx, &enginepb.ListRequest{}); err != nil {
					t.Error(err)
				}
				if _, err := c.Detach(ctx, &enginepb.DetachRequest{Name: name}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := engine.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Listen(path); err == nil {
		t.Error("two at one socket")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as if killed
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	l, err = engine.Listen(path)
	if err != nil {
		t.Fatalf("a socket that nobody answers at: %v", err)
	}
	if err := l.Close(); err != nil || !errors.Is(func() error { _, err := os.Stat(path); return err }(), os.ErrNotExist) {
		t.Error("the socket is still there", err)
	}
}
