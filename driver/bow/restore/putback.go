package restore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// putBack copies everything but block 0 to where it belongs and flushes.
//
// Copies lie close together, in the order in which they were made, whatever the
// order of the blocks that they are of. So reading follows the copies, in
// windows, and writing sorts and merges within each window.
func (p *plan) putBack(ctx context.Context, report func(Progress)) error {
	m := newMeter(PhaseRestore, p.copyBytes, report)
	q := copyQueue{rest: p.copies}
	g, ctx := errgroup.WithContext(ctx)
	for range parallel {
		g.Go(func() error {
			w := copier{dev: p.dev}
			for {
				w.list = q.next(w.list[:0])
				if len(w.list) == 0 {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				n, err := w.copy()
				if err != nil {
					return err
				}
				m.add(n)
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := p.dev.Flush(); err != nil {
		return fmt.Errorf("flushing what was put back: %w", err)
	}
	return nil
}

// copyQueue hands out copies, window by window.
type copyQueue struct {
	mu   sync.Mutex
	rest []bowlog.Copy // guarded by mu; in the order of From
}

// next appends to list the copies of the next window. It cuts those that are
// longer.
func (q *copyQueue) next(list []bowlog.Copy) []bowlog.Copy {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.rest) > 0 {
		c := &q.rest[0]
		left := int64(windowSize)
		if len(list) > 0 {
			left -= bytes(c.From - list[0].From)
		}
		if left <= 0 {
			break
		}
		n := min(c.Size, left)
		list = append(list, bowlog.Copy{From: c.From, To: c.To, Size: n})
		if n < c.Size {
			c.From += uint64(n) / blockdev.SectorSize
			c.To += uint64(n) / blockdev.SectorSize
			c.Size -= n
			break
		}
		q.rest = q.rest[1:]
	}
	return list
}

// copier is one goroutine's part of the work.
type copier struct {
	dev     blockdev.Device
	list    []bowlog.Copy // within one window
	in, out []byte        // made with the first use
}

// copy does what is in list and returns the number of bytes.
func (w *copier) copy() (total int64, err error) {
	if w.in == nil {
		w.in, w.out = blockdev.Buffer(windowSize), blockdev.Buffer(windowSize)
	}
	base := w.list[0].From
	r := runReader{dev: w.dev, buf: w.in, base: base}
	for _, c := range w.list {
		r.want(c.From, c.Size)
	}
	if err := r.flush(); err != nil {
		return 0, err
	}
	slices.SortFunc(w.list, func(a, b bowlog.Copy) int { return cmp.Compare(a.To, b.To) })
	for list := w.list; len(list) > 0; {
		n := 1
		end := list[0].To + uint64(list[0].Size)/blockdev.SectorSize
		for n < len(list) && list[n].To == end {
			end += uint64(list[n].Size) / blockdev.SectorSize
			n++
		}
		off := bytes(list[0].From - base)
		data := w.in[off : off+list[0].Size]
		if n > 1 {
			data = w.out[:0]
			for _, c := range list[:n] {
				off := bytes(c.From - base)
				data = append(data, w.in[off:off+c.Size]...)
			}
		}
		if _, err := w.dev.WriteAt(data, bytes(list[0].To)); err != nil {
			return 0, fmt.Errorf("putting back %d bytes at sector %d: %w", len(data), list[0].To, err)
		}
		total += int64(len(data))
		list = list[n:]
	}
	return total, nil
}
