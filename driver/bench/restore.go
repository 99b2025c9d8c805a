package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// restorePart names the part that measures going back.
const restorePart = "restore"

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

// restore puts all of used back on the image of the checkpoint, and compares that
// with a direct copy of as many bytes within the raw image.
func (b *bench) restore(ctx context.Context, d *devices, k restoreKind) error {
	m := d.checkpoint
	if err := b.overwriteAll(ctx, m, k.blockSize, k.rw); err != nil {
		return err
	}
	if err := m.detach(); err != nil {
		return err
	}
	bytes, err := b.toPutBack(ctx, m.image)
	if err != nil {
		return err
	}

	began := time.Now()
	count := strconv.FormatInt(b.used().length/mib, 10)
	if _, err := command(ctx, "dd", "if="+d.rawImage, "of="+d.rawImage, "bs=1M", "count="+count,
		"skip="+strconv.FormatInt(b.freeUser().offset/mib, 10), "seek="+strconv.FormatInt(b.used().offset/mib, 10),
		"iflag=direct", "oflag=direct", "conv=notrunc,fdatasync"); err != nil {
		return err
	}
	copied := float64(b.used().length) / time.Since(began).Seconds()

	began = time.Now()
	if _, err := command(ctx, b.Program, "device", "restore", m.image); err != nil {
		return err
	}
	putBack := float64(bytes) / time.Since(began).Seconds()

	b.results.row(row{key: k.key, work: k.name, unit: throughput, against: "direct copy", goal: goalRestore}).compare(copied, putBack)
	d.checkpoint, err = b.attach(ctx, m.image)
	return err
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
