package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Delete removes the volume id and gives its space back. Nothing is wrong if there
// is no such volume. Errors: ErrForeign; ErrInUse if the image is attached.
func (p *Pool) Delete(ctx context.Context, id string) error {
	err := p.check(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = p.locked(ctx, id, p.remove)
	}
	if err != nil {
		return fmt.Errorf("deleting volume %q: %w", id, err)
	}
	return nil
}

func (p *Pool) remove(id string) error {
	// Of an attempt that got no further.
	trash := filepath.Join(p.dir, trashDir, id)
	if err := discard(trash); err != nil {
		return err
	}
	dir := p.volumeDir(id)
	if err := unattached(filepath.Join(dir, imageFile)); err != nil {
		return err
	}
	err := os.Rename(dir, trash)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.step("renamed")
	// Also if there was nothing: perhaps the one who removed it failed in the
	// last moment.
	if err := syncDir(p.dir); err != nil {
		return err
	}
	p.step("gone")
	return discard(trash)
}

// discard removes the directory of what is no volume, or not any more. XFS gives the space of a
// removed file back when it finds the time, but that of a file cut short at once, so
// the next volume has it.
func discard(dir string) error {
	image, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = image.Truncate(0) // it goes in any case
		_ = image.Close()
	}
	return os.RemoveAll(dir)
}

// Grow makes the volume id size bytes large, rounded as by RoundSize, if it is
// smaller. Who has it attached has to be told. After an error it has the size that
// it had; only on file systems that cannot allocate beforehand it may have grown in
// part. Errors: ErrNotFound, ErrForeign, ErrDamaged, ErrInvalid, ErrFull.
func (p *Pool) Grow(ctx context.Context, id string, size int64) (v Volume, err error) {
	size, err = RoundSize(size)
	if err == nil {
		err = p.locked(ctx, id, func(id string) error {
			v, err = p.grow(ctx, id, size)
			return err
		})
	}
	if err != nil {
		return Volume{}, fmt.Errorf("growing volume %q: %w", id, fullIfNoSpace(err))
	}
	return v, nil
}

func (p *Pool) grow(ctx context.Context, id string, size int64) (Volume, error) {
	r, err := p.read(id)
	if err != nil {
		return Volume{}, err
	}
	if r.Growing {
		if err := p.finishGrow(id, &r); err != nil {
			return Volume{}, err
		}
	}
	if size <= r.Size {
		return r.volume(p, id), nil
	}
	dir := p.volumeDir(id)
	image, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_RDWR, 0)
	if err != nil {
		return Volume{}, err
	}
	defer image.Close()
	r.Growing = true
	if err := p.write(dir, &r); err != nil {
		return Volume{}, err
	}
	p.step("begun")
	if !r.Thin {
		err := p.take(ctx, size-r.Size, func() error { return allocate(ctx, image, r.Size, size) })
		if err != nil {
			// What is behind the end goes back. If not, the next one sees to it.
			return Volume{}, errors.Join(err, p.finishGrow(id, &r))
		}
	}
	p.step("space taken")
	if err := image.Truncate(size); err != nil {
		return Volume{}, err
	}
	p.step("size set")
	if err := p.finishGrow(id, &r); err != nil {
		return Volume{}, err
	}
	return r.volume(p, id), nil
}

// finishGrow ends a grow with whatever size the image has got. It never makes it
// smaller: somebody may have attached it with that.
func (p *Pool) finishGrow(id string, r *record) error {
	dir := p.volumeDir(id)
	image, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	st, err := image.Stat()
	if err != nil {
		return err
	}
	// To the size that it has: frees the blocks behind the end.
	if err := image.Truncate(st.Size()); err != nil {
		return err
	}
	if err := image.Sync(); err != nil {
		return err
	}
	r.Size, r.Growing = st.Size()&^(Alignment-1), false
	return p.write(dir, r)
}

// MarkUsed says that the content of the volume id is somebody's from now on, and
// what it was formatted with; "" if it is raw or not known. It is never Wiped then.
// Errors: ErrNotFound, ErrForeign, ErrDamaged.
func (p *Pool) MarkUsed(ctx context.Context, id, fsType string) error {
	err := p.locked(ctx, id, func(id string) error {
		r, err := p.read(id)
		if err != nil || r.Used && r.FSType == fsType {
			return err
		}
		r.Used, r.FSType = true, fsType
		return p.write(p.volumeDir(id), &r)
	})
	if err != nil {
		return fmt.Errorf("marking volume %q as used: %w", id, err)
	}
	return nil
}

// Wipe fills a volume that has not been Used with zeros, as it was when it was
// made. Errors: ErrNotFound, ErrForeign, ErrDamaged; ErrInvalid if it has been
// used; ErrInUse if the image is attached.
func (p *Pool) Wipe(ctx context.Context, id string) error {
	err := p.locked(ctx, id, func(id string) error { return p.wipe(ctx, id) })
	if err != nil {
		return fmt.Errorf("wiping volume %q: %w", id, fullIfNoSpace(err))
	}
	return nil
}

func (p *Pool) wipe(ctx context.Context, id string) error {
	r, err := p.read(id)
	if err != nil {
		return err
	}
	if r.Used {
		return fmt.Errorf("%w: it has been used", ErrInvalid)
	}
	dir := p.volumeDir(id)
	if err := unattached(filepath.Join(dir, imageFile)); err != nil {
		return err
	}
	image, err := os.OpenFile(filepath.Join(dir, imageFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := zero(ctx, image, r.Size, r.Thin); err != nil {
		return err
	}
	p.step("zeroed")
	return image.Sync()
}

// locked calls f with the lock of the volume id.
func (p *Pool) locked(ctx context.Context, id string, f func(id string) error) error {
	if err := p.check(id); err != nil {
		return err
	}
	unlock, err := p.locks.lock(ctx, id, "")
	if err != nil {
		return err
	}
	defer unlock()
	return f(id)
}

// unattached returns ErrInUse if somebody has the image open for exclusive use, as
// the engine has.
func unattached(image string) error {
	f, err := blockdev.Open(image, blockdev.ReadOnly, blockdev.Exclusive)
	switch {
	case errors.Is(err, blockdev.ErrInUse):
		return fmt.Errorf("%w: the image is attached", ErrInUse)
	case err != nil:
		return nil // missing, or not an image at all
	}
	return f.Close()
}
