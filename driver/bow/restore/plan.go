package restore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// plan is everything that is to be done, known before anything is done.
type plan struct {
	dev       blockdev.Device
	from      blockdev.Device // the same, to read copies from
	blockSize int             // of the log, bytes
	original  uint64          // sector with the content of block 0

	logBlocks, entries    int
	checkBytes, copyBytes int64

	checks []check      // in the order of the device
	split  []splitCheck // the few that later entries have torn into pieces
	copies []bowlog.Copy
}

// check is one entry whose copy is to be verified.
type check struct {
	at       uint64 // sector where the copy is now
	entry    bowlog.Entry
	sequence uint32 // of the log block
	index    int32  // in the log block
}

func (c check) String() string {
	return fmt.Sprintf("log block %d, entry %d (%v)", c.sequence, c.index, c.entry)
}

type splitCheck struct {
	check
	pieces []bowlog.Piece
}

// ctxInterval is the number of entries between two looks at the context.
const ctxInterval = 1024

// makePlan reads the whole log of dev, whose log block in force is head.
func makePlan(ctx context.Context, dev blockdev.Device, head *bowlog.Block) (*plan, error) {
	p := &plan{dev: dev, blockSize: head.BlockSize}
	chain, err := bowlog.Walk(dev, head, func(s bowlog.Step) error {
		p.add(s)
		if p.entries%ctxInterval == 0 {
			return ctx.Err()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	p.original = chain.Original()
	for c := range chain.PutBack() {
		p.copies = append(p.copies, c)
		p.copyBytes += c.Size
	}
	slices.SortFunc(p.checks, func(a, b check) int { return cmp.Compare(a.at, b.at) })
	return p, nil
}

func (p *plan) add(s bowlog.Step) {
	p.entries++
	if s.Index == 0 {
		p.logBlocks++
		if s.Block.Sequence > 0 {
			return // leads to a log block, which Walk checks
		}
	}
	c := check{at: s.Pieces[0].Sector, entry: s.Entry, sequence: s.Block.Sequence, index: int32(s.Index)}
	p.checkBytes += int64(s.Entry.Size)
	if len(s.Pieces) == 1 {
		p.checks = append(p.checks, c)
		return
	}
	p.split = append(p.split, splitCheck{c, slices.Clone(s.Pieces)})
}
