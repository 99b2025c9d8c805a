package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is the path of the bowline that is tested, "" if the tests are skipped.
var program string

// cannotRun says why the tests are skipped.
var cannotRun string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		cannotRun = "needs root, for loop devices and mounts"
	} else if _, err := os.Stat("/dev/fuse"); err != nil {
		cannotRun = "needs /dev/fuse: " + err.Error()
	} else if _, err := os.Stat("/dev/loop-control"); err != nil {
		cannotRun = "needs loop devices: " + err.Error()
	}
	if cannotRun != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "bowline-device-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "bowline")
	args := append([]string{"build", "-o", program}, buildFlags...)
	build := exec.Command("go", append(args, "../../cmd/bowline")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the program under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// commandTimeout is for each command that a test runs.
const commandTimeout = 3 * time.Minute

// result is what a command did.
type result struct {
	command        string
	stdout, stderr string
	code           int // exit code
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit code %d\n%s%s", r.command, r.code, r.stdout, r.stderr)
}

// execute runs a command to its end.
func execute(t *testing.T, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A process in the background must not keep us waiting for its end.
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	r := result{
		command: strings.Join(append([]string{filepath.Base(name)}, args...), " "),
		stdout:  stdout.String(), stderr: stderr.String(),
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s: not done in %s\n%s", r.command, commandTimeout, r.stderr)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		t.Fatalf("%s: %v", r.command, err)
	}
	return r
}

// tool runs a command of the system that must succeed, and returns its output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := execute(t, name, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// eventually waits until ok, or fails the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s still not so: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
