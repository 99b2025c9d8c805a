package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

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
// Where extents are shared, the file system needs space when one of the volumes is
// written. For those that are not Thin, the source among them, it is reserved. But
// that reserve is only a number: the pool does not give the space to other volumes,
// while others who use the file system may take it.
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

// takeShared takes the space of a clone that shares extents: what is still a hole,
// and what the file system will need when shared extents are written.
func (p *Pool) takeShared(ctx context.Context, image *os.File, o *order) error {
	size := o.Size
	switch {
	case o.Thin && o.fromThin:
		return nil
	case o.Thin:
		// The source was to have all that it needs, and now shares it.
		size = sharedBytes(image.Name(), o.Size)
	}
	return p.take(ctx, size, func() error {
		if !o.Thin {
			err := fallocate(ctx, image, 0, 0, o.Size) // leaves alone what is not a hole
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return err
			}
		}
		p.promise(size)
		o.promised = size
		return nil
	})
}
