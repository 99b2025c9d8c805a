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

// MaxFDs is the most descriptors that are held by one name.
const MaxFDs = 8

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

// send sends m, with duplicates of the descriptors fds.
func send(conn *net.UnixConn, m message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage || len(fds) > MaxFDs {
		return fmt.Errorf("message of %d bytes with %d descriptors, at most %d and %d are possible", len(b), len(fds), maxMessage, MaxFDs)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("sending %q: %w", m.Op, err)
	}
	return nil
}

// receive returns the next message and the descriptors that came with it.
func receive(conn *net.UnixConn) (m message, fds []int, err error) {
	buf := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, nr, flags, _, err := conn.ReadMsgUnix(buf, rights)
	if err != nil {
		return m, nil, fmt.Errorf("receiving: %w", err)
	}
	fds, err = descriptors(rights[:nr])
	switch {
	case err != nil:
	case n == 0 && len(fds) == 0:
		return m, nil, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("the message is too long")
	default:
		err = json.Unmarshal(buf[:n], &m)
	}
	if err != nil {
		closeFDs(fds)
		return m, nil, fmt.Errorf("receiving: %w", err)
	}
	return m, fds, nil
}

// descriptors are the descriptors in a control message.
func descriptors(rights []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	return unix.ParseUnixRights(&messages[0])
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// ignoreDead is nil for the errors of a connection whose other end is dead.
func ignoreDead(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}
