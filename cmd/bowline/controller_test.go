package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/test/apiserver"
)

// The whole command against an API server: it is elected, reconciles, answers
// external-resizer and shows metrics, and ends when asked to.
func TestController(t *testing.T) {
	namespace := apiserver.Namespace(t)
	t.Setenv("KUBECONFIG", apiserver.Kubeconfig(t))
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "csi.sock")
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"controller", "--namespace", namespace, "--csi-endpoint", "unix://" + socket, "--http-address", address, "--log-level", "error"})
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-ended; code != exitOK {
			t.Errorf("exit code %d", code)
		}
	})

	eventually(t, func() error {
		_, err := fetch("http://" + address + "/readyz")
		return err
	})
	checkpoint := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "before"},
		Spec:       v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: "none"},
	}
	if err := c.Create(t.Context(), checkpoint); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var got v1alpha1.VolumeCheckpoint
		if err := c.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: "before"}, &got); err != nil {
			return err
		}
		if a := got.Condition(v1alpha1.ConditionAccepted); a == nil || a.Reason != v1alpha1.ReasonClaimNotFound {
			return fmt.Errorf("status is %+v", got.Status)
		}
		return nil
	})

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, func() error {
		p, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{})
		if err == nil && !p.GetReady().GetValue() {
			err = fmt.Errorf("not ready")
		}
		return err
	})
	r, err := csi.NewControllerClient(conn).ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: "v.12345678", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30},
	})
	if err != nil || !r.GetNodeExpansionRequired() {
		t.Errorf("expansion: %v, %v", r, err)
	}
	text, err := fetch("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range []string{"controller_runtime_reconcile_total", "csi_plugin_operations_seconds", "go_goroutines"} {
		if !strings.Contains(text, metric) {
			t.Errorf("/metrics has no %s", metric)
		}
	}
}

func TestControllerUsage(t *testing.T) {
	t.Setenv("NAMESPACE", "")
	for _, args := range [][]string{
		{"controller"}, // no namespace for the lease
		{"controller", "--leader-elect=false", "--csi-endpoint", "csi.sock"},
		{"controller", "--leader-elect=false", "--log-level", "loud"},
	} {
		if code := run(t.Context(), args); code != exitUsage {
			t.Errorf("%v: exit code %d; want %d", args, code, exitUsage)
		}
	}
}

// freeAddress returns an address on the loopback interface that nobody listens
// at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fetch(url string) (string, error) {
	r, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

func eventually(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
