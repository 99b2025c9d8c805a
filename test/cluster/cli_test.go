//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stateDir holds the clusters of the tests. It is not a temporary directory of
// one test, so that a run cleans up after one that was killed.
const stateDir = "/var/tmp/bowline-cluster-test"

// A cli is the program under test with a state directory.
type cli struct {
	program, state string
}

// build builds the program under test.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cluster")
	cmd := exec.Command("go", "build", "-o", program, "./hack/cluster")
	cmd.Dir = "../.."
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building hack/cluster: %v\n%s", err, output)
	}
	return program
}

// try runs the program and returns what it printed to standard output. Reading
// all output takes until everybody who has it ends, so this also tests that
// nothing in the background keeps it.
func (c cli) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Env = append(os.Environ(), "BOWLINE_CLUSTER_STATE="+c.state)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cluster %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Logf("cluster %s: %v\n%s", strings.Join(args, " "), took.Round(100*time.Millisecond), stderr.String())
	}
	return stdout.String(), nil
}

// run is try for what must work.
func (c cli) run(t *testing.T, args ...string) string {
	t.Helper()
	output, err := c.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// kubectl runs kubectl in the namespace of the test.
func (c cli) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{"kubectl", "--namespace=" + namespace(t)}, args...)...)
}

// apply creates the objects of a file in testdata, in a namespace of the
// test's own that goes with it.
func (c cli) apply(t *testing.T, file string) {
	t.Helper()
	c.run(t, "kubectl", "create", "namespace", namespace(t))
	t.Cleanup(func() {
		// What is in no namespace goes with the file.
		if _, err := c.tryNoContext(t, "kubectl", "--namespace="+namespace(t), "delete", "--ignore-not-found", "--grace-period=1", "-f", filepath.Join("testdata", file)); err != nil {
			t.Error(err)
		}
		if _, err := c.tryNoContext(t, "kubectl", "delete", "namespace", namespace(t), "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	// The service account of a new namespace takes a moment.
	c.until(t, 30*time.Second, func() error {
		_, err := c.try(t, "kubectl", "--namespace="+namespace(t), "get", "serviceaccount", "default")
		return err
	})
	c.kubectl(t, "apply", "-f", filepath.Join("testdata", file))
	c.kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
}

// tryNoContext runs the program where the test's context has ended.
func (c cli) tryNoContext(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(c.program, args...)
	cmd.Env = append(os.Environ(), "BOWLINE_CLUSTER_STATE="+c.state)
	output, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cluster %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return string(output), err
}

func namespace(t *testing.T) string {
	name := t.Name()
	return strings.ToLower(name[strings.LastIndex(name, "/")+1:])
}

// until calls check until it succeeds or limit is over.
func (c cli) until(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(500 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %v", limit, err)
		}
	}
}

// dump puts what the services said into the log of a test that failed.
func (c cli) dump(t *testing.T) {
	for _, name := range []string{"control-plane", "node-1", "node-2"} {
		output, err := c.tryNoContext(t, "logs", name)
		if err != nil {
			continue
		}
		lines := strings.Split(output, "\n")
		t.Logf("the end of the logs of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}
