// Package daemon is what the two processes of `bowline engine` do. The one that is
// started is the keeper (Supervise): it listens at the socket and holds the
// connections to the kernel, and nothing else. The one that it starts, and starts
// again when it dies, serves the volumes and answers at the socket (Serve).
//
//	keeper                        server
//	socket of the engine   ---->  accepts from it
//	/dev/fuse of volumes   <--->  reads and answers
//
// When the server is killed, users of its volumes wait until the next one has taken
// them over, and callers of its socket until it answers. When the keeper is killed
// as well, as with the whole container, users get I/O errors.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/keeper"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// listenerFD is the descriptor of the engine's socket in the server.
const listenerFD = keeper.ConnFD + 1

// Supervise runs the keeper: it listens at the unix socket and runs the server,
// whose command line is args, until that has ended by itself. When ctx is done it
// asks the server to end, which that does when no volume is in use any more. It
// fails if another engine listens at the socket.
func Supervise(ctx context.Context, socket string, args []string, log *slog.Logger) error {
	l, err := engine.Listen(socket)
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		return fmt.Errorf("listening at %s: %w", socket, err)
	}
	defer f.Close()
	// What starts on this thread inherits what it is.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := becomeFlusher(); err != nil {
		log.Warn("when memory is short, the process that serves may wait for what only it can write", "error", err)
	}
	return keeper.Run(keeper.Config{Args: args, Files: []*os.File{f}, Stop: ctx.Done(), Log: log})
}

// becomeFlusher makes the calling thread, and every process that it starts with all
// threads of that, one that does not wait for dirty pages to be written when it needs
// memory. The workers of an export would be so by themselves; but any other thread of the
// process that waits for them, in a page fault, holds what they need: the memory map,
// or the garbage collector that stops the world. It needs CAP_SYS_RESOURCE.
func becomeFlusher() error {
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming a flusher of dirty pages: %w", err)
	}
	return nil
}

// endInterval is how often a server that is to end looks whether volumes are in
// use no more.
const endInterval = time.Second

// takeOverPatience is how long callers at the socket wait for all volumes to be
// taken over. After that they are told which are not yet.
const takeOverPatience = 10 * time.Second

// Serve runs the server in the process that Supervise has started. It takes over
// what the keeper holds, calls ready, and answers at the socket. When ctx is done or
// the keeper asks for it, it attaches no more volumes, detaches those that are not
// in use, as they become so, and returns when there is none left.
func Serve(ctx context.Context, s *engine.Server, log *slog.Logger, ready func()) error {
	// A goroutine that comes out of a system call needs a processor of the
	// scheduler, and with as few of these as there are cores the calls that last
	// hold them all. Twice to three times the rate at queue depth 32.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(8, 4*runtime.NumCPU()))
	}
	k, held, err := keeper.Connect()
	if err != nil {
		return err
	}
	f := os.NewFile(listenerFD, "socket")
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	s.Keeper = k
	// Nothing of this may end half-done because of a signal.
	working := context.WithoutCancel(ctx)
	kept := make([]engine.Kept, len(held))
	for i, h := range held {
		kept[i] = engine.Kept(h)
	}
	takeOver(working, s, kept, log)
	g := grpc.NewServer(engine.LogCalls(log)...)
	s.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	log.Info("serving", "volumes", s.Attached())
	ready()
	select {
	case err := <-served:
		return fmt.Errorf("answering at the socket: %w", err)
	case <-ctx.Done():
	case <-k.Stopping():
	}
	end(working, s, log)
	g.GracefulStop()
	return nil
}

// takeOver takes over what the keeper holds. It returns when that is done, or
// lasts too long.
func takeOver(ctx context.Context, s *engine.Server, kept []engine.Kept, log *slog.Logger) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.TakeOver(ctx, kept, log); err != nil {
			log.Error("taking over from the process that died", "error", err)
		}
	}()
	select {
	case <-done:
	case <-time.After(takeOverPatience):
		log.Error("taking over from the process that died takes long")
	}
}

// end detaches all volumes, those that are in use when they are not any more.
func end(ctx context.Context, s *engine.Server, log *slog.Logger) {
	s.End()
	said := ""
	for {
		err := s.Close(ctx)
		if s.Attached() == 0 {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			log.Warn("to end, but volumes are in use; serving them until they are not", "error", err)
		}
		time.Sleep(endInterval)
	}
}
