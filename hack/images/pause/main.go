// Command pause is the first process of a pod: it does nothing, so that the
// pod's namespaces stay, until it is told to end.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	orphan := make(chan os.Signal, 1)
	signal.Notify(orphan, syscall.SIGCHLD)
	for {
		select {
		case <-end:
			return
		case <-orphan:
			// In a pod with one process tree, whose parent ended is ours.
			for {
				pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				if err != syscall.EINTR && (pid <= 0 || err != nil) {
					break
				}
			}
		}
	}
}
