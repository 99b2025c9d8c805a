// Package apiserver gives tests a real API server, with Bowline's custom
// resource definitions and nothing else in it: no controller runs, no node and
// no scheduler, so a test writes what those would have written.
//
// The programs are those of the cluster for development, which
// `go run ./hack/cluster programs` builds. A test is skipped where they are not
// built.
package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

var server struct {
	sync.Mutex
	environment *envtest.Environment
	guard       *guard
	config      *rest.Config
	err         error
}

// errNotBuilt means that the tests cannot run here.
var errNotBuilt = errors.New("no API server: 'go run ./hack/cluster programs' builds one")

// Main runs the tests of a package, in its TestMain, and stops the server that
// the first call of Config has started.
func Main(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // it complains otherwise
	code := m.Run()
	if server.environment != nil {
		err := server.environment.Stop()
		if server.guard != nil {
			err = errors.Join(err, server.guard.dismiss())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "stopping the API server:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// Config returns how to reach the server of this package's tests as an
// administrator, and starts it if this is the first call.
func Config(t testing.TB) *rest.Config {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	if server.config == nil && server.err == nil {
		server.config, server.err = start()
	}
	switch {
	case errors.Is(server.err, errNotBuilt):
		t.Skip(server.err)
	case server.err != nil:
		t.Fatal(server.err)
	}
	return rest.CopyConfig(server.config)
}

// Kubeconfig writes a file that says how to reach the server, for programs, and
// returns its name.
func Kubeconfig(t testing.TB) string {
	t.Helper()
	Config(t)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, server.environment.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Namespace makes a namespace for one test and returns its name. It stays:
// nothing would empty it. Its objects are deleted by those who made them, or
// left to the end of the server.
func Namespace(t testing.TB) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(Config(t))
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace.Name
}

func start() (*rest.Config, error) {
	root, err := checkout()
	if err != nil {
		return nil, err
	}
	programs, err := programs(root)
	if err != nil {
		return nil, err
	}
	environment := &envtest.Environment{
		BinaryAssetsDirectory: programs,
		CRDDirectoryPaths:     []string{filepath.Join(root, "crds")},
		ErrorIfCRDPathMissing: true,
		// Seconds where nothing else runs.
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	server.environment = environment
	config, err := environment.Start()
	if err != nil {
		return nil, fmt.Errorf("starting an API server: %w", err)
	}
	server.guard, err = newGuard(environment)
	return config, err
}

// programs returns the directory with etcd and kube-apiserver.
func programs(root string) (string, error) {
	cmd := exec.Command("go", "run", "./hack/cluster", "programs", "--cached")
	cmd.Dir = root
	var said bytes.Buffer
	cmd.Stderr = &said
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w (%s)", errNotBuilt, bytes.TrimSpace(said.Bytes()))
	}
	return string(bytes.TrimSpace(output)), nil
}

// checkout returns the directory with go.mod, at or above the working directory,
// which is that of the package under test.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
	}
}
