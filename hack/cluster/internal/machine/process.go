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
	start, _, err := readStat(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// alive reports whether the process runs still. One that ended and was not
// waited for does not.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := identify(p.PID)
	if err != nil || now != p {
		return false
	}
	_, state, err := readStat(p.PID)
	return err == nil && state != "Z" && state != "X"
}

// kill ends the process and returns when it is gone. One that is gone already,
// or whose number another process has, is left alone.
func (p process) kill() error {
	// FindProcess takes a descriptor of the process; checked after that, the
	// signal cannot reach another one.
	handle, err := os.FindProcess(p.PID)
	if err != nil {
		return fmt.Errorf("looking for process %d: %w", p.PID, err)
	}
	defer handle.Release()
	if !p.alive() {
		return nil
	}
	if err := handle.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	// The first process of a machine is gone when all others there are. That
	// takes as long as the slowest of them, which may write back a file system.
	return waitUntil(time.Minute, func() (bool, error) { return !p.alive(), nil },
		fmt.Sprintf("process %d is still there after SIGKILL", p.PID))
}

// readStat returns when a process started and its state.
func readStat(pid int) (start, state string, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", "", err
	}
	// The second field is the name in brackets and may contain anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", "", fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return fields[19], fields[0], nil
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
