package pool

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"
)

const (
	// Alignment divides the size of every volume, in bytes.
	Alignment = 4096
	// MinSize is the least size of a volume in bytes.
	MinSize = 1 << 20
)

// CreateOptions are what a new volume is to be like.
type CreateOptions struct {
	// Name is what the caller calls the volume: any valid UTF-8 but "".
	Name string
	// Size in bytes. See RoundSize.
	Size int64
	// Thin volumes take space as it is written. Others have all of it from the
	// beginning, and cannot run out of it.
	Thin bool
}

// RoundSize returns the size that a volume will have of which size bytes are
// wanted: the next multiple of Alignment, and MinSize at least. ErrInvalid is
// returned for sizes that are not positive, and ErrFull for those that cannot be.
func RoundSize(size int64) (int64, error) {
	switch {
	case size <= 0:
		return 0, fmt.Errorf("%w: a size of %d bytes", ErrInvalid, size)
	case size > math.MaxInt64-Alignment:
		return 0, fmt.Errorf("%w: %d bytes", ErrFull, size)
	}
	return max(MinSize, (size+Alignment-1)&^(Alignment-1)), nil
}

// Create makes a volume full of zeros, or returns the one of this name that was
// made with the same options. Errors: ErrInvalid, ErrExists, ErrFull, ErrDamaged.
func (p *Pool) Create(ctx context.Context, o CreateOptions) (Volume, error) {
	v, err := p.create(ctx, o, "", nil)
	if err != nil {
		return Volume{}, fmt.Errorf("creating volume %q: %w", o.Name, err)
	}
	return v, nil
}

// An order is a volume that is to be made.
type order struct {
	record
	from     string // image with the content, or ""
	fromThin bool   // it is that of a thin volume
	progress func(done, total int64)
	promised int64 // see Pool.promise
}

func (p *Pool) create(ctx context.Context, o CreateOptions, source string, progress func(done, total int64)) (Volume, error) {
	if o.Name == "" || !utf8.ValidString(o.Name) {
		return Volume{}, fmt.Errorf("%w: the name", ErrInvalid)
	}
	var err error
	if o.Size, err = RoundSize(o.Size); err != nil {
		return Volume{}, err
	}
	id := ID(o.Name, p.node)
	if id == source {
		return Volume{}, fmt.Errorf("%w: a clone of itself", ErrInvalid)
	}
	unlock, err := p.locks.lock(ctx, id, source)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	if r, err := p.read(id); !errors.Is(err, ErrNotFound) {
		if err != nil {
			return Volume{}, err
		}
		if r.Size != o.Size || r.Thin != o.Thin || r.Source != source || r.Name != o.Name {
			return Volume{}, fmt.Errorf("%w: it has %d bytes, thin %v, source %q", ErrExists, r.Size, r.Thin, r.Source)
		}
		// Perhaps the one who made it failed in the last moment.
		return r.volume(p, id), syncDir(p.dir)
	}
	wanted := order{
		record:   record{Name: o.Name, Size: o.Size, Thin: o.Thin, Source: source, Created: time.Now().UTC()},
		progress: progress,
	}
	if source != "" {
		src, err := p.read(source)
		if err != nil {
			return Volume{}, fmt.Errorf("the source: %w", err)
		}
		if src.Size > o.Size {
			return Volume{}, fmt.Errorf("%w: %d bytes are less than the %d of the source", ErrInvalid, o.Size, src.Size)
		}
		wanted.Used, wanted.FSType, wanted.fromThin = src.Used, src.FSType, src.Thin
		if src.Used {
			wanted.from = filepath.Join(p.volumeDir(source), imageFile)
		}
	}
	if err := p.make(ctx, id, &wanted); err != nil {
		return Volume{}, fullIfNoSpace(err)
	}
	return wanted.volume(p, id), nil
}

// make makes the volume id. The caller has the lock.
func (p *Pool) make(ctx context.Context, id string, o *order) (err error) {
	dir := filepath.Join(p.dir, newDir, id)
	if err := discard(dir); err != nil { // of an attempt that could not
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(dir))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p.step("directory made")
	image, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = p.fill(ctx, image, o)
	if err == nil {
		defer p.promise(-o.promised) // owed sees the volume then
		err = image.Sync()
	}
	if err := errors.Join(err, image.Close()); err != nil {
		return err
	}
	p.step("image made")
	if err := p.write(dir, &o.record); err != nil {
		return err
	}
	p.step("record made")
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(dir, p.volumeDir(id)); err != nil {
		return err
	}
	p.step("renamed")
	return syncDir(p.dir)
}

// fill gives a new image its size, space and content.
func (p *Pool) fill(ctx context.Context, image *os.File, o *order) error {
	if o.from == "" {
		if !o.Thin {
			err := p.take(ctx, o.Size, func() error { return allocate(ctx, image, 0, o.Size) })
			if err != nil {
				return err
			}
		}
		return image.Truncate(o.Size)
	}
	source, err := os.Open(o.from)
	if err != nil {
		return err
	}
	defer source.Close()
	if o.Shares, err = share(image, source); err != nil {
		return err
	}
	if err := image.Truncate(o.Size); err != nil {
		return err
	}
	p.step("content shared")
	switch {
	case o.Shares:
		err = p.takeShared(ctx, image, o)
	case !o.Thin:
		err = p.take(ctx, o.Size, func() error { return allocate(ctx, image, 0, o.Size) })
	}
	if err != nil {
		return err
	}
	p.step("space taken")
	if o.Shares {
		o.progress(o.Size, o.Size)
		return nil
	}
	return copyData(ctx, image, source, o.progress)
}
