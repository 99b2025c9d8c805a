package fuse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/exporttest"
)

// serveEnv in the environment makes the test binary a server of an export of
// that name, with the size in sizeEnv in bytes.
const (
	serveEnv = "BOWLINE_TEST_SERVE"
	sizeEnv  = "BOWLINE_TEST_SIZE"
	uringEnv = "BOWLINE_TEST_URING" // not empty: over io_uring
)

func TestMain(m *testing.M) {
	if name := os.Getenv(serveEnv); name != "" {
		if err := serveTest(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveTest(name string) error {
	size, err := strconv.ParseInt(os.Getenv(sizeEnv), 10, 64)
	if err != nil {
		return err
	}
	dev := exporttest.NewDevice(size, 4096)
	fmt.Println("begin")
	e, err := New(context.Background(), dev, Options{Name: name, IOUring: os.Getenv(uringEnv) != ""})
	if err != nil {
		return err
	}
	fmt.Println(e.Path())
	<-e.Done()
	return nil
}

// testServer is an export that another process serves.
type testServer struct {
	t    *testing.T
	name string
	path string
	cmd  *exec.Cmd
	out  *bufio.Reader
	gone bool
}

var serial atomic.Int64

// overBoth runs a test over the descriptor and over io_uring.
func overBoth(t *testing.T, test func(t *testing.T, uring bool)) {
	t.Run("descriptor", func(t *testing.T) { test(t, false) })
	t.Run("io_uring", func(t *testing.T) {
		needUring(t)
		test(t, true)
	})
}

// startServer starts a process that begins to export. Whatever it leaves behind
// is removed when the test ends.
func startServer(t *testing.T, size int64, uring bool) *testServer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s := &testServer{t: t, name: fmt.Sprintf("kill-%d-%d", os.Getpid(), serial.Add(1))}
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Env = append(os.Environ(), serveEnv+"="+s.name, sizeEnv+"="+strconv.FormatInt(size, 10))
	if uring {
		s.cmd.Env = append(s.cmd.Env, uringEnv+"=1")
	}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := Detach(ctx, s.name); err != nil && !errors.Is(err, export.ErrNotFound) {
			t.Errorf("detach: %v", err)
		}
		if _, ok := s.info(); ok {
			t.Error("the loop device is still there")
		}
	})
	s.out = bufio.NewReader(out)
	if line := s.line(); line != "begin" {
		t.Fatalf("server says %q", line)
	}
	return s
}

func (s *testServer) line() string {
	line, err := s.out.ReadString('\n')
	if err != nil {
		s.t.Fatalf("server: %v", err)
	}
	return strings.TrimSpace(line)
}

// kill kills the process and waits until it is gone with all its descriptors.
func (s *testServer) kill() {
	s.t.Helper()
	if s.gone {
		return
	}
	s.gone = true
	_ = s.cmd.Process.Kill()
	done := make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", s.cmd.Process.Pid))
		for _, name := range stacks {
			b, _ := os.ReadFile(name)
			s.t.Logf("%s\n%s", name, b)
		}
		s.t.Fatal("a killed server does not end")
	}
}

func (s *testServer) info() (Info, bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	infos, err := List(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, i := range infos {
		if i.Name == s.name {
			return i, true
		}
	}
	return Info{}, false
}

func (s *testServer) wantState(want State) {
	s.t.Helper()
	if i, ok := s.info(); !ok || i.State != want || i.Path != s.path {
		s.t.Errorf("listed as %+v, %v; want %s on %s", i, ok, want, s.path)
	}
}

// within fails the test if f does not return soon.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

func TestKillWithDirtyPages(t *testing.T) { overBoth(t, killWithDirtyPages) }

func killWithDirtyPages(t *testing.T, uring bool) {
	s := startServer(t, 64<<20, uring)
	s.path = s.line()
	s.wantState(Serving)
	fd, err := unix.Open(s.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	s.kill()
	within(t, "fsync", func() {
		if err := unix.Fsync(fd); err == nil {
			t.Log("fsync found nothing to write")
		}
	})
	s.wantState(Dead)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Detach(ctx, s.name); !errors.Is(err, export.ErrBusy) {
		t.Errorf("detached while it is open: %v", err)
	}
	within(t, "close", func() { unix.Close(fd) })
}

func TestKillWhileIdle(t *testing.T) { overBoth(t, killWhileIdle) }

func killWhileIdle(t *testing.T, uring bool) {
	s := startServer(t, 1<<20, uring)
	s.path = s.line()
	s.kill()
	s.wantState(Dead)
	if err := Detach(t.Context(), s.name); err != nil {
		t.Error(err)
	}
	if err := Detach(t.Context(), s.name); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("detached twice: %v", err)
	}
}

func TestKillUnderFileSystem(t *testing.T) { overBoth(t, killUnderFileSystem) }

func killUnderFileSystem(t *testing.T, uring bool) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			s := startServer(t, 320<<20, uring) // as large as XFS needs
			s.path = s.line()
			mustRun(t, "mkfs."+kind, "-q", s.path)
			dir := t.TempDir()
			mustRun(t, "mount", s.path, dir)
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			stop := make(chan struct{})
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					f, err := os.Create(filepath.Join(dir, fmt.Sprint(i%32)))
					if err != nil {
						continue
					}
					_, _ = f.Write(make([]byte, 1<<20))
					if i%8 == 0 {
						_ = f.Sync()
					}
					f.Close()
				}
			}()
			time.Sleep(500 * time.Millisecond)
			s.kill()
			close(stop)
			within(t, "the writer", func() { <-stopped })
			s.wantState(Dead)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := Detach(ctx, s.name); !errors.Is(err, export.ErrBusy) {
				t.Errorf("detached while it is mounted: %v", err)
			}
			within(t, "unmount", func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Errorf("unmount: %v", err)
				}
			})
		})
	}
}

// TestKillWhileAttaching kills at any moment of New, in which the server asks
// itself.
func TestKillWhileAttaching(t *testing.T) { overBoth(t, killWhileAttaching) }

func killWhileAttaching(t *testing.T, uring bool) {
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			s := startServer(t, 1<<20, uring)
			time.Sleep(time.Duration(rand.Int64N(int64(6 * time.Millisecond))))
			s.kill()
		})
	}
}

// TestDetachServed detaches what another process serves, which then ends.
func TestDetachServed(t *testing.T) { overBoth(t, detachServed) }

func detachServed(t *testing.T, uring bool) {
	s := startServer(t, 1<<20, uring)
	s.path = s.line()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := Detach(ctx, s.name); err != nil {
		t.Fatal(err)
	}
	s.gone = true
	within(t, "the server", func() {
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("server: %v", err)
		}
	})
}
