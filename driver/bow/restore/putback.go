package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/iomem"
)

// batchSize is the most that is read before it is written, bytes. The more, the
// more of what lies together on the device is read and written in one go.
const batchSize = 64 << 20

// putBack copies everything but block 0 to where it belongs and flushes.
//
// Copies lie in the order in which they were made, whatever the order of the
// blocks that they are of. So either reading or writing has to jump. Batches are
// taken in the order that has fewer runs; within a batch both sides are sorted.
func (p *plan) putBack(ctx context.Context, report func(Progress)) (err error) {
	m := newMeter(PhaseRestore, p.copyBytes, report)
	rest := p.copies
	if runs(rest, byFrom) <= runs(rest, byTo) {
		slices.SortFunc(rest, byFrom.compare)
	} else {
		slices.SortFunc(rest, byTo.compare)
	}
	b := batch{dev: p.dev, from: p.from}
	if b.data, err = iomem.Map(int(max(min(batchSize, p.copyBytes), 1))); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iomem.Unmap(b.data)) }()
	for len(rest) > 0 {
		rest = b.take(rest)
		if err := b.read(ctx); err != nil {
			return err
		}
		if err := b.write(ctx, m); err != nil {
			return err
		}
	}
	if err := p.dev.Flush(); err != nil {
		return fmt.Errorf("flushing what was put back: %w", err)
	}
	return nil
}

// side is one end of copies: where they are, or where they belong.
type side func(bowlog.Copy) uint64

var (
	byFrom side = func(c bowlog.Copy) uint64 { return c.From }
	byTo   side = func(c bowlog.Copy) uint64 { return c.To }
)

func (s side) compare(a, b bowlog.Copy) int { return cmp.Compare(s(a), s(b)) }

// runs sorts list by s and returns in how many places something does not follow
// what is before it.
func runs(list []bowlog.Copy, s side) int {
	slices.SortFunc(list, s.compare)
	n := 0
	var end uint64
	for _, c := range list {
		if s(c) != end {
			n++
		}
		end = s(c) + sectors(c.Size)
	}
	return n
}

// batch is a number of copies that are read, and then written.
type batch struct {
	dev, from blockdev.Device
	data      []byte
	slots     []slot
}

// slot is a copy and its place in batch.data.
type slot struct {
	bowlog.Copy
	off int64
}

// transfer is a request to the device: some slots that follow each other there.
type transfer struct {
	slots      []slot
	start, end uint64 // sectors
}

// take fills b from the beginning of list and returns the rest. The places in
// the buffer are in the order of To.
func (b *batch) take(list []bowlog.Copy) []bowlog.Copy {
	b.slots = b.slots[:0]
	for left := int64(len(b.data)); left > 0 && len(list) > 0; {
		c := &list[0]
		n := min(c.Size, left, windowSize)
		b.slots = append(b.slots, slot{Copy: bowlog.Copy{From: c.From, To: c.To, Size: n}})
		left -= n
		c.From, c.To, c.Size = c.From+sectors(n), c.To+sectors(n), c.Size-n
		if c.Size == 0 {
			list = list[1:]
		}
	}
	slices.SortFunc(b.slots, func(x, y slot) int { return byTo.compare(x.Copy, y.Copy) })
	off := int64(0)
	for i := range b.slots {
		b.slots[i].off = off
		off += b.slots[i].Size
	}
	return list
}

// transfers cuts the slots into requests: slots that are no more than gap sectors
// apart at the given side, which they are sorted by, and together not longer
// than windowSize.
func (b *batch) transfers(at side, gap uint64) []transfer {
	var list []transfer
	first := 0
	for i := 1; i <= len(b.slots); i++ {
		start, end := at(b.slots[first].Copy), at(b.slots[i-1].Copy)+sectors(b.slots[i-1].Size)
		if i < len(b.slots) {
			s := b.slots[i]
			if at(s.Copy)-end <= gap && bytes(at(s.Copy)+sectors(s.Size)-start) <= windowSize {
				continue
			}
		}
		list = append(list, transfer{b.slots[first:i], start, end})
		first = i
	}
	return list
}

// readGap is the gap that is cheaper to read than to leave out, sectors.
const readGap = 64 << 10 / blockdev.SectorSize

// read reads all slots, those that are near to each other in one go.
func (b *batch) read(ctx context.Context) error {
	slices.SortFunc(b.slots, func(x, y slot) int { return byFrom.compare(x.Copy, y.Copy) })
	return inParallel(ctx, b.transfers(byFrom, readGap), func(t transfer, scratch *[]byte) error {
		if len(t.slots) > 1 {
			if *scratch == nil {
				*scratch = blockdev.Buffer(int(min(windowSize, b.dev.Size())))
			}
			p := (*scratch)[:bytes(t.end-t.start)]
			if _, err := b.from.ReadAt(p, bytes(t.start)); err == nil {
				for _, s := range t.slots {
					copy(b.data[s.off:s.off+s.Size], p[bytes(s.From-t.start):])
				}
				return nil
			}
			// Perhaps it is a gap that cannot be read.
		}
		for _, s := range t.slots {
			if _, err := b.from.ReadAt(b.data[s.off:s.off+s.Size], bytes(s.From)); err != nil {
				return fmt.Errorf("reading the copy at sector %d of what belongs at sector %d: %w", s.From, s.To, err)
			}
		}
		return nil
	})
}

// write writes all slots.
func (b *batch) write(ctx context.Context, m *meter) error {
	slices.SortFunc(b.slots, func(x, y slot) int { return byTo.compare(x.Copy, y.Copy) })
	return inParallel(ctx, b.transfers(byTo, 0), func(t transfer, _ *[]byte) error {
		n := bytes(t.end - t.start)
		off := t.slots[0].off
		if _, err := b.dev.WriteAt(b.data[off:off+n], bytes(t.start)); err != nil {
			return fmt.Errorf("putting back %d bytes at sector %d: %w", n, t.start, err)
		}
		m.add(n)
		return nil
	})
}

// inParallel calls do for each transfer, in order, on several goroutines. Each of
// these has a scratch buffer that do may set and find again.
func inParallel(ctx context.Context, list []transfer, do func(t transfer, scratch *[]byte) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(parallel, len(list)) {
		g.Go(func() error {
			var scratch []byte
			for {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(list[i], &scratch); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// sectors is the number of sectors of n bytes.
func sectors(n int64) uint64 { return uint64(n) / blockdev.SectorSize }
