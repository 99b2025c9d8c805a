package fuse

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// aside calls f on a thread with a descriptor table of its own, in which there
// is no /dev/fuse.
//
// Whoever waits for an answer of the file system cannot be interrupted once a
// worker has taken the request. If this process were killed then, the workers
// would end, but a thread that waits would not, and as long as it lives the
// descriptors that it shares with the others stay open, /dev/fuse among them:
// the kernel would not give up the request and the process could never end.
// Therefore whatever this process itself wants of its file systems or block
// devices is done aside.
//
// Of the descriptors of the process f finds those in keep. Descriptors that it
// opens are not seen by others, and it has to close them. It must not use files
// of package os.
func aside(f func() error, keep ...int) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end, and its table would not either.
			// It is kept busy so that the next attempt runs on another.
			errc <- aside(f, keep...)
			runtime.UnlockOSThread()
			return
		}
		// Not unlocked: the thread ends with the goroutine.
		if err := unshareFiles(keep); err != nil {
			errc <- err
			return
		}
		errc <- f()
	}()
	return <-errc
}

// unshareFiles gives the calling thread a descriptor table of its own with
// standard input and outputs, keep, and what the runtime may use on any thread
// to wake up others (anonymous inodes: its epoll and event descriptors; not rings,
// which hold /dev/fuse).
// Everything else is closed in it, lest locks and devices stay held when the
// process closes them.
func unshareFiles(keep []int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("unshare descriptors: %w", err)
	}
	const path = "/proc/thread-self/fd"
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(dir)
	var names []string
	for buf := make([]byte, 8192); ; {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	var link [64]byte
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= 2 || fd == dir || slices.Contains(keep, fd) {
			continue
		}
		n, err := unix.Readlinkat(dir, name, link[:])
		if err == nil && strings.HasPrefix(string(link[:n]), "anon_inode:") && string(link[:n]) != "anon_inode:[io_uring]" {
			continue
		}
		_ = unix.Close(fd)
	}
	return nil
}
