// Command bench measures what a Bowline mapping costs, and prints it as ratios:
// each work runs on a raw loop device and on mapped devices in turn, all of them
// over images in the same directory, so a slow machine or a busy disk makes both
// slower. It needs root, fio and about 6 GiB in that directory.
//
// A figure that misses its goal is shown and is not a failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line.
type options struct {
	bowline string        // the program
	dir     string        // where a directory for the images is made
	history string        // file that gets a line for each run; none if empty
	rounds  int           // every figure is the median of so many
	run     time.Duration // how long fio runs for one figure
	quick   bool
}

func main() {
	o := options{run: 2 * time.Second}
	flag.StringVar(&o.bowline, "bowline", "bin/bowline", "the bowline `program` to measure")
	flag.StringVar(&o.dir, "dir", ".", "`directory` for the images; its file system is what is measured on")
	flag.StringVar(&o.history, "history", "bench/history.jsonl", "`file` to add the result to as one line of JSON; empty for none")
	flag.IntVar(&o.rounds, "rounds", 3, "`number` of rounds; every figure is the median of them")
	flag.BoolVar(&o.quick, "quick", false, "one second for each figure instead of two")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if o.quick {
		o.run = time.Second
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	// Children that serve a device are told to end if this thread ends.
	runtime.LockOSThread()
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run does all measurements and leaves nothing behind but the line in the
// history.
func run(ctx context.Context, o options) (err error) {
	bowline, err := filepath.Abs(o.bowline)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "bowline-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	b := &bench{
		options: o,
		results: &results{},
		images:  dir,
		attach:  func(ctx context.Context, image string) (*mapped, error) { return attach(ctx, bowline, image) },
		bowline: bowline,
	}
	began := time.Now()
	for _, part := range []func(context.Context) error{b.memory, b.filesystem, b.blocks} {
		if err := part(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return err
		}
	}
	progress("done in %s", time.Since(began).Round(time.Second))
	if err := b.results.print(os.Stdout); err != nil {
		return err
	}
	if o.history == "" {
		return nil
	}
	return appendHistory(o.history, newRecord(o, b.results, began))
}

// bench is one run of this program.
type bench struct {
	options
	results *results
	images  string // directory for the images
	bowline string
	attach  func(ctx context.Context, image string) (*mapped, error)
}

// progress tells what is going on. The results go to the standard output.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
