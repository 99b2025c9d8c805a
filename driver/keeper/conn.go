package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// What a message is about. Keeper to child:
const (
	opHeld  = "held"  // one thing held, with its descriptor
	opReady = "ready" // that was all
	opDone  = "done"  // the answer to a request
	opStop  = "stop"  // please end
)

// Child to keeper, each answered by opDone:
const (
	opKeep = "keep" // hold this
	opDrop = "drop" // let go of this
)

type message struct {
	Op    string `json:"op"`
	Name  string `json:"name,omitempty"`
	Note  []byte `json:"note,omitempty"`
	Error string `json:"error,omitempty"` // of opDone
}

// maxMessage is the size of the largest message, bytes.
const maxMessage = 64 << 10

// fileConn makes a connection of the socket fd, which belongs to it.
func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "keeper")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("using descriptor %d as a socket: %w", fd, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	return conn, nil
}

// send sends m, with a duplicate of the descriptor fd unless that is negative.
func send(conn *net.UnixConn, m message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes, at most %d are possible", len(b), maxMessage)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if _, _, err := conn.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("sending %q: %w", m.Op, err)
	}
	return nil
}

// receive returns the next message and the descriptor that came with it, or -1.
func receive(conn *net.UnixConn) (m message, fd int, err error) {
	buf := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4))
	n, nr, flags, _, err := conn.ReadMsgUnix(buf, rights)
	if err != nil {
		return m, -1, fmt.Errorf("receiving: %w", err)
	}
	fd, err = descriptor(rights[:nr])
	switch {
	case err != nil:
		return m, -1, fmt.Errorf("receiving: %w", err)
	case n == 0 && fd < 0:
		return m, -1, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("receiving: the message is too long")
	default:
		err = json.Unmarshal(buf[:n], &m)
	}
	if err != nil && fd >= 0 {
		_ = unix.Close(fd)
		fd = -1
	}
	return m, fd, err
}

// descriptor is the descriptor in a control message, or -1 if there is none.
func descriptor(rights []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, err
	}
	return fds[0], nil
}

// ignoreDead is nil for the errors of a connection whose other end is dead.
func ignoreDead(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}
