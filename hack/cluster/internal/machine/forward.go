package machine

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// forward passes each connection to listener on to the TCP address to. The
// listener may be of another network namespace than the calling process: that
// is how the host reaches into a machine.
func forward(listener net.Listener, to string) {
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			logf("accepting a connection for %s: %v", to, err)
			time.Sleep(restartDelay) // out of descriptors, most likely
			continue
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", to)
			if err != nil {
				return // nobody listens there yet; the client sees it at once
			}
			defer server.Close()
			var both sync.WaitGroup
			both.Go(func() { passOn(server, client) })
			both.Go(func() { passOn(client, server) })
			both.Wait()
		}()
	}
}

// passOn copies until from ends, and ends that direction of to. On an error
// the other direction is of no use either.
func passOn(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		to.Close()
		from.Close()
	}
}
