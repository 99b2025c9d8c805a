package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// restartDelay is between the end of a service and its next start.
const restartDelay = time.Second

// A supervisor is the part of the first process that has children: the
// services, and every process of the machine whose parent ended.
type supervisor struct {
	spec *Spec
	mu   struct {
		sync.Mutex
		running map[int]*Service // by process number
	}
}

// supervise runs the services for ever.
func supervise(s *Spec) error {
	v := &supervisor{spec: s}
	v.mu.running = make(map[int]*Service)
	for i := range s.Services {
		if err := v.start(&s.Services[i]); err != nil {
			return err
		}
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			// Every service is between two starts.
			time.Sleep(restartDelay)
		case err != nil:
			return fmt.Errorf("waiting for processes: %w", err)
		default:
			v.ended(pid, status)
		}
	}
}

// start runs the service once, its output at the end of its log.
func (v *supervisor) start(service *Service) error {
	program, err := exec.LookPath(service.Args[0])
	if err != nil {
		return fmt.Errorf("starting %s: %w", service.Name, err)
	}
	log, err := os.OpenFile("/var/log/services/"+service.Name+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()

	// ended must not see the process before it is in the table.
	v.mu.Lock()
	defer v.mu.Unlock()
	// Not os/exec: its Wait and the loop above would take each other's
	// processes.
	pid, err := syscall.ForkExec(program, service.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + v.spec.Path, "HOME=/root", "LANG=C.UTF-8"},
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("starting %s: %w", service.Name, err)
	}
	v.mu.running[pid] = service
	logf("%s started, process %d", service.Name, pid)
	return nil
}

// ended is told each process that was waited for.
func (v *supervisor) ended(pid int, status unix.WaitStatus) {
	v.mu.Lock()
	service := v.mu.running[pid]
	delete(v.mu.running, pid)
	v.mu.Unlock()
	if service == nil {
		return
	}
	if status.Signaled() {
		logf("%s (process %d) was killed by %v", service.Name, pid, status.Signal())
	} else {
		logf("%s (process %d) ended with status %d", service.Name, pid, status.ExitStatus())
	}
	time.AfterFunc(restartDelay, func() { v.startAgain(service) })
}

func (v *supervisor) startAgain(service *Service) {
	if err := v.start(service); err != nil {
		logf("%v", err)
		time.AfterFunc(restartDelay, func() { v.startAgain(service) })
	}
}

// logf writes a line to the machine's init.log.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format("2006-01-02T15:04:05.000Z ")+format+"\n", args...)
}
