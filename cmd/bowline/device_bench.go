package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"

	"github.com/bowline-csi/bowline/driver/bench"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func benchCommand() *cobra.Command {
	var o bench.Options
	var output outputFlag
	var only, history string
	cmd := &cobra.Command{
		Use:   "bench PATH",
		Short: "Measure what a mapping costs on a disk, against a raw loop device",
		Long: fmt.Sprintf(`Measure what a mapping costs on a disk, against a raw loop device.

PATH is a directory of the file system to be measured. It needs 4 GiB there and
fio, takes several minutes, and removes everything that it made. Anything else
that the machine does meanwhile is in the figures. A goal that is missed is shown
and is no failure.

What --only selects from:
%s`, partsByLine()),
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Rounds < 1 {
				return usageError{fmt.Errorf("--rounds %d: there has to be one at least", o.Rounds)}
			}
			if o.Only, err = partsToMeasure(only); err != nil {
				return usageError{err}
			}
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			o.Dir, o.Progress = args[0], cmd.ErrOrStderr()
			ctx := cmd.Context()
			if !signal.Ignored(unix.SIGHUP) { // as nohup has it
				// Also when the terminal goes, nothing may be left.
				var stop context.CancelFunc
				ctx, stop = signal.NotifyContext(ctx, unix.SIGHUP)
				defer stop()
			}
			results, err := bench.Run(ctx, o)
			if err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), results)
			} else {
				err = results.Print(cmd.OutOrStdout())
			}
			if err != nil || history == "" {
				return err
			}
			return results.AppendHistory(history)
		},
	}
	cmd.Flags().IntVar(&o.Rounds, "rounds", 3, "every figure is the median of so many")
	cmd.Flags().BoolVar(&o.Quick, "quick", false, "one second for each figure instead of two")
	cmd.Flags().StringVar(&only, "only", "", "regular expression for the names of the parts to measure (default: all)")
	cmd.Flags().StringVar(&history, "history", "", "file to add the result to, as one line of JSON")
	cmd.Flags().VarP(&output, "output", "o", "form of the output: table or json")
	return cmd
}

// partsByLine is the list of all parts for the help.
func partsByLine() string {
	var lines []string
	for few := range slices.Chunk(bench.Parts(), 7) {
		lines = append(lines, "  "+strings.Join(few, ", "))
	}
	return strings.Join(lines, ",\n")
}

// partsToMeasure is what --only asks for, nil if that is everything.
func partsToMeasure(only string) (*regexp.Regexp, error) {
	if only == "" {
		return nil, nil
	}
	re, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	if !slices.ContainsFunc(bench.Parts(), re.MatchString) {
		return nil, fmt.Errorf("--only %s: none of the parts is called so: %s", only, strings.Join(bench.Parts(), ", "))
	}
	return re, nil
}
