package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// Before a file system is made on a device that somebody else provides, all of it is
// read: it may have been used raw, with zeros at both ends. Of an image file only
// what is not a hole is; an image that was just allocated is one hole. A volume of
// the pool needs none of that, since the pool knows whether it was used.

// searchStep is how much is read at a time, in bytes.
const searchStep = 4 << 20

// search is a look for data that may take longer than its caller waits.
type search struct {
	path   string
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
	err    error         // valid then; nil: there is no data

	looked atomic.Int64 // bytes that are known to be zeros
	size   atomic.Int64 // bytes
}

// requireBlank returns nil if all of a device is zeros; ErrDamaged if it is not, and
// ErrBusy if that is not known yet: the search goes on meanwhile. The slot is held.
func (m *Manager) requireBlank(ctx context.Context, p place) error {
	s := m.slot(p.id)
	if s.search == nil || s.search.path != p.path {
		s.endSearch()
		s.search = m.startSearch(p.path, 0)
	} else if s.search.failed() {
		// Where it ended: whoever has wiped the rest needs not wait for all of it.
		s.search = m.startSearch(p.path, s.search.looked.Load())
	}
	select {
	case <-s.search.done:
	case <-ctx.Done():
		return fmt.Errorf("volume %s: looking for data on %s: %w", p.id, p.path, ctx.Err())
	case <-time.After(patience):
		return fmt.Errorf("volume %s: before a file system is made, all of %s is read, to see that it is blank: %d of %d bytes so far. One that exists is mounted at once: %w",
			p.id, p.path, s.search.looked.Load(), s.search.size.Load(), ErrBusy)
	}
	if err := s.search.err; err != nil {
		return fmt.Errorf("volume %s: no file system is made: %w", p.id, err)
	}
	s.search = nil
	return nil
}

// format makes a file system on a volume that seems to be empty.
func (m *Manager) format(ctx context.Context, p place, v *enginepb.Volume, fsType string) error {
	if p.pool == nil {
		r, err := m.loadRecord(p.id)
		if err != nil {
			return err
		}
		if !r.Formatting {
			if err := m.requireBlank(ctx, p); err != nil {
				return err
			}
			if _, err := m.updateRecord(p.id, func(r *record) { r.Formatting = true }); err != nil {
				return err
			}
		}
	}
	if err := filesystem.Make(ctx, v.Device, fsType); err != nil {
		return fmt.Errorf("volume %s: %w", p.id, err)
	}
	return nil
}

// endFormat forgets what is known of a device without a file system, because
// somebody may write to it from now on. The slot is held.
func (m *Manager) endFormat(id string) error {
	m.slot(id).endSearch()
	r, err := m.loadRecord(id)
	if errors.Is(err, ErrInvalid) {
		return nil // it cannot have been staged
	}
	if err == nil && r.Formatting {
		_, err = m.updateRecord(id, func(r *record) { r.Formatting = false })
	}
	return err
}

// endSearch ends a search and forgets what it has found. The slot is held.
func (s *slot) endSearch() {
	if s.search != nil {
		s.search.cancel()
		s.search = nil
	}
}

func (j *search) failed() bool {
	select {
	case <-j.done:
		return j.err != nil
	default:
		return false
	}
}

// startSearch looks for data from the offset in bytes on.
func (m *Manager) startSearch(path string, from int64) *search {
	j := &search{path: path, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(m.ctx)
	j.cancel = cancel
	j.looked.Store(from)
	started := m.spawn(func() {
		defer cancel()
		defer close(j.done)
		j.err = j.run(ctx)
	})
	if !started {
		cancel()
		j.err = fmt.Errorf("shutting down: %w", ErrBusy)
		close(j.done)
	}
	return j
}

func (j *search) run(ctx context.Context) error {
	d, err := blockdev.Open(j.path, blockdev.ReadOnly)
	if err != nil {
		return err
	}
	defer d.Close()
	holes, err := os.Open(j.path)
	if err != nil {
		return err
	}
	defer holes.Close()
	size := d.Size()
	j.size.Store(size)
	p := blockdev.Buffer(searchStep)
	for at := j.looked.Load(); at < size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("looking for data on %s: %w", j.path, err)
		}
		data, err := holes.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole
		}
		if err == nil { // and not a block device, which has no holes
			at = max(at, data&^(searchStep-1))
		}
		p := p[:max(0, min(searchStep, size-at))]
		if _, err := d.ReadAt(p, at); err != nil {
			return err
		}
		if bytes.Count(p, []byte{0}) < len(p) { // which is faster than looking for others
			i := slices.IndexFunc(p, func(b byte) bool { return b != 0 })
			return fmt.Errorf("%s has no file system, but data at byte %d; nothing was changed. If nobody needs it, make a file system there, or wipe all of it: %w",
				j.path, at+int64(i), ErrDamaged)
		}
		at += int64(len(p))
		j.looked.Store(at)
	}
	return nil
}
