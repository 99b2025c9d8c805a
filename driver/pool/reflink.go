package pool

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CanReflink tells whether the file system of the pool lets files share extents, so
// that Clone takes no longer for a large volume than for a small one. It tries, and
// what cannot be tried is false.
func (p *Pool) CanReflink() bool {
	if p.Available() != nil {
		return false
	}
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(filepath.Join(p.dir, newDir), unix.O_TMPFILE|os.O_RDWR, 0o600)
		if err != nil {
			return false
		}
		defer f.Close()
		files[i] = f
	}
	if _, err := files[0].WriteAt(make([]byte, Alignment), 0); err != nil {
		return false
	}
	ok, err := share(files[1], files[0])
	return ok && err == nil
}
