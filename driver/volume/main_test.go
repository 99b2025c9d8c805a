package volume_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
)

// engineSocket makes the test binary an engine, in a process that can be killed.
const engineSocket = "BOWLINE_TEST_ENGINE_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(engineSocket); socket != "" {
		if err := serveEngine(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveEngine serves until standard input ends.
func serveEngine(socket string) error {
	l, err := engine.Listen(socket)
	if err != nil {
		return err
	}
	s, g := engine.NewServer(), grpc.NewServer()
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	err = s.Close(context.Background())
	g.Stop()
	return errors.Join(err, <-done)
}

// node is a node with a pool, an engine of its own process, and a Manager.
type node struct {
	*volume.Manager
	t      *testing.T
	dir    string
	pool   *pool.Pool
	client enginepb.EngineClient
	conn   io.Closer

	engine *exec.Cmd
	stdin  io.Closer
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE, loop devices and mounts")
	}
	n := &node{t: t, dir: t.TempDir()}
	var err error
	// The name of the node is in the IDs of volumes, which are names in the kernel:
	// tests of another process are another node.
	if n.pool, err = pool.Open(filepath.Join(n.dir, "pool"), fmt.Sprintf("node-%d", os.Getpid()), ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.pool.Close(); err != nil {
			t.Error(err)
		}
	})
	n.startEngine()
	if n.client, n.conn, err = engine.Dial(n.socket()); err != nil {
		t.Fatal(err)
	}
	n.startManager()
	t.Cleanup(n.stop)
	return n
}

func (n *node) socket() string { return filepath.Join(n.dir, "engine.sock") }

func (n *node) startEngine() {
	n.t.Helper()
	n.engine = exec.Command(os.Args[0])
	n.engine.Env = append(os.Environ(), engineSocket+"="+n.socket())
	n.engine.Stderr = os.Stderr
	stdin, err := n.engine.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.stdin = stdin
	if err := n.engine.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the engine listens", func() bool {
		_, err := os.Stat(n.socket())
		return err == nil
	})
}

// killEngine is a SIGKILL, with no successor.
func (n *node) killEngine() {
	n.t.Helper()
	if err := n.engine.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	_ = n.engine.Wait()
	if err := os.Remove(n.socket()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) startManager() {
	n.t.Helper()
	m, err := volume.New(volume.Config{
		Pool: n.pool, Engine: n.client, StateDir: filepath.Join(n.dir, "state"),
		Log: slog.New(slog.NewTextHandler(n.t.Output(), nil)),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Manager = m
}

func (n *node) restartManager() {
	n.t.Helper()
	n.Manager.Close()
	n.startManager()
}

// stop takes everything down, whatever the test has left.
func (n *node) stop() {
	n.Manager.Close()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Error(err)
	}
	lines := strings.Split(string(table), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], n.dir+"/") {
			_ = filesystem.Thaw(f[4])
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				n.t.Errorf("unmounting %s: %v", f[4], err)
			}
		}
	}
	n.stdin.Close()
	if err := n.engine.Wait(); err != nil && n.engine.ProcessState.ExitCode() != -1 {
		n.t.Errorf("the engine: %v", err)
	}
	n.conn.Close()
}

func (n *node) eventually(what string, f func() bool) {
	n.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	n.t.Fatalf("waited for 30 s: %s", what)
}

const mib = 1 << 20

// create makes a volume of the pool.
func (n *node) create(name string, size int64) string {
	n.t.Helper()
	v, err := n.pool.Create(n.t.Context(), pool.CreateOptions{Name: name, Size: size})
	if err != nil {
		n.t.Fatal(err)
	}
	return v.ID
}

func (n *node) path(parts ...string) string {
	n.t.Helper()
	p := filepath.Join(append([]string{n.dir}, parts...)...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *node) options(id, pod string) volume.PublishOptions {
	return volume.PublishOptions{
		StageOptions: volume.StageOptions{Ref: volume.Ref{ID: id}, StagingPath: n.path("plugin", id, "globalmount")},
		TargetPath:   n.path("pods", pod, id, "mount"),
	}
}

// start stages and publishes a volume for a pod and returns where.
func (n *node) start(id, pod string) string {
	n.t.Helper()
	o := n.options(id, pod)
	n.must(n.Stage(n.t.Context(), o.StageOptions))
	n.must(n.Publish(n.t.Context(), o))
	return o.TargetPath
}

func (n *node) end(id, pod string) {
	n.t.Helper()
	o := n.options(id, pod)
	n.must(n.Unpublish(n.t.Context(), id, o.TargetPath))
	n.must(n.Unstage(n.t.Context(), id, o.StagingPath))
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) want(err, want error) {
	n.t.Helper()
	if !errors.Is(err, want) {
		n.t.Fatalf("got %v, want %v", err, want)
	}
}

func (n *node) write(path, content string) {
	n.t.Helper()
	f, err := os.Create(path)
	n.must(err)
	_, err = f.WriteString(content)
	n.must(errors.Join(err, f.Sync(), f.Close()))
}

func (n *node) wantFile(path, content string) {
	n.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		n.t.Fatalf("%s: %.40q, %v; want %.40q", path, b, err, content)
	}
}

func (n *node) status(id string) volume.Status {
	n.t.Helper()
	s, err := n.Status(n.t.Context(), id)
	n.must(err)
	return s
}

// tool runs a command and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newLoop puts a loop device on an image until the test ends.
func newLoop(t *testing.T, image string) string {
	t.Helper()
	device := tool(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { tool(t, "losetup", "--detach", device) })
	return device
}

// mountXFS mounts an XFS, which may be a copy of another one, at a new directory.
func mountXFS(t *testing.T, device, at string) string {
	t.Helper()
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "-o", "nouuid", device, at)
	return at
}
