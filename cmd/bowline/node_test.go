package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestNodeUsage(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for name, args := range map[string][]string{
		"no name":       {},
		"relative path": {"--node-name", "n", "--csi-endpoint", "unix:csi.sock"},
		"over TCP":      {"--node-name", "n", "--csi-endpoint", "tcp://127.0.0.1:1"},
		"log level":     {"--node-name", "n", "--log-level", "loud"},
		"arguments":     {"--node-name", "n", "x"},
		"unknown flag":  {"--node-name", "n", "--nope"},
	} {
		if code := run(t.Context(), append([]string{"node"}, args...)); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

func TestCSISocket(t *testing.T) {
	for endpoint, want := range map[string]string{
		"":              "/k/plugins/csi.bowline.dev/csi.sock",
		"/a/b":          "/a/b",
		"unix:/a/b":     "/a/b",
		"unix:///a/b":   "/a/b",
		"unix://a/b":    "",
		"http://a/b":    "",
		"unix:relative": "",
	} {
		o := nodeOptions{csiEndpoint: endpoint, kubeletDir: "/k"}
		var usage usageError
		if got, err := o.csiSocket(); got != want || (want == "") != errors.As(err, &usage) {
			t.Errorf("%q: %q, %v", endpoint, got, err)
		}
	}
}

// await waits until cond holds, 20 s at the most.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// dialUnix returns a connection to the unix socket.
func dialUnix(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// unreachable is a cluster whose API server is away.
const unreachable = `{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], users: [{name: u, user: {token: t}}],
contexts: [{name: c, context: {cluster: c, user: u}}]}`

// TestNode runs `bowline node` as the kubelet sees it, from its first socket to
// its end. It needs no API server for that.
func TestNode(t *testing.T) {
	t.Run("no cluster", func(t *testing.T) {
		t.Setenv("KUBECONFIG", "")
		t.Setenv("KUBERNETES_SERVICE_HOST", "")
		serveKubelet(t)
	})
	t.Run("API server away", func(t *testing.T) {
		config := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(config, []byte(unreachable), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("KUBECONFIG", config)
		serveKubelet(t)
	})
}

func serveKubelet(t *testing.T) {
	dir := t.TempDir()
	kubeletDir := filepath.Join(dir, "kubelet")
	if err := os.MkdirAll(filepath.Join(kubeletDir, "plugins_registry"), 0o700); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	exited := make(chan int, 1)
	engineSocket := filepath.Join(dir, "engine.sock")
	go func() {
		exited <- run(ctx, []string{
			"node", "--node-name", "node-1", "--kubelet-dir", kubeletDir, "--state-dir", filepath.Join(dir, "state"),
			"--engine-socket", engineSocket, "--http-address", address, "--log-level", "error",
		})
	}()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, ""
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}

	// What the kubelet does when it finds the socket.
	socket := filepath.Join(kubeletDir, "plugins_registry", "csi.bowline.dev-reg.sock")
	await(t, "the registration socket", func() bool { _, err := os.Stat(socket); return err == nil })
	registration := kubelet.NewRegistrationClient(dialUnix(t, socket))
	info, err := registration.GetInfo(t.Context(), &kubelet.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	node := spec.NewNodeClient(dialUnix(t, info.GetEndpoint()))
	if r, err := node.NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{}); err != nil || r.GetNodeId() != "node-1" {
		t.Fatalf("%v, %v", r, err)
	}
	await(t, "liveness", func() bool { code, _ := get("/healthz"); return code == http.StatusOK })
	if code, why := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(why, "kubelet") {
		t.Errorf("ready before the kubelet knows of it: %d %s", code, why)
	}
	if _, err := registration.NotifyRegistrationStatus(t.Context(), &kubelet.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Fatal(err)
	}
	if code, why := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(why, "engine") {
		t.Errorf("ready without the engine: %d %s", code, why)
	}

	// The engine comes later.
	l, err := engine.Listen(engineSocket)
	if err != nil {
		t.Fatal(err)
	}
	engineServer := grpc.NewServer()
	engine.NewServer().Register(engineServer)
	go engineServer.Serve(l)
	defer engineServer.Stop()
	await(t, "readiness", func() bool { code, _ := get("/readyz"); return code == http.StatusOK })
	if _, metrics := get("/metrics"); !strings.Contains(metrics, `csi_plugin_operations_seconds_count{driver_name="csi.bowline.dev",grpc_status_code="OK",method_name="/csi.v1.Node/NodeGetInfo"} 1`) {
		t.Errorf("metrics:\n%.2000s", metrics)
	}

	// The disk of the pool goes.
	at, away := filepath.Join(dir, "state"), filepath.Join(dir, "away")
	if err := os.Rename(at, away); err != nil {
		t.Fatal(err)
	}
	if code, why := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(why, "the pool is not available") {
		t.Errorf("ready without the pool: %d %s", code, why)
	}
	if code, why := get("/healthz"); code != http.StatusOK {
		t.Errorf("not alive without the pool: %d %s", code, why)
	}
	if _, metrics := get("/metrics"); !strings.Contains(metrics, "bowline_pool_available 0") {
		t.Errorf("metrics:\n%.2000s", metrics)
	}
	if err := os.Rename(away, at); err != nil {
		t.Fatal(err)
	}
	if code, why := get("/readyz"); code != http.StatusOK {
		t.Errorf("not ready with the pool: %d %s", code, why)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(info.GetEndpoint()), "pool-id")); err != nil {
		t.Errorf("the pool is not remembered: %v", err)
	}

	cancel()
	select {
	case code := <-exited:
		if code != exitOK {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	for _, path := range []string{socket, info.GetEndpoint()} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}
