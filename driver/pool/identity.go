package pool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// markerFile has the random id of the pool, which the node remembers elsewhere: the
// directory below a disk that is not mounted would pass for an empty pool.
const markerFile = ".pool-id"

var markerPattern = regexp.MustCompile(`^[0-9a-f]{32}\n$`)

// Available returns nil if the pool can be used, and else an ErrUnavailable that
// says what is to be done about it. A pool that was not there when it was opened
// can be used as soon as it is.
func (p *Pool) Available() error {
	p.opening.Lock()
	defer p.opening.Unlock()
	if p.lock == nil {
		return p.begin()
	}
	opened, err := p.lock.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(p.dir)
	if err == nil && !os.SameFile(now, opened) {
		err = errors.New("it is another directory than before")
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w; was a disk unmounted, or mounted over it? Undo that, or restart the node plugin", ErrUnavailable, p.dir, err)
	}
	return nil
}

// begin opens the directory. Nothing is made in one that is not the pool's.
func (p *Pool) begin() (err error) {
	id, err := p.remembered()
	if err != nil {
		return err
	}
	if id == "" {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return err
		}
	}
	dir, err := os.Open(p.dir)
	if id != "" && errors.Is(err, os.ErrNotExist) {
		return p.missing("there is no " + p.dir)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock(dir))
		}
	}()
	if err := retry(func() error { return unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return err
	}
	if p.memory != "" {
		if err := p.identify(id); err != nil {
			return err
		}
	}
	if err := p.cleanUp(); err != nil {
		return err
	}
	for _, path := range []string{p.dir, filepath.Dir(p.dir)} {
		if err := syncDir(path); err != nil {
			return err
		}
	}
	p.lock = dir
	return nil
}

// unlock ends what begin has begun.
func unlock(dir *os.File) error {
	// A child between fork and exec has the directory open too.
	return errors.Join(unix.Flock(int(dir.Fd()), unix.LOCK_UN), dir.Close())
}

// identify makes sure that the directory is the pool with this id. If none is
// remembered, "", that of the directory is from now on; it gets one if it has none.
func (p *Pool) identify(id string) error {
	path := filepath.Join(p.dir, markerFile)
	marker, err := readID(path)
	switch {
	case err != nil:
		return err
	case id != "" && marker == "":
		return p.missing(fmt.Sprintf("%s is not there, so %s is not the pool of this node", path, p.dir))
	case id != "" && marker != id:
		return p.missing(fmt.Sprintf("%s is another pool, %s, and not that of this node, %s", p.dir, marker, id))
	case id != "":
		return nil
	case marker == "":
		if marker, err = p.mark(path); err != nil {
			return err
		}
	}
	p.step("marked")
	return p.remember(marker)
}

func (p *Pool) missing(what string) error {
	return fmt.Errorf("%w: %s; is its disk mounted? If the pool was replaced or given up for good, remove %s",
		ErrUnavailable, what, p.memory)
}

// mark gives the directory an id. After a crash it has that or none.
func (p *Pool) mark(path string) (string, error) {
	var random [16]byte
	rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	dir := filepath.Join(p.dir, newDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	temporary := filepath.Join(dir, markerFile) // if it stays, it is removed with the others
	if err := writeFile(temporary, []byte(id+"\n")); err != nil {
		return "", err
	}
	if err := os.Rename(temporary, path); err != nil {
		return "", err
	}
	return id, syncDir(p.dir)
}

// remembered returns the id of the pool that the node had, or "" if it had none.
func (p *Pool) remembered() (string, error) {
	if p.memory == "" {
		return "", nil
	}
	return readID(p.memory)
}

func (p *Pool) remember(id string) error {
	dir := filepath.Dir(p.memory)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	temporary := p.memory + ".new"
	if err := writeFile(temporary, []byte(id+"\n")); err != nil {
		return err
	}
	if err := os.Rename(temporary, p.memory); err != nil {
		return err
	}
	return syncDir(dir)
}

// readID returns the id in a file, or "" if there is no such file.
func readID(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !markerPattern.Match(data) {
		return "", fmt.Errorf("%w: %s has no id of a pool in it, but %.40q; remove it if the right disk is mounted", ErrUnavailable, path, data)
	}
	return string(data[:len(data)-1]), nil
}
