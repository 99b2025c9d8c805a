package sanity_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/csi"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// testNode is a node with everything that the driver has there, in this process.
type testNode struct {
	name   string
	dir    string // has all that the node has
	socket string // CSI
	pool   *pool.Pool
}

// startNode starts a node. At the end of the test nothing of it may be left.
func startNode(t *testing.T) *testNode {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices and mounts")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{
		// A name of its own, so that its volumes can be told from those of others.
		name:   fmt.Sprintf("sanity-%d-%d", os.Getpid(), time.Now().UnixNano()),
		dir:    dir,
		socket: filepath.Join(dir, "csi.sock"),
	}
	t.Cleanup(func() { n.checkLeft(t) })

	engineServer, engineGRPC := engine.NewServer(), grpc.NewServer()
	engineServer.Register(engineGRPC)
	serve(t, engineGRPC, filepath.Join(dir, "engine.sock"))
	t.Cleanup(func() {
		if n := engineServer.Attached(); n > 0 {
			t.Errorf("%d volumes are still attached", n)
		}
		if err := engineServer.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	client, conn, err := engine.Dial(filepath.Join(dir, "engine.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	if n.pool, err = pool.Open(filepath.Join(dir, "pool"), n.name, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.pool.Close(); err != nil {
			t.Error(err)
		}
	})
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", &out)
		}
	})
	volumes, err := volume.New(volume.Config{Pool: n.pool, Engine: client, StateDir: dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(volumes.Close)

	server, err := csi.NewServer(log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ready := func(ctx context.Context) error {
		_, err := client.List(ctx, &enginepb.ListRequest{})
		return err
	}
	csi.NewIdentity("test", ready).Register(server)
	controller := csi.NewController(n.name, n.pool, volumes)
	t.Cleanup(controller.Close)
	controller.Register(server)
	csi.NewNode(n.name, volumes, ready).Register(server)
	serve(t, server, n.socket)
	t.Cleanup(func() {
		if t.Failed() {
			n.tearDown(t)
		}
	})
	return n
}

// tearDown unmounts and detaches what a test that failed has left, so that the
// machine is as before.
func (n *testNode) tearDown(t *testing.T) {
	t.Helper()
	mounts := n.mounts(t)
	for _, line := range slices.Backward(mounts) {
		path := strings.Fields(line)[4]
		t.Logf("cleaning up: unmounting %s", path)
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", path, err)
		}
	}
}

// serve makes s answer at socket until the test ends.
func serve(t *testing.T, s *grpc.Server, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.GracefulStop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// checkLeft fails the test if there are still volumes, mounts or loop devices of
// the node.
func (n *testNode) checkLeft(t *testing.T) {
	t.Helper()
	for _, name := range []string{"pool", "pool/.new", "pool/.trash", "volumes"} {
		entries, err := os.ReadDir(filepath.Join(n.dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			if e.Name() != ".new" && e.Name() != ".trash" {
				t.Errorf("left: %s", filepath.Join(n.dir, name, e.Name()))
			}
		}
	}
	for _, line := range n.mounts(t) {
		t.Errorf("left: %s", line)
	}
	for _, loop := range n.loops(t) {
		t.Errorf("left: %s", loop)
	}
}

// mounts returns what is mounted in the directory of the node.
func (n *testNode) mounts(t *testing.T) []string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, n.dir) {
			mounts = append(mounts, line)
		}
	}
	return mounts
}

// loops returns the loop devices of the node's volumes.
func (n *testNode) loops(t *testing.T) []string {
	t.Helper()
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	_, suffix, _ := strings.Cut(pool.ID("x", n.name), ".")
	var loops []string
	for _, path := range backing {
		file, err := os.ReadFile(path)
		if err == nil && (strings.Contains(string(file), suffix) || strings.Contains(string(file), n.dir)) {
			loops = append(loops, path+": "+strings.TrimSpace(string(file)))
		}
	}
	return loops
}

// resources are what this process has of what can leak.
type resources struct{ files, goroutines int }

func measure(t *testing.T) resources {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{files: len(fds), goroutines: runtime.NumGoroutine()}
}
