package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The groups below a machine's: ownCgroup for its first process and the
// services, PodsCgroup for what the kubelet runs. In version 2 a group with
// processes cannot have groups with controllers below it.
const (
	ownCgroup  = "system"
	PodsCgroup = "pods"
)

// namespaces are what a machine has for itself. Not users: a driver that
// mounts needs real root. Not cgroups: the container runtime would not find
// the mounts of version 1 there.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Start starts the machine. Its first process is command, which must call
// Init with the machine's directory. Network is called when the machine's
// namespaces are there and before its services are started; it is to set up
// the network with Command. If the machine's Spec has a Forward address, the
// machine passes connections to listener on to it.
//
// If Start fails or its caller dies, nothing of the machine runs.
func (s *Spec) Start(ctx context.Context, command []string, listener *net.TCPListener, network func() error) error {
	if s.Running() {
		return fmt.Errorf("the machine %s runs already", s.Name)
	}
	if err := s.prepare(); err != nil {
		return fmt.Errorf("preparing the machine %s: %w", s.Name, err)
	}
	for _, child := range []string{ownCgroup, PodsCgroup} {
		if err := s.Cgroup.Child(child).create(); err != nil {
			return fmt.Errorf("preparing the machine %s: %w", s.Name, err)
		}
	}
	err := s.start(ctx, command, listener, network)
	if err != nil {
		return fmt.Errorf("starting the machine %s: %w", s.Name, errors.Join(err, s.Kill()))
	}
	return nil
}

func (s *Spec) start(ctx context.Context, command []string, listener *net.TCPListener, network func() error) error {
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer goRead.Close()
	defer goWrite.Close()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reportRead.Close()
	defer reportWrite.Close()
	log, err := os.OpenFile(s.InitLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()

	// Nothing of the caller's may reach the machine, or whoever waits for the
	// end of the caller's output waits for the machine.
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{goRead, reportWrite}
	if s.Forward != "" {
		file, err := listener.File()
		if err != nil {
			return err
		}
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making its namespaces: %w", err)
	}
	go cmd.Wait() // so that it does not stay a zombie while this process lives
	goRead.Close()
	reportWrite.Close()

	first, err := identify(cmd.Process.Pid)
	if err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if err := writeJSON(s.path(processFile), first); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if err := network(); err != nil {
		return err
	}
	// A machine that failed already says why in its report.
	if _, err := goWrite.Write([]byte{1}); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	stop := context.AfterFunc(ctx, func() { reportRead.Close() })
	defer stop()
	report, err := io.ReadAll(reportRead)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case string(report) != reportOK:
		return fmt.Errorf("%s (see %s)", report, s.InitLog())
	}
	return nil
}

// first returns the machine's first process, or the zero process if that is not
// known: the machine was never started, or a crash of the host came when this
// was written, and nothing of the machine runs.
func (s *Spec) first() process {
	var p process
	if readJSON(s.path(processFile), &p) != nil {
		return process{}
	}
	return p
}

// Running reports whether the machine runs.
func (s *Spec) Running() bool { return s.first().alive() }

// PID is the number of the machine's first process on the host, or 0 if it
// does not run.
func (s *Spec) PID() int {
	if p := s.first(); p.alive() {
		return p.PID
	}
	return 0
}

// BootID is the boot id that the machine's programs see, another one at each
// start. The machine must run.
func (s *Spec) BootID() (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.PID()), "root", bootIDFile))
	if err != nil {
		return "", fmt.Errorf("reading the boot id of %s: %w", s.Name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Kill cuts the machine's power: all of its processes are killed, its loop
// devices detached, its cgroup removed. Its disk stays, and Start starts it
// again. Killing a machine that does not run cleans up after it. Only the
// Name, Dir and Cgroup of s are used.
func (s *Spec) Kill() error {
	// Before, since only while it runs can be seen what it has mounted.
	loops, err := s.loops()
	if err != nil {
		return fmt.Errorf("looking for the loop devices of the machine %s: %w", s.Name, err)
	}
	if err := s.first().kill(); err != nil {
		return fmt.Errorf("killing the machine %s: %w", s.Name, err)
	}
	if err := s.Cgroup.Remove(); err != nil {
		return err
	}
	for _, l := range loops {
		if err := l.detach(); err != nil {
			return err
		}
	}
	if err := os.Remove(s.path(processFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Command runs a program of the machine inside the machine, which must run.
func (s *Spec) Command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(s.PID()), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--",
		"/usr/bin/env", "-i", "PATH=" + s.Path, "HOME=/root", "TERM=" + os.Getenv("TERM"), "LANG=C.UTF-8"}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// NetCommand runs a program of the host in the machine's network.
func (s *Spec) NetCommand(ctx context.Context, args ...string) *exec.Cmd {
	net := filepath.Join("/proc", strconv.Itoa(s.PID()), "ns/net")
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + net, "--"}, args...)...)
}
