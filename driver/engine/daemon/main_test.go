package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/daemon"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
)

// With one of these as its first argument the test binary is one of the processes.
const (
	superviseArg = "supervise" // and the socket
	serveArg     = "serve"
)

func TestMain(m *testing.M) {
	if len(os.Args) < 2 || !slices.Contains([]string{superviseArg, serveArg, diskArg}, os.Args[1]) {
		os.Exit(m.Run())
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if args[0] == diskArg {
		return runDisk(args[1], args[2])
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if args[0] == serveArg {
		return daemon.Serve(ctx, engine.NewServer(), log, func() {})
	}
	return daemon.Supervise(ctx, args[1], []string{"/proc/self/exe", serveArg}, log)
}

// testEngine is an engine of two processes.
type testEngine struct {
	enginepb.EngineClient
	t      *testing.T
	socket string
	keeper *exec.Cmd
	ended  chan error
}

// start starts an engine, which has to end without an error when the test does.
func start(t *testing.T) *testEngine {
	t.Helper()
	return startWith(t, exec.Command)
}

// startWith is start with processes that are made by command.
func startWith(t *testing.T, command func(name string, args ...string) *exec.Cmd) *testEngine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE and loop devices")
	}
	e := &testEngine{t: t, socket: filepath.Join(t.TempDir(), "engine.sock"), ended: make(chan error, 1)}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	e.keeper = command(self, superviseArg, e.socket)
	e.keeper.Stderr = os.Stderr
	if err := e.keeper.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { e.ended <- e.keeper.Wait() }()
	client, conn, err := engine.Dial(e.socket)
	if err != nil {
		t.Fatal(err)
	}
	e.EngineClient = client
	t.Cleanup(func() {
		defer conn.Close()
		_ = e.keeper.Process.Signal(unix.SIGTERM)
		select {
		case err := <-e.ended:
			if err != nil {
				t.Errorf("the engine has ended: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the engine does not end")
			_ = e.keeper.Process.Kill()
			_ = unix.Kill(e.server(), unix.SIGKILL)
		}
	})
	e.wait(func() error {
		_, err := e.List(t.Context(), &enginepb.ListRequest{})
		return err
	})
	return e
}

// wait tries f until it succeeds.
func (e *testEngine) wait(f func() error) {
	e.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// server is the process that serves, a child of the keeper, or -1.
func (e *testEngine) server() int {
	e.t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid …
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if fields[1] == strconv.Itoa(e.keeper.Process.Pid) && fields[0] != "Z" && fields[0] != "X" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return -1
}

// kill kills the process that serves and returns when its successor answers for
// the volume name.
func (e *testEngine) kill(name string) *enginepb.Volume {
	e.t.Helper()
	pid := -1
	e.wait(func() error {
		if pid = e.server(); pid < 0 {
			return fmt.Errorf("no process serves")
		}
		return nil
	})
	killed := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		e.t.Fatal(err)
	}
	var v *enginepb.Volume
	e.wait(func() (err error) {
		v, err = e.Get(e.t.Context(), &enginepb.GetRequest{Name: name})
		if err == nil && v.Since.AsTime().Before(killed) {
			err = fmt.Errorf("the process that was killed answers")
		}
		return err
	})
	return v
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
