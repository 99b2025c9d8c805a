// Package pool keeps volumes as image files in a directory of the node.
//
// # On the disk
//
//	<pool>/<id>/image         the content of a volume
//	<pool>/<id>/volume.json   what is known of it
//	<pool>/.new/<id>/         a volume that is being made
//	<pool>/.trash/<id>/       a volume that is being removed
//	<pool>/.pool-id           which pool it is: 32 hexadecimal digits and a newline
//
// A volume exists from the moment its directory, complete and durable, is renamed
// to <id>, until that is renamed into .trash. Whatever a crash leaves in .new and
// .trash belongs to nobody and is removed by the next Open. Everything else that
// is found in the directory and is not understood is left alone and reported by
// Problems.
//
// volume.json is a JSON object. It is always replaced as a whole. Its fields:
//
//	version   1. Volumes with another version are not touched.
//	name      that the volume was created with; <id> follows from it
//	size      bytes; the image has as many, or more after a grow that was interrupted
//	thin      the image is sparse and its space is not reserved
//	used      there is or was content of somebody on it
//	fsType    what it was formatted with
//	source    id of the volume that it was cloned from
//	shares    it was cloned by sharing extents
//	growing   a grow was begun; there may be blocks behind the end of the image
//	created   time
package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound means that there is no such volume.
	ErrNotFound = errors.New("no such volume")
	// ErrExists means that there is a volume of this name that was made with
	// another size, source or thinness.
	ErrExists = errors.New("a different volume of this name exists")
	// ErrFull means that there is no room for it.
	ErrFull = errors.New("not enough space in the pool")
	// ErrForeign means that the id is one of another node.
	ErrForeign = errors.New("volume of another node")
	// ErrInvalid means that the request cannot be done in any state of the pool.
	ErrInvalid = errors.New("invalid request")
	// ErrInUse means that somebody else has the pool or the image open.
	ErrInUse = errors.New("in use")
	// ErrDamaged means that there is something with the id of the volume which is
	// not one, or not any more. The text says what. It can be deleted.
	ErrDamaged = errors.New("damaged volume")
	// ErrUnavailable means that the directory is not the pool, or not now, as when
	// its disk is not mounted. The text says what to do. Nothing is known of any
	// volume then, not even that there is none.
	ErrUnavailable = errors.New("the pool is not available")
)

// Volume is what is known of a volume.
type Volume struct {
	ID   string
	Path string // of the image, a regular file
	Name string // that it was created with
	Size int64  // bytes, a multiple of Alignment
	Thin bool   // space is taken as it is written, and may run out

	// Used: the volume holds, or once held, content that is somebody's: a file
	// system, or whatever the user of a raw volume wrote. While it is false, what
	// is on it is at most the rubbish of an interrupted mkfs.
	Used   bool
	FSType string // what it was formatted with; "": raw, or not known

	Source  string // id of the volume that it was cloned from, or ""
	Created time.Time
}

// Pool is a directory of volumes. Its methods may be called from any number of
// goroutines; those that change the same volume wait for each other. Each change
// but Wipe is done as a whole or not at all, power cuts included, and is durable
// when the method has returned without an error.
type Pool struct {
	dir    string
	node   string
	memory string            // file that has the id of the pool; "": none
	locks  locks             // by volume id; also allocating
	step   func(name string) // called between the steps of a change; for tests

	opening sync.Mutex
	lock    *os.File // the directory, with a flock on it; nil until it is there, then for good; guarded by opening

	leftovers []leftover // what Open could not clean up

	promises struct { // space that will be owed; see owed
		sync.Mutex
		bytes int64
	}
}

type leftover struct {
	path string
	err  error
}

// Hidden directories of a pool. No id begins with a dot.
const (
	newDir   = ".new"
	trashDir = ".trash"
)

// Open opens the pool of node in the directory dir and makes the directory if it
// does not exist. What a crash left unfinished is finished or removed. ErrInUse is
// returned if another process, or another Pool of this one, has it.
//
// memory is a file on another disk than the pool, in which the node remembers its
// pool, or "" if it is not to. It is written when the pool is used first. While the
// directory is not that pool, Open returns one all of whose methods fail with
// ErrUnavailable, and which can be used when the directory is there; see Available.
func Open(dir, node, memory string) (*Pool, error) {
	p, err := open(dir, node, memory)
	if err != nil {
		return nil, fmt.Errorf("opening the pool in %s: %w", dir, err)
	}
	return p, nil
}

func open(dir, node, memory string) (*Pool, error) {
	if node == "" {
		return nil, fmt.Errorf("%w: the node has no name", ErrInvalid)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p := &Pool{dir: dir, node: node, memory: memory, step: func(string) {}}
	if err := p.Available(); err != nil && !errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	return p, nil
}

// Close lets others open the pool. No method may be running or called after it.
func (p *Pool) Close() error {
	if p.lock == nil {
		return nil
	}
	if err := unlock(p.lock); err != nil {
		return fmt.Errorf("closing the pool in %s: %w", p.dir, err)
	}
	return nil
}

// cleanUp finishes what a crash has interrupted. A volume that defies it does not
// keep the others from being used.
func (p *Pool) cleanUp() error {
	p.leftovers = nil
	for _, name := range []string{newDir, trashDir} {
		path := filepath.Join(p.dir, name)
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		left, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, entry := range left {
			path := filepath.Join(path, entry.Name())
			p.leftover(path, discard(path))
		}
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		id := entry.Name()
		if p.checkID(id) != nil {
			continue
		}
		r, err := p.readOnce(id)
		if err != nil {
			continue // not sound, so not touched
		}
		if r.Growing {
			p.leftover(p.volumeDir(id), p.finishGrow(id, &r)) // the next Grow tries again
		}
		path := filepath.Join(p.volumeDir(id), recordNew)
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			p.leftover(path, err)
		}
	}
	return nil
}

func (p *Pool) leftover(path string, err error) {
	if err != nil {
		p.leftovers = append(p.leftovers, leftover{path, fmt.Errorf("cleaning up after a crash: %w", err)})
	}
}

func (p *Pool) volumeDir(id string) string { return filepath.Join(p.dir, id) }

// Get returns the volume id. Errors: ErrNotFound, also for what cannot be an id,
// ErrForeign, ErrDamaged.
func (p *Pool) Get(id string) (Volume, error) {
	r, err := p.read(id)
	if err != nil {
		return Volume{}, fmt.Errorf("volume %q: %w", id, err)
	}
	return r.volume(p, id), nil
}

// List returns all volumes, ordered by id. What is not a sound volume is left out;
// see Problems.
func (p *Pool) List() ([]Volume, error) {
	var list []Volume
	err := p.each(func(id string, r *record, err error) {
		if err == nil {
			list = append(list, r.volume(p, id))
		}
	})
	return list, err
}

// Problems returns what is in the pool's directory and cannot be used: damaged
// volumes, those of another node, and things that are not the pool's, none of which
// is touched; and what a crash has left that could not be removed. Of a pool that is
// not available that is the only one.
func (p *Pool) Problems() ([]error, error) {
	if err := p.Available(); err != nil {
		return []error{err}, nil
	}
	var problems []error
	for _, l := range p.leftovers {
		if _, err := os.Lstat(l.path); !errors.Is(err, os.ErrNotExist) {
			problems = append(problems, l.err)
		}
	}
	err := p.each(func(id string, _ *record, err error) {
		switch {
		case err == nil:
		case errors.Is(err, ErrNotFound) && !idPattern.MatchString(id):
			problems = append(problems, fmt.Errorf("%s: not a volume's", filepath.Join(p.dir, id)))
		case errors.Is(err, ErrNotFound): // deleted a moment ago
		default:
			problems = append(problems, fmt.Errorf("%s: %w", filepath.Join(p.dir, id), err))
		}
	})
	return problems, err
}

// each calls f for everything in the directory, in order.
func (p *Pool) each(f func(id string, r *record, err error)) error {
	if err := p.Available(); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("reading the pool: %w", err)
	}
	for _, entry := range entries {
		switch name := entry.Name(); name {
		case newDir, trashDir, markerFile, "lost+found":
		default:
			r, err := p.read(name)
			f(name, &r, err)
		}
	}
	return nil
}

// retry calls a system call until no signal interrupts it.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
