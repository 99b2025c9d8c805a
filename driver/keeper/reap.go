package keeper

import (
	"os"
	"os/signal"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// children are the processes that the keeper has started, as opposed to those that
// the first process of a container gets when their parents die, and has to wait
// for.
type children struct {
	mu   sync.Mutex
	pids map[int]bool // guarded by mu; until they have been waited for
}

// start starts a process.
func (c *children) start(args []string, attr *os.ProcAttr) (*os.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := os.StartProcess(args[0], args, attr)
	if err == nil {
		if c.pids == nil {
			c.pids = map[int]bool{}
		}
		c.pids[p.Pid] = true
	}
	return p, err
}

// wait waits for a process that start has started.
func (c *children) wait(p *os.Process) (*os.ProcessState, error) {
	state, err := p.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pids, p.Pid)
	return state, err
}

// reapOrphans waits for all others, until the returned function is called.
func (c *children) reapOrphans() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-signals:
				for c.reapOrphan() {
				}
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// reapOrphan waits for one orphan that has ended, if the first process that has is
// one, and tells whether it did.
func (c *children) reapOrphan() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A look first: who waits for any process takes it away from who started it.
	var info struct {
		signo, errno, code int32
		_                  int32
		pid                int32
		_                  [108]byte
	}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
		unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if errno != 0 || info.pid == 0 || c.pids[int(info.pid)] {
		return false
	}
	_, err := unix.Wait4(int(info.pid), nil, unix.WNOHANG, nil)
	return err == nil
}
