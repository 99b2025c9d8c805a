package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// extentsMemory measures the process that serves a volume of 1 TiB whose free
// space is in so many pieces, with a checkpoint open on it in which some of them
// hold copies. Each piece is one block, so every one is an entry of its own in
// the map of the engine, and what is between them another.
func (b *bench) extentsMemory(ctx context.Context) (err error) {
	const size = 1 << 40
	image := filepath.Join(b.images, "extents.img")
	if err := sparseImage(image, size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	b.progress("memory with %d free extents, %d times", b.extents, b.Rounds)
	for range b.Rounds {
		if err := b.measureExtents(ctx, image, size/int64(b.extents)/blockSize*blockSize); err != nil {
			return fmt.Errorf("memory with many extents: %w", err)
		}
	}
	return nil
}

// measureExtents makes one block of each stretch of so many bytes free.
func (b *bench) measureExtents(ctx context.Context, image string, stretch int64) (err error) {
	m, err := b.attach(ctx, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.detach()) }()
	if err := m.StartTrim(ctx); err != nil {
		return err
	}
	list := make([]blockdev.Extent, 0, 4096)
	for i := range int64(b.extents) {
		list = append(list, blockdev.Extent{Offset: (i+1)*stretch - blockSize, Length: blockSize})
		if len(list) < cap(list) && i+1 < int64(b.extents) {
			continue
		}
		if err := m.MarkFree(ctx, list); err != nil {
			return err
		}
		list = list[:0]
	}
	if err := m.Checkpoint(ctx); err != nil {
		return err
	}
	// Copies and the log take some of the pieces.
	w := work{rw: "randwrite", blockSize: blockSize, depth: 32}
	if _, err := fio(ctx, m.device, w, region{1 << 39, 1 << 30}, b.run/2, true); err != nil {
		return err
	}
	v, err := m.status(ctx)
	if err != nil {
		return err
	}
	if v.Open == nil || v.Open.BackedUp == 0 || v.Open.OutOfSpace != 0 {
		return fmt.Errorf("the checkpoint is %v: this is not the work that was to be measured", v.Open)
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	key := "memory-extents"
	what := fmt.Sprintf("memory, volume of 1 TiB with %d free extents", b.extents)
	if err := b.addMemory(m, key, what, 0, "VmRSS"); err != nil {
		return err
	}
	if err := b.addMemory(m, key+"-anonymous", "of that not backed by files", goalMemoryExtents, "RssAnon"); err != nil {
		return err
	}
	return m.commit(ctx)
}
