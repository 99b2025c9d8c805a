package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/keeper"
	"golang.org/x/sys/unix"
)

// With "keep" as its first argument the test binary is a keeper, whose child is the
// test binary with "child", the name of a script and a directory.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "keep" && os.Args[1] != "child" {
		os.Exit(m.Run())
	}
	var err error
	if os.Args[1] == "keep" {
		err = keep(os.Args[2:])
	} else {
		err = child(os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func keep(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return keeper.Run(keeper.Config{
		Args: append([]string{"/proc/self/exe", "child"}, args...),
		Stop: ctx.Done(),
		Log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

// die ends the process as nothing in it can prevent.
func die() error {
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		return err
	}
	select {}
}

// pipeWith returns the end to read from of a pipe with s in it.
func pipeWith(s string) (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	_, err := unix.Write(p[1], []byte(s))
	return p[0], errors.Join(err, unix.Close(p[1]))
}

// child does what the script says, and counts in dir how often it was started.
func child(script, dir string) error {
	life := 0
	for {
		f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(life)), os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			f.Close()
			break
		}
		life++
	}
	c, held, err := keeper.Connect()
	if err != nil {
		return err
	}
	slices.SortFunc(held, func(a, b keeper.Held) int { return strings.Compare(a.Name, b.Name) })
	put := func(name, note string, contents ...string) error {
		var fds []int
		for _, s := range contents {
			fd, err := pipeWith(s)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			fds = append(fds, fd)
		}
		return c.Keep(name, []byte(note), fds...)
	}
	switch script {
	case "succeeds":
		return nil
	case "fails":
		return errors.New("no luck")
	case "dies and succeeds":
		if life < 3 {
			return die()
		}
		return nil
	case "fails with something held":
		if life == 0 {
			if err := put("a", "", "x"); err != nil {
				return err
			}
		}
		if life < 2 {
			return errors.New("no luck")
		}
		if len(held) != 1 {
			return fmt.Errorf("%d things held", len(held))
		}
		return nil
	case "holds":
		switch life {
		case 0:
			if len(held) != 0 {
				return fmt.Errorf("%d things held", len(held))
			}
			for i := range 300 {
				if err := put(fmt.Sprintf("many %d", i), "", "x"); err != nil {
					return err
				}
				if err := c.Drop(fmt.Sprintf("many %d", i-100)); err != nil {
					return err
				}
			}
			long := strings.Repeat("n", 20<<10)
			return errors.Join(put("a", "old", "x"), put("a", long, "first", "second"), put("b", "B", "third"), die())
		case 1:
			if len(held) != 102 || held[0].Name != "a" || len(held[0].Note) != 20<<10 || len(held[0].FDs) != 2 || string(held[1].Note) != "B" {
				return fmt.Errorf("%d things held, %s, %s", len(held), held[0].Name, held[1].Name)
			}
			buf := make([]byte, 100)
			n, err := unix.Read(held[0].FDs[1], buf)
			if err != nil || string(buf[:n]) != "second" {
				return fmt.Errorf("descriptor leads to %q, %v", buf[:n], err)
			}
			return die()
		}
		return nil
	case "misuses":
		if err := put("none", ""); err == nil {
			return errors.New("kept without a descriptor")
		}
		if err := put("long", strings.Repeat("n", 100<<10), "x"); err == nil {
			return errors.New("kept a note that is too long")
		}
		return errors.Join(put("a", "", "x"), c.Drop("a"))
	case "orphans":
		for range 5 {
			if err := exec.Command("/bin/sh", "-c", "sleep 1 &").Run(); err != nil {
				return err
			}
		}
		<-c.Stopping()
		return nil
	case "waits":
		if life == 0 {
			return die()
		}
		<-c.Stopping()
		if life == 1 {
			return die()
		}
		return nil
	}
	return fmt.Errorf("no script %q", script)
}

// start runs a keeper.
func start(t *testing.T, script string) (cmd *exec.Cmd, dir string) {
	t.Helper()
	dir = t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe", "keep", script, dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s := said.String(); t.Failed() {
			t.Logf("it said: %s", s)
		}
	})
	return cmd, dir
}

func lives(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		script string
		lives  int
		fails  bool
	}{
		{"succeeds", 1, false},
		{"fails", 1, true},
		{"dies and succeeds", 4, false},
		{"fails with something held", 3, false},
		{"holds", 3, false},
		{"misuses", 1, false},
	} {
		t.Run(c.script, func(t *testing.T) {
			cmd, dir := start(t, c.script)
			if err := cmd.Wait(); (err != nil) != c.fails {
				t.Errorf("ended: %v", err)
			}
			if n := lives(t, dir); n != c.lives {
				t.Errorf("started %d times, want %d", n, c.lives)
			}
		})
	}
}

// TestStop asks the keeper to end while its child waits for that. A child that dies
// over it has a successor, which is asked as well.
func TestStop(t *testing.T) {
	cmd, dir := start(t, "waits")
	for lives(t, dir) < 2 {
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if n := lives(t, dir); n != 3 {
		t.Errorf("started %d times", n)
	}
}

func TestNoProgram(t *testing.T) {
	err := keeper.Run(keeper.Config{Args: []string{"/nonexistent"}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestFirstProcess runs the keeper as the first process of a container, which
// inherits processes whose parents have ended.
func TestFirstProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a PID namespace")
	}
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "keep", "orphans", dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Skipf("no PID namespace: %v", err)
	}
	// All of them, then only the child.
	for _, n := range []int{6, 1} {
		for deadline := time.Now().Add(20 * time.Second); len(childrenOf(t, cmd.Process.Pid)) != n; {
			if time.Now().After(deadline) {
				t.Errorf("children: %q, want %d", childrenOf(t, cmd.Process.Pid), n)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// childrenOf returns the states of all processes whose parent is pid, zombies among
// them.
func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid …
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if fields[1] == strconv.Itoa(pid) {
			states = append(states, fields[0])
		}
	}
	return states
}
