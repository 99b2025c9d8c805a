package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// programDir is where the program under test is built, if a test needs it.
var programDir string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	var err error
	if programDir, err = os.MkdirTemp("", "bowline-bench-program-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programDir)
	return m.Run()
}

// build returns the path of the program.
var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programDir, "bowline")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/bowline").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program: %w\n%s", err, out)
	}
	return path, nil
})

// logWriter passes on lines to the log of a test.
type logWriter struct{ t *testing.T }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// newBench is a run of a moment on devices that are small. When the test ends it
// must have left nothing, whatever happened to it.
func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices and mounts")
	}
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			t.Skip("needs ", n.program)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	// The user of PostgreSQL has to get through; directories of tests are root's.
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range []string{dir, tmp} {
			if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
				t.Errorf("left in %s: %v, %v", d, left, err)
			}
			if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), d) {
				t.Errorf("something is still mounted below %s, or: %v", d, err)
			}
		}
		backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, f := range backing {
			if path, _ := os.ReadFile(f); strings.HasPrefix(string(path), dir) {
				t.Errorf("%s is still on %s", f, path)
			}
		}
	})
	return &bench{
		Options: Options{Program: program, Dir: dir, Rounds: 1, Progress: logWriter{t}},
		sizes: sizes{
			image: 128 * mib, database: 512 * mib, scale: 1, extents: 10_000,
			volumes: []int64{1 << 30, 16 << 40}, transfers: time.Second,
		},
		run: 100 * time.Millisecond,
	}
}

// TestRun measures everything. That a work was the one that is meant, the run
// itself finds out.
func TestRun(t *testing.T) {
	b := newBench(t)
	if testing.Short() {
		b.Only = regexp.MustCompile("memory|extents|filesystem|size|pgbench|randwrite|restore")
	}
	if err := b.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, r := range b.results.rows {
		keys[r.key] = true
		if len(r.got) == 0 || r.value() < 0 || r.against != "" && (r.value() == 0 || len(r.base) != len(r.got)) {
			t.Errorf("%s: %v to %v", r.key, r.got, r.base)
		}
	}
	for _, key := range []string{
		"memory-idle-anonymous", "memory-extents-anonymous", "frozen", "attach-1GiB", "commit-16TiB", "state0-randwrite-1",
		"state2-randwrite-32", "state1-first-randwrite-32", "state1-first-flushes-randwrite-1", "restore-sequential", "restore-random",
	} {
		if !keys[key] {
			t.Errorf("%s is not in the table", key)
		}
	}
	if _, err := findPostgres(); (err == nil) != keys["pgbench"] || (err == nil) != (len(b.results.skipped) == 0) {
		t.Errorf("pgbench measured: %v, not measured: %q, PostgreSQL: %v", keys["pgbench"], b.results.skipped, err)
	}
	var table strings.Builder
	if err := b.results.Print(&table); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &table)
	out, err := json.Marshal(b.results)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(out, &got); err != nil || len(got.Rows) != len(b.results.rows) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestInterrupted ends each part somewhere in the middle of it.
func TestInterrupted(t *testing.T) {
	for part, after := range map[string]time.Duration{
		"memory": 500 * time.Millisecond, "filesystem": time.Second, "pgbench": 3 * time.Second, "^write$": 2 * time.Second,
	} {
		t.Run(strings.Trim(part, "^$"), func(t *testing.T) {
			b := newBench(t)
			b.Only, b.Rounds = regexp.MustCompile(part), 1000
			if part == "pgbench" {
				if _, err := findPostgres(); err != nil {
					t.Skip(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if err := b.all(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// TestInterruptedMount ends it while the program that mounts has mounted already and
// has not ended yet.
func TestInterruptedMount(t *testing.T) {
	b := newBench(t)
	mount, err := exec.LookPath("mount")
	if err != nil {
		t.Skip("needs mount: ", err)
	}
	dir := t.TempDir()
	mounted := filepath.Join(dir, "mounted")
	slow := fmt.Sprintf("#!/bin/sh\n%s \"$@\" && touch %s && exec sleep 2\n", mount, mounted)
	if err := os.WriteFile(filepath.Join(dir, "mount"), []byte(slow), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := os.Stat(mounted); err == nil {
				cancel()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	b.Only = regexp.MustCompile("filesystem")
	if err := b.all(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// Nothing is made where it cannot work.
func TestCannotMeasure(t *testing.T) {
	b := newBench(t)
	dir := b.Dir
	fails := func(want string) {
		t.Helper()
		if err := b.all(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want to be told of %q: %v", want, err)
		}
	}
	b.Dir = filepath.Join(dir, "nothing")
	fails("no such file")
	b.Dir = b.Program
	fails("no directory")
	b.Dir = dir
	b.image = 1 << 60
	fails("MiB free")
	t.Setenv("PATH", t.TempDir())
	fails("apt-get install fio")
}
