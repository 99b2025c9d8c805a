package device

import (
	"encoding/json"
	"os"
	"os/exec"
	signals "os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// needFio skips a test where `bowline device bench` cannot work.
func needFio(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("SKIPPED: needs fio")
	}
}

// The shortest run there is gives its table, or JSON, and a line of history only
// if that is asked for.
func TestBench(t *testing.T) {
	h := newHost(t)
	needFio(t)
	dir, history := t.TempDir(), filepath.Join(h.dir, "new", "history.jsonl")
	table := h.must("bench", "--quick", "--rounds", "1", "--only", "^size$", dir)
	if !strings.Contains(table, "commit, volume of 16 TiB") || !strings.HasPrefix(table, "WORK") {
		t.Errorf("the table:\n%s", table)
	}
	if _, err := os.Stat(history); err == nil {
		t.Error("there is a history that nobody asked for")
	}
	var report struct {
		Rounds int
		Rows   []struct {
			Key, Work, Unit string
			Figures         []float64
		}
	}
	out := h.must("bench", "--quick", "--rounds", "2", "--only", "^memory$", "--output", "json", "--history", history, dir)
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if report.Rounds != 2 || len(report.Rows) != 3 || report.Rows[0].Key != "memory-idle" || report.Rows[0].Unit != "bytes" || len(report.Rows[0].Figures) != 2 {
		t.Errorf("%+v", report)
	}
	line, err := os.ReadFile(history)
	if err != nil || strings.Count(string(line), "\n") != 1 || !strings.Contains(string(line), `"memory-idle":`) {
		t.Errorf("the history: %v: %s", err, line)
	}
	nothingIn(t, dir)
}

func TestBenchRefuses(t *testing.T) {
	h := newHost(t)
	needFio(t)
	file := filepath.Join(h.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.exits(exitUsage, "bench")
	h.exits(exitUsage, "bench", h.dir, h.dir)
	h.exits(exitUsage, "bench", "--rounds", "0", h.dir)
	h.exits(exitUsage, "bench", "--output", "xml", h.dir)
	for _, only := range []string{"(", "nonsense"} {
		h.exits(exitUsage, "bench", "--only", only, h.dir)
	}
	h.exits(exitFailed, "bench", filepath.Join(h.dir, "nothing"))
	h.exits(exitFailed, "bench", file)
	t.Setenv("PATH", h.dir)
	if r := h.exits(exitFailed, "bench", h.dir); !strings.Contains(r.stderr, "apt-get install fio") {
		t.Errorf("want to be told how to get fio: %s", r)
	}
}

// A run that is interrupted leaves nothing.
func TestBenchInterrupted(t *testing.T) {
	newHost(t)
	needFio(t)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if signal == syscall.SIGHUP && signals.Ignored(signal) {
			t.Log("without a hangup, which this process ignores, as with nohup")
			continue
		}
		dir, tmp := t.TempDir(), t.TempDir()
		cmd := exec.Command(program, "device", "bench", "--rounds", "100", "--only", "^memory$", dir)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		var said output
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a process serves a volume", func() bool {
			sockets, _ := filepath.Glob(filepath.Join(tmp, "*", "*.sock"))
			return len(sockets) > 0
		})
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			cmd.Process.Kill()
			t.Fatalf("%v: it does not end", signal)
		}
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(said.String(), "interrupted") {
			t.Errorf("%v: exit code %d: %s", signal, code, &said)
		}
		checkForRaces(t, said.String())
		nothingIn(t, dir)
		nothingIn(t, tmp)
	}
}

func nothingIn(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("in %s: %v, %v", dir, left, err)
	}
}
