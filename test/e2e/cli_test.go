//go:build cluster

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// root is the checkout, seen from this package.
const root = "../.."

// stateDir holds the cluster of the tests. It is not a temporary directory of
// one run, so that a run cleans up after one that was killed.
const stateDir = "/var/tmp/bowline-e2e-test"

// A cli is the program of hack/cluster, built for the run.
type cli struct {
	program string
}

// buildCLI builds the program into dir.
func buildCLI(ctx context.Context, dir string) (cli, error) {
	program := filepath.Join(dir, "cluster")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "./hack/cluster")
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return cli{}, fmt.Errorf("building hack/cluster: %w\n%s", err, output)
	}
	return cli{program}, nil
}

// run runs the program and returns what it printed to standard output.
func (c cli) run(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "BOWLINE_CLUSTER_STATE="+stateDir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cluster %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
