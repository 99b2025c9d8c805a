package keeper

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// replyPatience is how long a client waits for its keeper, which never has much to
// do.
const replyPatience = 10 * time.Second

// Held is something that the keeper held when this process was started. The
// descriptors belong to who gets it.
type Held struct {
	Name string
	Note []byte
	FDs  []int
}

// Client is the child's end of the connection.
type Client struct {
	conn     *net.UnixConn
	replies  chan message
	stopping chan struct{}
	gone     chan struct{} // closed when the keeper is

	mu sync.Mutex // held for a request and its reply
}

// Connect connects this process, which a keeper has started, with it, and returns
// what that holds.
func Connect() (*Client, []Held, error) {
	// Children of this process must not inherit it: the keeper would not notice
	// our death.
	unix.CloseOnExec(ConnFD)
	conn, err := fileConn(ConnFD)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the keeper: %w", err)
	}
	c := &Client{conn: conn, replies: make(chan message, 1), stopping: make(chan struct{}), gone: make(chan struct{})}
	var all []Held
	stop := false
	for {
		m, fds, err := receive(conn)
		switch {
		case err != nil:
			closeAll(all)
			return nil, nil, errors.Join(fmt.Errorf("connecting to the keeper: %w", err), conn.Close())
		case m.Op == opHeld:
			all = append(all, Held{Name: m.Name, Note: m.Note, FDs: fds})
			continue
		case m.Op == opStop:
			stop = true
			continue
		case m.Op == opReady:
		default:
			closeAll(all)
			return nil, nil, errors.Join(fmt.Errorf("connecting to the keeper: it says %q", m.Op), conn.Close())
		}
		break
	}
	if stop {
		close(c.stopping)
	}
	go c.receive(stop)
	return c, all, nil
}

func closeAll(all []Held) {
	for _, h := range all {
		closeFDs(h.FDs)
	}
}

// receive sorts what the keeper says.
func (c *Client) receive(stopping bool) {
	defer close(c.gone)
	for {
		m, fds, err := receive(c.conn)
		closeFDs(fds)
		switch {
		case err != nil:
			return
		case m.Op == opDone:
			c.replies <- m
		case m.Op == opStop && !stopping:
			stopping = true
			close(c.stopping)
		}
	}
}

// Stopping is closed when the keeper asks this process to end.
func (c *Client) Stopping() <-chan struct{} { return c.stopping }

// Keep makes the keeper hold note and duplicates of fds, at most MaxFDs, by that
// name, instead of what it held before.
func (c *Client) Keep(name string, note []byte, fds ...int) error {
	return c.request(message{Op: opKeep, Name: name, Note: note}, fds...)
}

// Drop makes the keeper let go of what it holds by that name, if anything.
func (c *Client) Drop(name string) error {
	return c.request(message{Op: opDrop, Name: name})
}

var errGone = errors.New("the keeper is gone")

func (c *Client) request(m message, fds ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := send(c.conn, m, fds...); err != nil {
		return err
	}
	select {
	case reply := <-c.replies:
		if reply.Error != "" {
			return errors.New(reply.Error)
		}
		return nil
	case <-c.gone:
		return errGone
	case <-time.After(replyPatience):
		// What it says later would be taken for the answer to another request.
		c.conn.Close()
		return errGone
	}
}
