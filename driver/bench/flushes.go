package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// flushesWork is the work at depth 1. Its first overwrites are compared with what
// has to be done for each if it is alone; more is possible only if more is backed
// up than was asked.
const (
	flushesWork = "randwrite-1"
	goalFlushes = 3.0
)

// twoFlushes does on the raw device what a first overwrite of one block takes at
// least if nothing is done for its neighbours: the old content is read and
// written elsewhere, that is made durable, a block of the log is written, that
// is made durable, and the block itself is written.
func (b *bench) twoFlushes(ctx context.Context, device string) (t tally, err error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Direct I/O wants its memory aligned, as pages are.
	buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return t, fmt.Errorf("a buffer: %w", err)
	}
	defer unix.Munmap(buf)

	used, free := b.used(), b.free()
	copies, log := free.offset, free.offset+used.length
	began := time.Now()
	for _, i := range rand.Perm(int(used.length / blockSize)) {
		if time.Since(began) >= b.run || ctx.Err() != nil {
			break
		}
		at := used.offset + int64(i)*blockSize
		if err := copyDurably(f, buf, at, copies+t.bytes, log+t.bytes%(64*blockSize)); err != nil {
			return t, fmt.Errorf("first overwrites by hand on %s: %w", device, err)
		}
		t.add(tally{ops: 1, bytes: blockSize})
	}
	t.time = time.Since(began)
	return t, context.Cause(ctx)
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
