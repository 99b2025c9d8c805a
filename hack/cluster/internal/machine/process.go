package machine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one process for all time: numbers are used again, the pair of a
// number and a start time within one boot is not.
type process struct {
	PID   int
	Start string // in clock ticks since boot
	Boot  string // the kernel's boot id
}

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// identify returns the process that has this number now.
func identify(pid int) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// open returns a descriptor of the process, or ErrProcessDone if it ended.
// Checked after the descriptor was taken, so it is no other process's.
func (p process) open() (fd int, err error) {
	if p.PID == 0 {
		return -1, os.ErrProcessDone
	}
	fd, err = unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, fmt.Errorf("looking for process %d: %w", p.PID, err)
	}
	now, err := identify(p.PID)
	if err != nil || now != p || ended(fd, 0) {
		unix.Close(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// ended waits that long at most for a process to end, with all of its threads.
// Whether its parent has waited for it does not matter.
func ended(fd int, limit time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll(poll, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// alive reports whether the process runs still.
func (p process) alive() bool {
	fd, err := p.open()
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// killLimit is for the slowest process of a machine to end; it may be writing
// back a file system.
const killLimit = time.Minute

// kill ends the process and returns when it is gone. One that is gone already,
// or whose number another process has, is left alone. The first process of a
// machine is gone when all others there are.
func (p process) kill() error {
	fd, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	if !ended(fd, killLimit) {
		return fmt.Errorf("process %d is still there %v after SIGKILL", p.PID, killLimit)
	}
	return nil
}

// startTime returns when a process started.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the name in brackets and may contain anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return fields[19], nil
}

// waitUntil asks done every 20 milliseconds until it says yes or fails, or
// limit is over; then the error is what.
func waitUntil(limit time.Duration, done func() (bool, error), what string) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New(what)
		}
	}
}
