package engine_test

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// testKeeper is a Keeper in this process, which may refuse.
type testKeeper struct {
	mu     sync.Mutex
	refuse error
	fds    map[string][]int
}

func (k *testKeeper) Keep(name string, _ []byte, fds ...int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse != nil {
		return k.refuse
	}
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		k.fds[name] = append(k.fds[name], dup)
	}
	return nil
}

func (k *testKeeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, fd := range k.fds[name] {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	delete(k.fds, name)
	return nil
}

func TestKeeper(t *testing.T) {
	k := &testKeeper{fds: map[string][]int{}}
	s := engine.NewServer()
	s.Keeper = k
	c, ctx, path := startServer(t, s), t.Context(), image(t)
	k.refuse = errors.New("no")
	_, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path})
	wantCode(t, err, codes.Internal)
	k.refuse = nil
	v, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if v.SurvivesRestart != (len(k.fds["a"]) == 2) {
		t.Errorf("survives %t, held %v", v.SurvivesRestart, k.fds)
	}
	if _, err := c.Detach(ctx, &enginepb.DetachRequest{Name: "a"}); err != nil || len(k.fds) != 0 {
		t.Errorf("%v, held %v", err, k.fds)
	}
}

// TestIOUring checks that a volume over io_uring says so, and that nobody is to take
// it over.
func TestIOUring(t *testing.T) {
	k := &testKeeper{fds: map[string][]int{}}
	s := engine.NewServer()
	s.Keeper = k
	c, ctx, path := startServer(t, s), t.Context(), image(t)
	v, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path, IoUring: true})
	if status.Code(err) == codes.Unimplemented {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !v.IoUring || v.SurvivesRestart || len(k.fds) != 0 {
		t.Errorf("%v, held %v", v, k.fds)
	}
	if again, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path}); err != nil || !again.IoUring {
		t.Errorf("attached again: %v, %v", again, err)
	}
	if _, err := c.Detach(ctx, &enginepb.DetachRequest{Name: "a"}); err != nil {
		t.Error(err)
	}
}

// TestTakeOverNonsense takes over what cannot be.
func TestTakeOverNonsense(t *testing.T) {
	k := &testKeeper{fds: map[string][]int{}}
	s := engine.NewServer()
	s.Keeper = k
	null := func() int {
		fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	var held []engine.Kept
	for name, note := range map[string]string{"no JSON": "x", "nothing there": `{"path":"/nonexistent","export":{"Name":"none","Loop":77777}}`} {
		held = append(held, engine.Kept{Name: name, Note: []byte(note), FDs: []int{null(), null()}})
	}
	held = append(held, engine.Kept{Name: "no descriptor", Note: []byte("{}")})
	err := s.TakeOver(t.Context(), held, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err == nil || s.Attached() != 0 {
		t.Errorf("%d volumes, %v", s.Attached(), err)
	}
	for _, h := range held {
		for _, fd := range h.FDs {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
				t.Errorf("%s: descriptor %d is still open", h.Name, fd)
			}
		}
	}
}
