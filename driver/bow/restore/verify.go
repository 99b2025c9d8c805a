package restore

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

const (
	// windowSize is the most that one goroutine reads or writes at once, bytes.
	windowSize = 1 << 20

	// parallel is the number of goroutines that do I/O at the same time.
	parallel = 8
)

// verify reads all copies and compares their checksums. It returns an error that
// wraps ErrDamaged and names the entry for one that is wrong.
func (p *plan) verify(ctx context.Context, report func(Progress)) error {
	m := newMeter(PhaseVerify, p.checkBytes, report)
	var mu sync.Mutex
	checks, split := p.checks, p.split
	next := func() (list []check, one *splitCheck) {
		mu.Lock()
		defer mu.Unlock()
		if len(checks) > 0 {
			n := window(checks)
			list, checks = checks[:n], checks[n:]
		} else if len(split) > 0 {
			one, split = &split[0], split[1:]
		}
		return list, one
	}
	g, ctx := errgroup.WithContext(ctx)
	for range parallel {
		g.Go(func() error {
			var buf []byte // not before there is work: a small log has little
			for {
				list, one := next()
				if buf == nil && (one != nil || len(list) > 0) {
					buf = blockdev.Buffer(int(min(windowSize, p.dev.Size())))
				}
				var err error
				switch {
				case ctx.Err() != nil:
					err = ctx.Err()
				case one != nil:
					err = p.verifyPieces(ctx, m, one.check, one.pieces, buf)
				case len(list) > 0:
					err = p.verifyWindow(ctx, m, list, buf)
				default:
					return nil
				}
				if err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// window is the number of checks at the beginning of list, which is not empty,
// that fit in one window of the device together; at least 1.
func window(list []check) int {
	base := list[0].at
	n := 1
	if list[0].entry.Size > windowSize {
		return n
	}
	for n < len(list) && bytes(list[n].at-base)+int64(list[n].entry.Size) <= windowSize {
		n++
	}
	return n
}

// verifyWindow verifies list, which lies within one window of the device, unless
// it is a single check.
func (p *plan) verifyWindow(ctx context.Context, m *meter, list []check, buf []byte) error {
	base := list[0].at
	one := func(c check) error {
		return p.verifyPieces(ctx, m, c, []bowlog.Piece{{Sector: c.at, Size: int64(c.entry.Size)}}, buf)
	}
	if len(list) == 1 {
		return one(list[0])
	}
	r := runReader{dev: p.from, buf: buf, base: base}
	for _, c := range list {
		r.want(c.at, int64(c.entry.Size))
	}
	if r.flush() != nil {
		// One by one, to find out which it is.
		for _, c := range list {
			if err := one(c); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range list {
		off := bytes(c.at - base)
		crc := bowlog.Checksum(p.seed(c), buf[off:off+int64(c.entry.Size)])
		if err := c.compare(crc); err != nil {
			return err
		}
		m.add(int64(c.entry.Size))
	}
	return nil
}

// verifyPieces verifies one copy of any length.
func (p *plan) verifyPieces(ctx context.Context, m *meter, c check, pieces []bowlog.Piece, buf []byte) error {
	crc := p.seed(c)
	for _, piece := range pieces {
		for done := int64(0); done < piece.Size; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(piece.Size-done, windowSize)]
			if _, err := p.from.ReadAt(part, bytes(piece.Sector)+done); err != nil {
				return fmt.Errorf("%w: %v: reading what is at sector %d now: %w", ErrDamaged, c, piece.Sector, err)
			}
			crc = bowlog.Checksum(crc, part)
			done += int64(len(part))
			m.add(int64(len(part)))
		}
	}
	return c.compare(crc)
}

func (p *plan) seed(c check) uint32 { return bowlog.Seed(c.entry.Source, p.blockSize) }

// compare returns an error if crc is not the checksum that the log recorded.
func (c check) compare(crc uint32) error {
	if c.entry.Checksum == 0 || c.entry.Checksum == crc {
		return nil
	}
	return fmt.Errorf("%w: %v, now at sector %d: its checksum is %08x, recorded %08x",
		ErrDamaged, c, c.at, crc, c.entry.Checksum)
}

// runReader reads ranges of a window into the matching places of a buffer, those
// that adjoin or overlap in one go.
type runReader struct {
	dev        blockdev.Device
	buf        []byte
	base       uint64 // sector of buf[0]
	start, end int64  // in buf: wanted and not read yet
	err        error
}

// want asks for size bytes at sector, which is not below that of the call
// before.
func (r *runReader) want(sector uint64, size int64) {
	start := bytes(sector - r.base)
	if start > r.end {
		r.read()
		r.start = start
	}
	r.end = max(r.end, start+size)
}

// flush reads what is still wanted and returns the first error of all reads.
func (r *runReader) flush() error {
	r.read()
	return r.err
}

func (r *runReader) read() {
	if r.err != nil || r.start == r.end {
		return
	}
	if _, err := r.dev.ReadAt(r.buf[r.start:r.end], bytes(r.base)+r.start); err != nil {
		r.err = fmt.Errorf("reading copies at sector %d: %w", r.base+uint64(r.start)/blockdev.SectorSize, err)
	}
	r.start = r.end
}

// bytes is the length of n sectors, or the position of sector n.
func bytes(n uint64) int64 { return int64(n) * blockdev.SectorSize }
