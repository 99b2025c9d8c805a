package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const goalRestore = 0.85 // against a copy of as many bytes

// restoreKind is a way in which what is to be put back has been overwritten.
type restoreKind struct {
	key, name string
	rw        string
	blockSize int
}

var restoreKinds = []restoreKind{
	{"restore-sequential", "restore, overwritten sequentially", "write", 1 * mib},
	{"restore-random", "restore, overwritten 64 KiB at random", "randwrite", 64 << 10},
}

// restore measures both.
func (b *bench) restore(ctx context.Context) error {
	b.progress("restoring an image of %d MiB, %d times", b.image/mib, b.Rounds)
	image := filepath.Join(b.images, "restore.img")
	if err := writeImage(image, b.image, ctx.Err); err != nil {
		return err
	}
	for range b.Rounds {
		for _, k := range restoreKinds {
			if err := b.restoreOnce(ctx, image, k); err != nil {
				return fmt.Errorf("restoring: %w", err)
			}
		}
	}
	return os.Remove(image)
}

// restoreOnce puts all of used back, and compares that with a direct copy of as many
// bytes within the image, which comes before or after: what is overwritten by it would
// be put back, or was, and the copies are elsewhere.
func (b *bench) restoreOnce(ctx context.Context, image string, k restoreKind) error {
	m, err := b.attach(ctx, image)
	if err != nil {
		return err
	}
	err = b.overwriteAll(ctx, m, k.blockSize, k.rw)
	if err := errors.Join(err, m.detach()); err != nil {
		return err
	}
	bytes, err := b.toPutBack(ctx, image)
	if err != nil {
		return err
	}

	timed := func(name string, args ...string) (time.Duration, error) {
		began := time.Now()
		_, err := command(ctx, name, args...)
		return time.Since(began), err
	}
	count := strconv.FormatInt(b.used().length/mib, 10)
	var copying, putting time.Duration
	steps := []func() error{
		func() (err error) {
			copying, err = timed("dd", "if="+image, "of="+image, "bs=1M", "count="+count,
				"skip="+strconv.FormatInt(b.freeUser().offset/mib, 10), "seek="+strconv.FormatInt(b.used().offset/mib, 10),
				"iflag=direct", "oflag=direct", "conv=notrunc,fdatasync")
			return err
		},
		func() (err error) {
			putting, err = timed(b.Program, "device", "restore", image)
			return err
		},
	}
	for _, i := range rand.Perm(len(steps)) {
		if err := steps[i](); err != nil {
			return err
		}
	}
	b.results.row(row{key: k.key, work: k.name, unit: throughput, against: "direct copy", goal: goalRestore}).
		compare(float64(b.used().length)/copying.Seconds(), float64(bytes)/putting.Seconds())
	return nil
}

// toPutBack asks how many bytes a restore of the image will put back.
func (b *bench) toPutBack(ctx context.Context, image string) (int64, error) {
	out, err := command(ctx, b.Program, "device", "inspect", "--output", "json", image)
	if err != nil {
		return 0, err
	}
	var report struct {
		Totals struct {
			PutBack int64 `json:"putBack"`
		} `json:"totals"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, fmt.Errorf("inspecting %s: %w", image, err)
	}
	if report.Totals.PutBack < b.used().length {
		return 0, errors.New("less would be put back than was overwritten")
	}
	return report.Totals.PutBack, nil
}
