// Package bench measures what a Bowline mapping costs on a disk. Each work runs
// on a raw loop device and on mapped devices in turn, all of them over images in
// one directory, so that a slow machine or a busy disk makes both slower; what
// counts is the ratio. It needs root, fio and mkfs.ext4. The mappings are served
// by processes of their own, as users attach them.
//
// A figure that misses its goal is shown and is not an error.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what is measured, and how.
type Options struct {
	Program  string         // path of the bowline that is measured
	Dir      string         // directory of the file system that is measured on
	Rounds   int            // every figure is the median of so many, 1 or more
	Quick    bool           // one second for each figure instead of two
	Only     *regexp.Regexp // the names of the parts to measure (Parts); nil: all
	Progress io.Writer      // gets a line for each thing that begins
}

// bench is one run.
type bench struct {
	Options
	sizes
	run     time.Duration // how long a work runs for one figure
	results *Results
	images  string // directory for the images
}

// sizes say how large things are; tests do with less.
type sizes struct {
	image     int64         // bytes of each image that is compared, a multiple of 16 MiB
	database  int64         // bytes of each image with a PostgreSQL on it
	scale     int           // of pgbench, 16 MB each
	extents   int           // free extents of the volume whose map is large
	volumes   []int64       // bytes of the volumes that show what depends on the size
	transfers time.Duration // that pgbench runs for one figure, in whole seconds
}

func usualSizes(run time.Duration) sizes {
	return sizes{
		image: 1 << 30, database: 1 << 30, scale: 10, extents: 1_000_000,
		volumes: []int64{1 << 30, 16 << 30, 256 << 30, 4 << 40, 16 << 40},
		// Half of a figure of pgbench is what its first overwrites cost.
		transfers: 5 * run,
	}
}

// part is what is measured in one go.
type part struct {
	name string
	do   func(*bench, context.Context) error
}

// alone are the parts that need no devices in common.
var alone = []part{
	{"memory", (*bench).memory},
	{"idle", (*bench).idle},
	{"extents", (*bench).extentsMemory},
	{"filesystem", (*bench).filesystem},
	{"size", (*bench).volumeSizes},
	{"pgbench", (*bench).pgbench},
	{"restore", (*bench).restore},
}

// Parts returns the names of what can be measured alone, in the order of the
// table.
func Parts() []string {
	var list []string
	for _, p := range alone {
		list = append(list, p.name)
	}
	for _, w := range works {
		list = append(list, w.key)
	}
	return list
}

func (b *bench) wants(part string) bool { return b.Only == nil || b.Only.MatchString(part) }

// Run measures, and leaves nothing behind, also if it fails or ctx is done.
func Run(ctx context.Context, o Options) (*Results, error) {
	run := 2 * time.Second
	if o.Quick {
		run = time.Second
	}
	b := &bench{Options: o, sizes: usualSizes(run), run: run}
	if err := b.all(ctx); err != nil {
		return nil, err
	}
	return b.results, nil
}

func (b *bench) all(ctx context.Context) (err error) {
	b.results = &Results{date: time.Now(), rounds: b.Rounds, run: b.run}
	if err := b.check(); err != nil {
		return err
	}
	// Children that serve a device are told to end if this thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dir, err := os.MkdirTemp(b.Dir, "bowline-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if b.images, err = filepath.Abs(dir); err != nil {
		return err
	}
	for _, p := range append(alone[:len(alone):len(alone)], part{"", (*bench).blocks}) {
		if p.name != "" && !b.wants(p.name) {
			continue
		}
		if err := p.do(b, ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx) // what was interrupted fails in many ways
			}
			return err
		}
	}
	b.progress("done in %s", time.Since(b.results.date).Round(time.Second))
	return nil
}

// needed are the programs without which nothing can be measured, and the packages
// that they are in.
var needed = []struct{ program, pkg string }{{"fio", "fio"}, {"mkfs.ext4", "e2fsprogs"}}

// check finds out before anything is made whether it can work.
func (b *bench) check() error {
	if os.Geteuid() != 0 {
		return errors.New("measuring needs root, for loop devices and mounts")
	}
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			return fmt.Errorf("%s is not installed, and the measurement needs it: 'apt-get install %s' on Debian and Ubuntu, 'dnf install %[2]s' on Fedora and RHEL", n.program, n.pkg)
		}
	}
	info, err := os.Stat(b.Dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory; it has to be one of the file system that is to be measured", b.Dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(b.Dir, &fs); err != nil {
		return fmt.Errorf("free space of %s: %w", b.Dir, err)
	}
	if has, needs := int64(fs.Bavail)*fs.Bsize, 4*b.image; has < needs {
		return fmt.Errorf("%s has %d MiB free, and the measurement needs %d MiB", b.Dir, has/mib, needs/mib)
	}
	return nil
}

// progress tells what is going on.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.Progress, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// skip notes that something is not measured, and why.
func (b *bench) skip(what, why string) {
	line := what + ": " + why
	if slices.Contains(b.results.skipped, line) {
		return // in an earlier round
	}
	b.progress("not measured: %s", line)
	b.results.skipped = append(b.results.skipped, line)
}
