package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a volume costs that is not used much must not depend on its size. So
// volumes of all sizes get the same little content and the same free space.

// volumeSizes measures attaching, opening a checkpoint and committing it on
// volumes without a file system.
func (b *bench) volumeSizes(ctx context.Context) error {
	b.progress("volumes of up to %s, %d times", shortSize(b.volumes[len(b.volumes)-1]), b.Rounds)
	for range b.Rounds {
		for _, size := range b.volumes {
			if err := b.volumeOfSize(ctx, size); err != nil {
				return fmt.Errorf("a volume of %s: %w", shortSize(size), err)
			}
		}
	}
	return nil
}

func (b *bench) volumeOfSize(ctx context.Context, size int64) (err error) {
	image := filepath.Join(b.images, "size.img")
	// Files of ext4 end just before 16 TiB.
	err = sparseImage(image, min(size, 16<<40-mib))
	defer func() { err = errors.Join(err, os.RemoveAll(image)) }()
	if errors.Is(err, unix.EFBIG) {
		b.skip("volume of "+shortSize(size), "the file system has no files that large")
		return nil
	}
	if err != nil {
		return err
	}
	add := func(key, work string, took time.Duration) {
		of := shortSize(size)
		b.results.row(row{key: key + "-" + strings.ReplaceAll(of, " ", ""), work: work + ", volume of " + of, unit: duration}).add(took.Seconds())
	}

	began := time.Now()
	m, err := b.attach(ctx, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.detach()) }()
	add("attach", "attach", time.Since(began))

	content := region{64 * mib, 16 * mib}
	w := work{rw: "write", blockSize: mib, depth: 8}
	if _, err := fio(ctx, m.device, w, content, 0, true); err != nil {
		return err
	}
	if err := m.discard(region{128 * mib, 256 * mib}); err != nil {
		return err
	}
	began = time.Now()
	if err := m.open(ctx); err != nil {
		return err
	}
	add("checkpoint", "checkpoint", time.Since(began))

	if _, err := fio(ctx, m.device, w, content, 0, true); err != nil {
		return err
	}
	if err := m.expectBackedUp(ctx, content.length, content.length); err != nil {
		return err
	}
	began = time.Now()
	if err := m.commit(ctx); err != nil {
		return err
	}
	add("commit", "commit", time.Since(began))
	return nil
}

// shortSize is a size for people, in units that make it a small whole number.
func shortSize(n int64) string {
	unit := 0
	for n >= 1024 && unit < 4 {
		n, unit = n/1024, unit+1
	}
	return fmt.Sprintf("%d %s", n, []string{"B", "KiB", "MiB", "GiB", "TiB"}[unit])
}
