package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// A guard ends the server if this process dies before it does so itself: it was
// killed, or a test ran into its time limit.
type guard struct {
	// The end of its standard input tells it that this process is no more.
	cmd *exec.Cmd
}

// guardScript gets the numbers of processes, a bar, and directories. What is in
// them is worth nothing, so nothing has to end in order.
const guardScript = `
cat >/dev/null
while [ "$1" != "|" ]; do kill -KILL "$1"; shift; done
shift
sleep 1
rm -rf -- "$@"
`

func newGuard(environment *envtest.Environment) (*guard, error) {
	processes, err := children("etcd", "kube-apiserver")
	if err != nil {
		return nil, err
	}
	args := append([]string{"-c", guardScript, "sh"}, processes...)
	args = append(args, "|")
	if e := environment.ControlPlane.Etcd; e != nil && e.DataDir != "" {
		args = append(args, e.DataDir)
	}
	if a := environment.ControlPlane.APIServer; a != nil && a.CertDir != "" {
		args = append(args, a.CertDir)
	}
	cmd := exec.Command("sh", args...)
	cmd.Dir = "/"
	// An interrupt at the terminal ends the whole group; not the guard.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a guard of the API server: %w", err)
	}
	return &guard{cmd}, nil
}

// dismiss ends the guard without it ending anything.
func (g *guard) dismiss() error {
	if err := g.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = g.cmd.Wait() // "signal: killed"
	return nil
}

// children returns the processes that this one has started with these names.
func children(names ...string) ([]string, error) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		return nil, errors.Join(err, errors.New("this kernel does not tell who a process has started"))
	}
	var found []string
	for _, t := range tasks {
		pids, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(pids)) {
			comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
			for _, name := range names {
				if err == nil && string(bytes.TrimSpace(comm)) == name {
					found = append(found, pid)
				}
			}
		}
	}
	return found, nil
}
