package pool

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CanReflink tells whether the file system of the pool lets files share extents, so
// that Clone takes no longer for a large volume than for a small one. It tries.
func (p *Pool) CanReflink() bool {
	ok, err := tryReflink(filepath.Join(p.dir, newDir))
	return err == nil && ok
}

func tryReflink(dir string) (bool, error) {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false, fmt.Errorf("a temporary file in %s: %w", dir, os.NewSyscallError("open", err))
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if _, err := unix.Pwrite(fds[0], make([]byte, Alignment), 0); err != nil {
		return false, fmt.Errorf("a temporary file in %s: %w", dir, os.NewSyscallError("pwrite", err))
	}
	return unix.IoctlFileClone(fds[1], fds[0]) == nil, nil
}
