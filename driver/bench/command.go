package bench

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// command runs a program to its end and returns what it wrote to its standard
// output.
func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	return output(newCommand(ctx, name, args...))
}

// newCommand is a program that is told to end when ctx is done.
func newCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	// Ctrl-C goes to all of a terminal's foreground; it is for us to end what
	// we began, in the right order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", cmd.Args, err, bytes.TrimSpace(problems.Bytes()))
	}
	return out.Bytes(), nil
}

// mountDevice mounts the file system on a device at dir. It is not interrupted: the
// program could be ended after the kernel has mounted, and nobody would unmount.
func mountDevice(ctx context.Context, device, dir string, options ...string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	_, err := command(context.WithoutCancel(ctx), "mount", append(options, device, dir)...)
	return err
}

// pause waits for d, or until ctx is done, which is an error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
