//go:build cluster

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// keep leaves the cluster for the next run, which then starts with what is there.
var keep = flag.Bool("keep", false, "do not end the cluster afterwards")

const (
	release   = "bowline"        // of Helm
	namespace = "bowline-system" // where it is installed
	image     = "bowline:e2e"    // what is installed
)

// What all tests share.
var (
	cluster   cli
	api       client.Client
	clientset *kubernetes.Clientset
	config    *rest.Config
	postgres  string // name of the image
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run starts the cluster, runs the tests in it and ends it, whatever happens.
func run(m *testing.M) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "bowline-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if cluster, err = buildCLI(ctx, dir); err != nil {
		return 1, err
	}
	if !*keep {
		// What an earlier run may have left.
		if _, err := cluster.run(ctx, "down"); err != nil {
			return 1, err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			_, failed := cluster.run(ctx, "down")
			err = errors.Join(err, failed, os.RemoveAll(stateDir))
		}()
	}
	// An interrupted run of the tests ends here, and the cluster after it.
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ctx.Done():
			if !*keep {
				_, _ = cluster.run(context.Background(), "down")
			}
			os.Exit(130)
		case <-done:
		}
	}()
	if err := start(ctx); err != nil {
		return 1, fmt.Errorf("setting up: %w", err)
	}
	code = m.Run()
	return code, leftovers(context.Background())
}

// start brings up the cluster with Bowline installed.
func start(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"cluster", up},
		{"image", buildImage},
		{"PostgreSQL", loadPostgres},
		{"chart", func(ctx context.Context) error { return install(ctx) }},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("e2e: %s: %v\n", step.what, time.Since(began).Round(100*time.Millisecond))
	}
	return nil
}

func up(ctx context.Context) error {
	if _, err := cluster.run(ctx, "up", "--nodes=2"); err != nil {
		return err
	}
	kubeconfig, err := cluster.run(ctx, "kubeconfig")
	if err != nil {
		return err
	}
	config, err = clientcmd.BuildConfigFromFlags("", strings.TrimSpace(kubeconfig))
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 200
	if clientset, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	api, err = client.New(config, client.Options{Scheme: scheme.Scheme})
	return err
}

func buildImage(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "make", "image", "IMAGE="+image, "VERSION=e2e")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "BOWLINE_CLUSTER_STATE="+stateDir)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make image: %w\n%s", err, output)
	}
	return nil
}

func loadPostgres(ctx context.Context) error {
	name, err := cluster.run(ctx, "load-postgres")
	postgres = strings.TrimSpace(name)
	return err
}

// install installs the chart, or changes what is installed, and returns when all
// of it runs. Further arguments are Helm's.
func install(ctx context.Context, args ...string) error {
	values, err := filepath.Abs("testdata/values.yaml")
	if err != nil {
		return err
	}
	_, err = cluster.run(ctx, append([]string{
		"helm", "upgrade", release, "charts/bowline", "--install", "--namespace=" + namespace, "--create-namespace",
		"--values=" + values, "--wait", "--timeout=3m",
	}, args...)...)
	return err
}
