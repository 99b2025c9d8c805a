// Command kubectl-bowline is the kubectl plugin for Bowline: `kubectl bowline`
// opens checkpoints on claims, shows them, commits them and rolls them back. It
// only reads and writes what the API server has; the work is done by the
// controller and on the nodes.
//
// Who uses it needs, in the namespaces of the claims:
//
//	bowline.dev  volumecheckpoints       list watch create patch
//	(core)       persistentvolumeclaims  get, and list for completion
//	(core)       pods                    list      only for rollback --evict
//	(core)       pods/eviction           create    only for rollback --evict
//
// and to list namespaces for their completion.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, arguments(os.Args), os.Stdout, os.Stderr))
}

// completer is the name by which kubectl calls for the completion of its plugin:
// a symbolic link to this program on the PATH is all that it takes.
const completer = "kubectl_complete-bowline"

// arguments returns those of the command line, as a request for completion if
// that is what the program was called for.
func arguments(args []string) []string {
	if len(args) > 0 && filepath.Base(args[0]) == completer {
		return append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	return args[min(1, len(args)):]
}

// run executes the command line and returns the exit code of the process.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	root := newRootCommand(&cli{out: out, errOut: errOut, now: time.Now})
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(errOut, "kubectl bowline:", message(err))
	}
	return exitCode(err)
}

func newRootCommand(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-bowline",
		Short: "Checkpoint volumes, and commit them or roll them back in place",
		Long: `Checkpoint the volume of a claim before something that may go wrong, and
afterwards commit it, which is instant, or roll it back in place: the same
claim and the same pods with the data of before.

CLAIM is a PersistentVolumeClaim whose volume belongs to Bowline. Where a
checkpoint is meant, its own name does as well as the name of its claim.

The shell completes claims and checkpoints if a symbolic link to this program
with the name ` + completer + ` is on the PATH, beside the completion of
kubectl itself.

` + exitCodesHelp,
		Example: `  kubectl bowline checkpoint data-postgres-0 --wait
  kubectl bowline status data-postgres-0 --watch
  kubectl bowline rollback data-postgres-0 --evict --wait
  kubectl bowline commit data-postgres-0`,
		Version:           version,
		Args:              usageArgs(cobra.NoArgs),
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl bowline"},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.addFlags(root)
	root.AddCommand(newCheckpointCommand(c), newStatusCommand(c), newListCommand(c), newCommitCommand(c), newRollbackCommand(c))
	return root
}

// usageArgs makes the errors of an argument check usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef("%w; see '%s --help'", err, cmd.CommandPath())
		}
		return nil
	}
}
