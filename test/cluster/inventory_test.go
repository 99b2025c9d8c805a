//go:build cluster

package cluster

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// leftovers are the traces of the tests' clusters on the host, by kind. Other
// people may use the machine at the same time, so only what bears the name of
// a cluster of the tests counts, where a thing has a name.
type leftovers struct {
	processes, mounts, loops, cgroups, interfaces, files map[string]bool
}

// ours matches what a cluster of the tests names: paths below the state
// directories.
var ours = regexp.MustCompile(regexp.QuoteMeta(stateDir))

func inventory(t *testing.T) leftovers {
	t.Helper()
	l := leftovers{
		processes:  map[string]bool{},
		mounts:     map[string]bool{},
		loops:      map[string]bool{},
		cgroups:    map[string]bool{},
		interfaces: map[string]bool{},
		files:      map[string]bool{},
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range commands {
		if b, err := os.ReadFile(name); err == nil && ours.Match(b) {
			l.processes[name+" "+strings.ReplaceAll(string(b), "\x00", " ")] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if ours.MatchString(line) {
			l.mounts[line] = true
		}
	}
	// How the host sees the backing file depends on where it was mounted, so
	// the test's own file is known by its last names.
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range backing {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "loop/image") {
			l.loops[name+" "+strings.TrimSpace(string(b))] = true
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/bowline-*")
	for _, name := range append(groups, glob("/sys/fs/cgroup/bowline-*")...) {
		l.cgroups[name] = true
	}
	for _, name := range glob("/sys/class/net/*") {
		l.interfaces[name] = true
	}
	for _, root := range []string{stateDir, stateDir + "-other"} {
		_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && name != root {
				l.files[name] = true
			}
			return nil
		})
	}
	return l
}

func glob(pattern string) []string {
	names, _ := filepath.Glob(pattern)
	return names
}

// compare fails for everything that was not there before.
func (l leftovers) compare(t *testing.T, now leftovers) {
	t.Helper()
	for _, kind := range []struct {
		name        string
		before, now map[string]bool
	}{
		{"process", l.processes, now.processes},
		{"mount", l.mounts, now.mounts},
		{"loop device", l.loops, now.loops},
		{"cgroup", l.cgroups, now.cgroups},
		{"network interface", l.interfaces, now.interfaces},
		{"file", l.files, now.files},
	} {
		for _, name := range slices.Sorted(maps.Keys(kind.now)) {
			if !kind.before[name] {
				t.Errorf("a %s is left: %s", kind.name, name)
			}
		}
	}
}

// machinePIDs reads the processes of the running machines from the status.
func machinePIDs(t *testing.T, c cli) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for line := range strings.Lines(c.run(t, "status")) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		if pid, err := strconv.Atoi(fields[1]); err == nil {
			pids[fields[0]] = pid
		}
	}
	if len(pids) == 0 {
		t.Fatal("the status names no process")
	}
	return pids
}

// runs reports whether a process runs. One that nobody has waited for yet does
// not.
func runs(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	return err == nil && !strings.Contains(string(b), "State:\tZ")
}
