package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/iomem"
)

// byHand has for some works what first overwrites are compared with besides: what a
// disk has to do for them, done by hand on the raw device, without a log to be kept.
var byHand = map[string]struct {
	do   func(b *bench, ctx context.Context, raw *os.File, w work) (tally, error)
	name string
	goal float64
	key  string
}{
	"randwrite-1": {(*bench).twoFlushes, "two flushes", 3.0, "state1-first-flushes"},
	"write":       {(*bench).threeTransfers, "three transfers", 0, "state1-first-transfers"},
}

// firstByHand does w so on a raw device.
func (b *bench) firstByHand(ctx context.Context, device string, w work) (t tally, err error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if t, err = byHand[w.key].do(b, ctx, f, w); err != nil {
		err = fmt.Errorf("first overwrites by hand on %s: %w", device, err)
	}
	return t, errors.Join(err, context.Cause(ctx))
}

// twoFlushes does on the raw device what a first overwrite of one block takes at
// least if nothing is done for its neighbours: the old content is read and
// written elsewhere, that is made durable, a block of the log is written, that
// is made durable, and the block itself is written. To be faster than that, more has
// to be backed up at once than was asked.
func (b *bench) twoFlushes(ctx context.Context, raw *os.File, w work) (t tally, err error) {
	buf, err := iomem.Map(w.blockSize)
	if err != nil {
		return t, err
	}
	defer iomem.Unmap(buf)

	used, free := b.used(), b.free()
	copies, log := free.offset, free.offset+used.length
	began := time.Now()
	for _, i := range rand.Perm(int(used.length / blockSize)) {
		if time.Since(began) >= b.run || ctx.Err() != nil {
			break
		}
		at := used.offset + int64(i)*blockSize
		if err := copyDurably(raw, buf, at, copies+t.bytes, log+t.bytes%(64*blockSize)); err != nil {
			return t, err
		}
		t.add(tally{ops: 1, bytes: blockSize})
	}
	t.time = time.Since(began)
	return t, nil
}

// copyDurably does the steps for the block at; those of the copy and of the log
// are places as well.
func copyDurably(f *os.File, buf []byte, at, copied, log int64) error {
	if _, err := f.ReadAt(buf, at); err != nil {
		return err
	}
	for _, to := range []int64{copied, log} {
		if _, err := f.WriteAt(buf, to); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	_, err := f.WriteAt(buf, at)
	return err
}

// threeTransfers does on the raw device what no first overwrite can do without, as many
// at once and as large as in w: the old content is read and written elsewhere, and the
// new one is written. Nothing is flushed.
func (b *bench) threeTransfers(ctx context.Context, raw *os.File, w work) (t tally, err error) {
	mem, err := iomem.Map(w.depth * w.blockSize)
	if err != nil {
		return t, err
	}
	defer iomem.Unmap(mem)
	// Those that wait for the disk are not to wait for each other before.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(w.depth))

	size, used, free := int64(w.blockSize), b.used(), b.free()
	copies := free.offset + free.length - used.length
	var next, done atomic.Int64
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for buf := range slices.Chunk(mem, w.blockSize) {
		g.Go(func() error {
			for time.Since(began) < b.run && ctx.Err() == nil {
				at := (next.Add(1) - 1) * size % used.length
				if err := overwriteCopied(raw, buf, used.offset+at, copies+at); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	err = g.Wait()
	return tally{ops: done.Load(), bytes: done.Load() * size, time: time.Since(began)}, err
}

// overwriteCopied copies what is at one place to another, and overwrites it.
func overwriteCopied(f *os.File, buf []byte, at, copied int64) error {
	if _, err := f.ReadAt(buf, at); err != nil {
		return err
	}
	for _, to := range []int64{copied, at} {
		if _, err := f.WriteAt(buf, to); err != nil {
			return err
		}
	}
	return nil
}
