// Package filesystem makes, checks, mounts, freezes, trims and grows the file
// systems that Bowline puts on a volume: ext4 and XFS. It also tells what is on a
// device before anybody writes to it, and where a mounted file system has free
// space.
//
// What needs a tool runs the system's own (mkfs.ext4, mkfs.xfs, blkid, mount,
// resize2fs, xfs_growfs, e2fsck, xfs_repair); an error then contains what the
// tool said. The rest are system calls. Nothing is remembered between calls:
// the truth is in the kernel and on the device.
//
// A context that ends kills the tool that runs. A system call that is already
// waiting for a device cannot be interrupted.
package filesystem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/utils/exec"
)

// The types of file system that Make makes.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

var (
	// ErrNotEmpty is returned by Make for a device that may hold something.
	ErrNotEmpty = errors.New("the device is not empty")

	// ErrNotMounted is returned where a mount point was expected.
	ErrNotMounted = errors.New("not a mount point")

	// ErrHidden is returned where something else is mounted over a file system.
	ErrHidden = errors.New("something else is mounted over it")

	// ErrBusy is returned by Unmount for a file system that is in use.
	ErrBusy = errors.New("in use")

	// ErrFrozen is returned by Freeze for a file system that is frozen already.
	ErrFrozen = errors.New("already frozen")

	// ErrNotFrozen is returned by Thaw for a file system that is not frozen.
	ErrNotFrozen = errors.New("not frozen")

	// ErrNotSupported is returned for what the type of file system, the kernel
	// or the device cannot do.
	ErrNotSupported = errors.New("not supported")

	// ErrDamaged is returned by Check for a file system that has errors.
	ErrDamaged = errors.New("the file system is damaged")
)

// output runs a tool to its end and returns what it printed on its standard
// output. The error wraps the tool's exec.ExitError, or the context's error if
// that is what ended it, and contains all that the tool printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.New().CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.SetStdout(&stdout)
	cmd.SetStderr(&stderr)
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	for _, printed := range []string{stderr.String(), stdout.String()} {
		if printed = strings.TrimSpace(printed); printed != "" {
			err = fmt.Errorf("%w: %s", err, printed)
		}
	}
	return "", fmt.Errorf("%s: %w", name, err)
}

// run runs a tool of which only the success is of interest, like output.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// boundExec runs the commands of a library that knows no contexts under one.
type boundExec struct {
	exec.Interface
	ctx context.Context
}

func bind(ctx context.Context) boundExec {
	return boundExec{exec.New(), ctx}
}

func (b boundExec) Command(name string, args ...string) exec.Cmd {
	return b.CommandContext(b.ctx, name, args...)
}
