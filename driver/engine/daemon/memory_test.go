package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
)

// group is a memory cgroup.
type group struct {
	t          *testing.T
	path       string
	limit, max string // files of the limit and of the most memory that was in use
}

// newGroup makes a group without a limit, and without swap.
func newGroup(t *testing.T, name string) *group {
	t.Helper()
	for _, c := range []struct{ root, limit, max, swap string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.swappiness"},
		{"/sys/fs/cgroup", "memory.max", "memory.peak", "memory.swap.max"},
	} {
		g := &group{t: t, path: filepath.Join(c.root, fmt.Sprintf("bowline-test-%s-%d", name, os.Getpid())), limit: c.limit, max: c.max}
		if os.Mkdir(g.path, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			// A process that has ended may be in it for a moment.
			for range 100 {
				if err := unix.Rmdir(g.path); !errors.Is(err, unix.EBUSY) {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("%s is in use", g.path)
		})
		if _, err := os.Stat(filepath.Join(g.path, c.limit)); err == nil {
			// Where there is no swap the file may be missing.
			_ = os.WriteFile(filepath.Join(g.path, c.swap), []byte("0"), 0)
			return g
		}
	}
	t.Skip("needs a memory cgroup that it may make groups in")
	return nil
}

// command is a command whose process is in the group from its beginning.
func (g *group) command(name string, args ...string) *exec.Cmd {
	enter := []string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.path, "cgroup.procs"), name}
	return exec.Command("sh", append(enter, args...)...)
}

// peak is the most memory that was in use, in bytes.
func (g *group) peak() int64 {
	b, _ := os.ReadFile(filepath.Join(g.path, g.max))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// setLimit changes how much memory its processes may use, in bytes.
func (g *group) setLimit(limit int64) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.path, g.limit), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		g.t.Fatal(err)
	}
}

// breaker returns what lets every request of the volume fail, those that wait for
// themselves as well. Nothing else helps then.
func (m *mounted) breaker() func() {
	m.t.Helper()
	f, err := os.Open(m.device)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		m.t.Fatal(err)
	}
	dir := m.t.TempDir()
	if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			m.t.Error(err)
		}
	})
	abort := filepath.Join(dir, strconv.Itoa(int(unix.Minor(info.Device))), "abort")
	return func() {
		if err := os.WriteFile(abort, []byte("1"), 0); err != nil {
			m.t.Error(err)
		}
	}
}

// TestLowMemory: with little memory for the engine and for those who write, and much
// more dirtied than that, everything is written. With too little the server is killed,
// again and again, and everything is written all the same. How much is too little
// depends on how much of an idle engine's memory could be reclaimed: less and less is
// tried.
func TestLowMemory(t *testing.T) {
	for _, c := range []struct {
		name   string
		shares []int64 // percents of the memory of an idle engine that it may use, until it is killed
		kills  bool
	}{
		{"enough", []int64{320}, false},
		{"too little", []int64{140, 130, 120, 110}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			own, pods := newGroup(t, "engine"), newGroup(t, "pods")
			pods.setLimit(64 << 20)
			m := startWith(t, own.command).mount("ext4", sparse(t, t.TempDir(), 1<<30))
			if !m.get().SurvivesRestart {
				t.Skip("this kernel cannot send requests again")
			}
			stop := m.breaker()
			idle := own.peak()
			source := filepath.Join(t.TempDir(), "source")
			if err := os.WriteFile(source, noise(1, 64<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			copies := func(args ...string) {
				t.Helper()
				hangs := time.AfterFunc(25*time.Second, func() {
					t.Error("somebody waits for himself")
					stop()
				})
				defer hangs.Stop()
				var wg sync.WaitGroup
				for i := range 3 {
					to := filepath.Join(m.dir, "copy"+strconv.Itoa(i))
					cmd := pods.command("dd", append([]string{"if=" + source, "of=" + to, "bs=1M", "conv=fsync,notrunc", "status=none"}, args...)...)
					wg.Go(func() {
						if out, err := cmd.CombinedOutput(); err != nil {
							t.Errorf("%v: %v: %s", cmd.Args, err, out)
						}
					})
				}
				wg.Wait()
			}
			copies("count=32")
			killed := false
			for _, share := range c.shares {
				m.checkpoint()
				m.kill(m.name()) // the next one is as small as the first was
				server := m.server()
				own.setLimit(idle * share / 100)
				copies()
				for i := range 3 {
					mustRun(t, "cmp", source, filepath.Join(m.dir, "copy"+strconv.Itoa(i)))
				}
				killed = m.server() != server
				own.setLimit(1 << 40)
				m.wait(func() error {
					_, err := m.Get(t.Context(), &enginepb.GetRequest{Name: m.name()})
					return err
				})
				m.rollBack()
				for i := range 3 {
					mustRun(t, "cmp", "-n", strconv.Itoa(32<<20), source, filepath.Join(m.dir, "copy"+strconv.Itoa(i)))
				}
				if killed {
					break
				}
			}
			if killed != c.kills {
				t.Errorf("killed: %t, with %v %% of the %d MiB of an idle engine", killed, c.shares, idle>>20)
			}
		})
	}
}

// TestFlusher: no thread of the server waits for dirty pages to be written when it
// needs memory.
func TestFlusher(t *testing.T) {
	runtime.LockOSThread() // never unlocked: it ends with the test
	before := threadFlags(t, "/proc/thread-self/stat")
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		t.Skipf("needs CAP_SYS_RESOURCE: %v", err)
	}
	flusher := threadFlags(t, "/proc/thread-self/stat") &^ before
	e := start(t)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", e.server()))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads of the server: %v, %v", threads, err)
	}
	for _, path := range threads {
		if flags := threadFlags(t, path); flags&flusher != flusher {
			t.Errorf("%s: flags %#x, not %#x", path, flags, flusher)
		}
	}
}

// threadFlags are the flags that the kernel shows of a thread.
func threadFlags(t *testing.T, path string) uint64 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return flags
}
