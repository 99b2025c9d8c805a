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

	"golang.org/x/sys/unix"
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

// RoundSize returns the size that a volume will have of whom size bytes are
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

// Clone makes a volume with the content of another one, or returns the one of this
// name that was made so. It may be larger, not smaller; the rest then is zeros,
// and what is on it is not told of the new size. The clone of a source that has
// not been Used is a new volume that has not been either.
//
// Nothing may change the source meanwhile, and all that was written to it must be
// in the image. Where the file system can, extents are shared, which takes
// milliseconds. Otherwise whatever is not a hole is copied, which takes as long as
// it takes. progress, if not nil, is called at the beginning, at the end and in
// between with bytes copied and to copy.
//
// Space is reserved for a clone that is not Thin as for any volume. But where
// extents are shared, the reserve is only a number: the pool does not give that
// space to other volumes, while others who use the file system may take it.
//
// Errors: ErrNotFound and ErrForeign of the source, and those of Create.
func (p *Pool) Clone(ctx context.Context, source string, o CreateOptions, progress func(done, total int64)) (Volume, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	err := p.check(source)
	var v Volume
	if err == nil {
		v, err = p.create(ctx, o, source, progress)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("cloning volume %q as %q: %w", source, o.Name, err)
	}
	return v, nil
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
	r := record{Name: o.Name, Size: o.Size, Thin: o.Thin, Source: source, Created: time.Now().UTC()}
	from := ""
	if source != "" {
		src, err := p.read(source)
		if err != nil {
			return Volume{}, fmt.Errorf("the source: %w", err)
		}
		if src.Size > r.Size {
			return Volume{}, fmt.Errorf("%w: %d bytes are less than the %d of the source", ErrInvalid, r.Size, src.Size)
		}
		if r.Used, r.FSType = src.Used, src.FSType; src.Used {
			from = filepath.Join(p.volumeDir(source), imageFile)
		}
	}
	if err := p.make(ctx, id, &r, from, progress); err != nil {
		return Volume{}, fullIfNoSpace(err)
	}
	return r.volume(p, id), nil
}

// make makes the volume id as r says, with the content of the image from if that
// is not empty. The caller has the lock.
func (p *Pool) make(ctx context.Context, id string, r *record, from string, progress func(done, total int64)) (err error) {
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
	err = p.fill(ctx, image, r, from, progress)
	if err == nil {
		if r.Shares && !r.Thin {
			defer p.promise(-r.Size) // owed sees the volume then
		}
		err = image.Sync()
	}
	if err := errors.Join(err, image.Close()); err != nil {
		return err
	}
	p.step("image made")
	if err := p.write(dir, r); err != nil {
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
func (p *Pool) fill(ctx context.Context, image *os.File, r *record, from string, progress func(done, total int64)) error {
	if from == "" {
		if !r.Thin {
			err := p.take(ctx, r.Size, func() error { return allocate(ctx, image, 0, r.Size) })
			if err != nil {
				return err
			}
		}
		return image.Truncate(r.Size)
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if r.Shares, err = share(image, source); err != nil {
		return err
	}
	if err := image.Truncate(r.Size); err != nil {
		return err
	}
	p.step("content shared")
	if !r.Thin {
		err := p.take(ctx, r.Size, func() error {
			if !r.Shares {
				return allocate(ctx, image, 0, r.Size)
			}
			p.promise(r.Size)
			err := fallocate(ctx, image, 0, 0, r.Size) // only what is a hole
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil
			}
			if err != nil {
				p.promise(-r.Size)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	p.step("space taken")
	if r.Shares {
		progress(r.Size, r.Size)
		return nil
	}
	return copyData(ctx, image, source, progress)
}
