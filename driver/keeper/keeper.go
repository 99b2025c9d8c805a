// Package keeper lets a process that serves others die without them noticing more
// than a pause. A keeper is a second, small process: it starts the first, the
// child, starts it again at once when it dies, and meanwhile holds the descriptors
// without which the kernel would give up. It knows nothing of what they are for.
//
// # The connection
//
// Child and keeper talk over a socket pair of packets, each a message in JSON and
// sometimes a descriptor. To a new child the keeper sends everything that it holds
// (Connect). From then on the child says what is to be held (Client.Keep, Drop).
//
// # When a child is dead
//
// When the keeper finds the socket closed. It was closed with all other descriptors
// of the child, so at that moment no thread of it that used one of them is in a
// system call any more. It is not waited for that the child is gone as a process:
// that may need its successor, for a thread of it may wait for an answer that only
// the successor can give (see aside in package export/fuse).
package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ConnFD is the descriptor of the socket in the child. Config.Files follow it.
const ConnFD = 3

// Config says what a keeper runs.
type Config struct {
	// Args are the command line of the child. Args[0] is the path of the
	// program.
	Args []string

	// Files are open in every child, from descriptor ConnFD+1 on.
	Files []*os.File

	// Stop, when closed, makes the keeper ask the child to end (Client.Stopping).
	Stop <-chan struct{}

	Log *slog.Logger
}

// Limits of the time between the starts of two children that died at once.
const (
	soon     = 100 * time.Millisecond // a child that lives shorter died at once
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

// exitPatience is how long a child whose descriptors are closed has to tell how it
// ended.
const exitPatience = time.Second

// held is what the keeper holds by one name.
type held struct {
	note []byte
	fds  []int
}

// keeper is a keeper that runs.
type keeper struct {
	Config
	held     map[string]held
	children children
}

// Run starts the child, and again whenever it dies. It returns nil when a child has
// ended by itself without an error, and an error when one ended with an error, or
// could not be started, and nothing is held that would be lost; or else never.
func Run(c Config) error {
	k := &keeper{Config: c, held: map[string]held{}}
	defer k.dropAll()
	if os.Getpid() == 1 {
		defer k.children.reapOrphans()()
	}
	var pause time.Duration
	for {
		began := time.Now()
		end, err := k.run()
		switch {
		case err != nil && len(k.held) == 0:
			return err
		case err != nil:
			k.Log.Error("starting the process that serves", "error", err)
		case end.clean():
			return nil
		case end.failed() && len(k.held) == 0:
			return fmt.Errorf("the process that serves has ended: %s", end)
		default:
			k.Log.Error("the process that serves has died", "how", end.String(), "held", len(k.held), "lived", time.Since(began))
		}
		if time.Since(began) >= soon {
			pause = 0
			continue
		}
		if pause > 0 {
			time.Sleep(pause)
		}
		pause = min(max(2*pause, minPause), maxPause)
	}
}

// run starts a child and serves it until it is dead.
func (k *keeper) run() (ending, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ending{}, fmt.Errorf("making a socket: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	conn, err := fileConn(pair[0])
	if err != nil {
		return ending{}, err
	}
	defer conn.Close()
	p, err := k.children.start(k.Args, &os.ProcAttr{
		Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr, theirs}, k.Files...),
	})
	if err != nil {
		return ending{}, fmt.Errorf("starting %s: %w", k.Args[0], err)
	}
	theirs.Close()
	exited := make(chan ending, 1)
	go func() {
		state, err := k.children.wait(p)
		exited <- ending{state, err}
	}()
	served := make(chan struct{})
	go k.tellToStop(conn, served)
	err = k.serve(conn)
	close(served)

	if err != nil {
		k.Log.Error("serving the process that serves", "error", err)
	}
	_ = p.Kill() // it is dead already, unless there was an error
	select {
	case end := <-exited:
		return end, nil
	case <-time.After(exitPatience):
		return ending{err: errors.New("not gone yet")}, nil
	}
}

// tellToStop asks the child to end when the keeper was asked.
func (k *keeper) tellToStop(conn *net.UnixConn, served <-chan struct{}) {
	select {
	case <-served:
	case <-k.Stop:
		if err := send(conn, message{Op: opStop}); err != nil {
			k.Log.Error("asking the process that serves to end", "error", err)
		}
	}
}

// serve sends what is held and does what the child asks for until it is dead, or
// does not keep to the protocol.
func (k *keeper) serve(conn *net.UnixConn) error {
	for _, name := range slices.Sorted(maps.Keys(k.held)) {
		h := k.held[name]
		if err := send(conn, message{Op: opHeld, Name: name, Note: h.note}, h.fds...); err != nil {
			return ignoreDead(err)
		}
	}
	if err := send(conn, message{Op: opReady}); err != nil {
		return ignoreDead(err)
	}
	for {
		m, fds, err := receive(conn)
		if err != nil {
			return ignoreDead(err)
		}
		reply := message{Op: opDone}
		switch {
		case m.Op == opKeep && len(fds) > 0:
			k.drop(m.Name)
			k.held[m.Name] = held{note: m.Note, fds: fds}
		case m.Op == opDrop && len(fds) == 0:
			k.drop(m.Name)
		default:
			closeFDs(fds)
			reply.Error = fmt.Sprintf("unknown request %q", m.Op)
		}
		if err := send(conn, reply); err != nil {
			return ignoreDead(err)
		}
	}
}

func (k *keeper) drop(name string) {
	if h, ok := k.held[name]; ok {
		closeFDs(h.fds)
		delete(k.held, name)
	}
}

func (k *keeper) dropAll() {
	for name := range k.held {
		k.drop(name)
	}
}

// ending is how a child has ended.
type ending struct {
	state *os.ProcessState
	err   error
}

// clean tells whether it ended by itself, and all is well.
func (e ending) clean() bool { return e.err == nil && e.state.Success() }

// failed tells whether it ended by itself, with an error.
func (e ending) failed() bool { return e.err == nil && e.state.Exited() && !e.state.Success() }

func (e ending) String() string {
	if e.err != nil {
		return e.err.Error()
	}
	return e.state.String()
}
