// Command cluster runs a real Kubernetes on this machine, without a registry:
// for development, demonstrations and tests. docs/development-cluster.md tells
// how to use it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/hack/cluster/internal/cluster"
	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

func main() {
	// Before everything else: this may be the first process of a machine.
	if len(os.Args) == 3 && os.Args[1] == cluster.InitCommand {
		fmt.Fprintln(os.Stderr, "init:", machine.Init(os.Args[2]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode()) // kubectl, say, told the user already
	default:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}
