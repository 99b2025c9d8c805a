package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Cgroup is a group of that path in every cgroup hierarchy of the host,
// versions 1 and 2 alike.
type Cgroup string

// Child is a group below c.
func (c Cgroup) Child(name string) Cgroup { return Cgroup(path.Join(string(c), name)) }

// A hierarchy is a mounted cgroup file system.
type hierarchy struct {
	mount string
	v2    bool
}

func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []hierarchy
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 1 {
			continue
		}
		if kind[0] == "cgroup" || kind[0] == "cgroup2" {
			all = append(all, hierarchy{mount: fields[4], v2: kind[0] == "cgroup2"})
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return all, nil
}

// create makes the group in every hierarchy, ready for processes and for
// groups below that have controllers.
func (c Cgroup) create() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h.mount
		for _, part := range strings.Split(strings.Trim(string(c), "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if h.v2 {
				enableControllers(parent)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making a cgroup: %w", err)
			}
			if !h.v2 {
				if err := inheritCpuset(parent, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// enableControllers gives the groups below dir all controllers that dir has.
// What the kernel refuses one by one (a controller that is in use elsewhere) is
// not there for containers either; the container runtime says so when it
// needs it.
func enableControllers(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, name := range strings.Fields(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644)
	}
}

// inheritCpuset copies the parent's processors and memory nodes: in version 1
// a new group has none and takes no processes.
func inheritCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another controller's hierarchy
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) != "" {
			continue
		}
		want, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), want, 0o644); err != nil {
			return fmt.Errorf("giving a cgroup its parent's %s: %w", name, err)
		}
	}
	return nil
}

// join moves the calling process into the group, in every hierarchy.
func (c Cgroup) join() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		name := filepath.Join(h.mount, string(c), "cgroup.procs")
		if err := os.WriteFile(name, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("entering a cgroup: %w", err)
		}
	}
	return nil
}

// Processes lists the processes in the group and below.
func (c Cgroup) Processes() ([]int, error) {
	var pids []int
	err := c.walk(func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, field := range strings.Fields(string(b)) {
			// 0 stands for a process of another process namespace.
			if pid, err := strconv.Atoi(field); err == nil && pid != 0 && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// Remove kills what is left in the group and below, and removes them. It is
// for a group that is one's own: whatever is in there was started there.
func (c Cgroup) Remove() error {
	var last error
	err := waitUntil(20*time.Second, func() (bool, error) {
		pids, err := c.Processes()
		if err != nil {
			return false, err
		}
		for _, pid := range pids {
			c.kill(pid)
		}
		last = c.rmdir()
		return last == nil, nil
	}, "it is still busy after 20 seconds")
	if err != nil {
		return fmt.Errorf("removing the cgroup %s: %w (%v)", c, err, last)
	}
	return nil
}

// kill kills the process of that number if it is in the group or below. It may
// have ended and its number be another's by now, so that is looked up when the
// signal can reach nobody else any more. What it cannot kill, the caller sees
// when it looks again.
func (c Cgroup) kill(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(groups)) {
		// HIERARCHY:CONTROLLERS:GROUP
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[2] == string(c) || strings.HasPrefix(fields[2], string(c)+"/")) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return
		}
	}
}

// rmdir removes the group and those below in every hierarchy, innermost first.
func (c Cgroup) rmdir() error {
	var dirs []string
	if err := c.walk(func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
		return err
	}
	var failed error
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("%s: %w", dir, err)
		}
	}
	return failed
}

// walk calls f for the group and those below, in every hierarchy, parents
// first.
func (c Cgroup) walk(f func(dir string) error) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		err := filepath.WalkDir(filepath.Join(h.mount, string(c)), func(dir string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.IsDir() {
				return err
			}
			return f(dir)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
