package bowlog

import (
	"fmt"
	"iter"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/rangemap"
)

// Step is one entry on the way from the newest to the oldest.
type Step struct {
	Block *Block // the log block that holds the entry
	At    uint64 // sector where that log block is now; 0 for the one in force
	Index int    // of the entry in Block.Entries
	Entry Entry

	// Pieces say where the copy is now, in the order of its bytes. There are
	// several if later entries moved parts of it. Valid during the visit only.
	Pieces []Piece
}

// Piece is a run of bytes on the device.
type Piece struct {
	Sector uint64
	Size   int64 // bytes, a multiple of the log's block size
}

func (p Piece) end() uint64 { return p.Sector + uint64(p.Size)/blockdev.SectorSize }

// Copy says that Size bytes of the checkpoint, which belong at sector To, are at
// sector From now.
type Copy struct {
	From, To uint64
	Size     int64 // bytes, a multiple of the log's block size
}

// Chain is a log that was read as a whole, and what follows from it.
//
// Reading goes from the newest entry to the oldest. Each entry is undone, but in
// memory only: what was at the source is where the copy is. So at any time the
// chain knows for each block where the content is that the block had when the
// entry in hand was written ("as if restored"), and the next older log block is
// read through that.
//
// A log that contradicts itself is refused. What ends every log, however
// hostile, is this: the map from blocks to the places of their contents is
// injective on the blocks that are alive. An entry makes its copy's block dead,
// and may do so only with one that is alive. So the entry that leads to the
// next older log block leaves one place less, and no place is read twice.
type Chain struct {
	head     *Block
	perBlock uint64 // sectors
	places   *rangemap.Map[place]
	current  int64 // block that was SECTOR0_CURRENT when the entry in hand was written
	moved    int64 // blocks

	// Scratch, used again for each entry.
	from, to []rangemap.Extent[place]
	runs     []Piece
}

// place is what is known of a block: how many blocks further on its content is
// now, and some marks.
type place int64

const (
	// markPut: the oldest entry that names the block names it as a source, so
	// far. Its content belongs to the checkpoint and is to be put back.
	markPut place = 1 << iota

	// markHeld: an entry or the log block in force gave the block a use, so it
	// was free at the checkpoint, and may be needed for restoring.
	markHeld

	// markFree: the block was free at the checkpoint for another reason: it
	// held the live content of block 0 once, or a shadow.
	markFree

	// markDead: at the time of the entry in hand nothing of interest was in
	// the block.
	markDead

	placeShift = iota
)

func (p place) delta() int64          { return int64(p >> placeShift) }
func (p place) has(marks place) bool  { return p&marks != 0 }
func (p place) shifted(n int64) place { return p + place(n)<<placeShift }

// Class makes place fit for a range map; nothing is asked for by class.
func (p place) Class() rangemap.Class { return 0 }

// Walk reads the log whose block in force is head, and calls visit for each
// entry, newest first, before it is undone. An error of visit ends the walk and
// is returned as it is.
//
// Every log block is checked: its checksum if one was recorded, its header
// against that of its successor, its entries against the device and against all
// newer entries. Whether the copies of data are what they were is for the
// visitor to find out. Nothing is written. Errors wrap ErrCorrupt, ErrNoLog,
// ErrUnsupported or ErrTorn and name the log block, or are I/O errors.
//
// Memory goes with the number of entries: some 30 bytes for each.
func Walk(dev blockdev.Device, head *Block, visit func(Step) error) (*Chain, error) {
	if head.Ext != nil && head.Ext.Phase != PhaseOpen {
		return nil, fmt.Errorf("%w: no log to read in phase %s", ErrNoLog, head.Ext.Phase)
	}
	if err := head.Validate(dev.Size()); err != nil {
		return nil, err
	}
	c := &Chain{
		head:     head,
		perBlock: uint64(head.BlockSize) / blockdev.SectorSize,
		places:   rangemap.New(dev.Size()/int64(head.BlockSize), place(0)),
	}
	c.current = c.block(head.Sector0)
	c.markMetadata(head, markHeld)
	block, at := head, uint64(0)
	for {
		if err := c.undoBlock(block, at, visit); err != nil {
			return nil, err
		}
		if block.Sequence == 0 {
			if err := c.checkOldest(dev); err != nil {
				return nil, err
			}
			return c, c.checkSets()
		}
		// What is at block 0 now, as if restored, is the log block before.
		at = c.sector(c.place(0))
		older, err := readOlder(dev, block, at)
		if err != nil {
			return nil, fmt.Errorf("log block %d at sector %d: %w", block.Sequence-1, at, err)
		}
		if block.Partial {
			// The newest moves of the live block 0 may be undone and gone
			// from the log.
			c.current = c.block(older.Sector0)
		}
		c.markMetadata(older, markFree)
		block = older
	}
}

// readOlder reads the log block before newer, which is at the given sector.
func readOlder(dev blockdev.Device, newer *Block, at uint64) (*Block, error) {
	buf := blockdev.Buffer(newer.BlockSize)
	if _, err := dev.ReadAt(buf, int64(at)*blockdev.SectorSize); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	if want, got := newer.Entries[0].Checksum, Checksum(0, buf); want != 0 && got != want {
		return nil, fmt.Errorf("%w: its checksum is %08x, recorded %08x", ErrCorrupt, got, want)
	}
	b, err := Unmarshal(buf)
	if err != nil {
		return nil, err
	}
	switch {
	case b.BlockSize != newer.BlockSize:
		return nil, fmt.Errorf("%w: block size %d in a log of blocks of %d", ErrCorrupt, b.BlockSize, newer.BlockSize)
	case b.Sequence != newer.Sequence-1:
		return nil, fmt.Errorf("%w: its sequence is %d", ErrCorrupt, b.Sequence)
	case b.Partial:
		return nil, fmt.Errorf("%w: only block 0 may be marked as half-restored", ErrCorrupt)
	case (b.Ext == nil) != (newer.Ext == nil):
		return nil, fmt.Errorf("%w: header size %d before one of %d", ErrCorrupt, b.headerSize(), newer.headerSize())
	case b.Ext != nil && b.Ext.Checkpoint != newer.Ext.Checkpoint:
		return nil, fmt.Errorf("%w: it belongs to checkpoint %v, not %v", ErrCorrupt, b.Ext.Checkpoint, newer.Ext.Checkpoint)
	case b.Ext != nil && b.Ext.Phase != PhaseOpen:
		return nil, fmt.Errorf("%w: it is in phase %s", ErrCorrupt, b.Ext.Phase)
	}
	return b, b.Validate(dev.Size())
}

func (c *Chain) undoBlock(b *Block, at uint64, visit func(Step) error) error {
	for i := len(b.Entries) - 1; i >= 0; i-- {
		e := b.Entries[i]
		pieces, err := c.pieces(e)
		if err != nil {
			return fmt.Errorf("log block %d, entry %d (%v): %w", b.Sequence, i, e, err)
		}
		if err := visit(Step{Block: b, At: at, Index: i, Entry: e, Pieces: pieces}); err != nil {
			return err
		}
		c.undo(e)
	}
	return nil
}

// pieces tells where the copy of e is now and leaves the extents of that in
// c.from.
func (c *Chain) pieces(e Entry) ([]Piece, error) {
	start, end := c.block(e.Dest), c.block(e.Dest+e.Sectors())
	c.from, c.runs = c.from[:0], c.runs[:0]
	for x := range c.places.Extents(start, end) {
		if x.Value.has(markDead) {
			return nil, fmt.Errorf("%w: a newer entry put another copy at sector %d", ErrCorrupt, c.sector(x.Start))
		}
		c.from = append(c.from, x)
		p := Piece{Sector: c.sector(x.Start + x.Value.delta()), Size: (x.End - x.Start) * int64(c.head.BlockSize)}
		if n := len(c.runs); n > 0 && c.runs[n-1].end() == p.Sector {
			c.runs[n-1].Size += p.Size
			continue
		}
		c.runs = append(c.runs, p)
	}
	return c.runs, nil
}

// undo notes that the content of e's source is where its copy is. c.from has the
// extents of the copy.
func (c *Chain) undo(e Entry) {
	src, dst, n := c.block(e.Source), c.block(e.Dest), int64(e.Size)/int64(c.head.BlockSize)
	delta := dst - src
	for _, x := range c.from {
		from := x.Value.delta() + delta
		c.update(x.Start-delta, x.End-delta, func(p place) place {
			return p.shifted(from-p.delta())&^markDead | markPut
		})
	}
	c.update(dst, dst+n, func(p place) place {
		return p&^markPut | markHeld | markDead
	})
	for _, x := range c.from {
		if x.Value.has(markPut) {
			c.moved += x.End - x.Start
		}
	}
	// The live content of block 0 changes, so a copy of it has no checksum.
	if e.Checksum == 0 && c.current >= dst && c.current < dst+n {
		c.current -= delta
		c.mark(c.current, c.current+1, markFree)
		c.moved++
	}
}

// update replaces the place p of each block of [start, end) with f(p).
func (c *Chain) update(start, end int64, f func(place) place) {
	c.to = c.to[:0]
	for x := range c.places.Extents(start, end) {
		c.to = append(c.to, x)
	}
	for _, x := range c.to {
		c.places.Set(x.Start, x.End, f(x.Value))
	}
}

func (c *Chain) mark(start, end int64, marks place) {
	c.update(start, end, func(p place) place { return p | marks })
}

// markMetadata marks the blocks that the header of b names.
func (c *Chain) markMetadata(b *Block, marks place) {
	live := c.block(b.Sector0)
	c.mark(live, live+1, marks)
	if b.Ext == nil {
		return
	}
	for _, s := range b.Ext.Shadows {
		if s != 0 {
			c.mark(c.block(s), c.block(s)+1, marks)
		}
	}
}

// checkOldest makes sure that the log does not end too early: that its first
// entry leads to a user's block 0 and not to one more log block. A header of
// version 1.0 has no checksum that proves its sequence.
func (c *Chain) checkOldest(dev blockdev.Device) error {
	if c.head.Ext != nil {
		return nil
	}
	buf := blockdev.Buffer(c.head.BlockSize)
	if _, err := dev.ReadAt(buf, int64(c.Original())*blockdev.SectorSize); err != nil {
		return nil // found, and named better, when the copies are verified
	}
	if b, err := Unmarshal(buf); err == nil && b.BlockSize == c.head.BlockSize && b.Validate(dev.Size()) == nil {
		return fmt.Errorf("%w: log block 0, entry 0 leads to log block %d at sector %d instead of the original block 0",
			ErrCorrupt, b.Sequence, c.Original())
	}
	return nil
}

// checkSets makes sure that what is to be put back and what holds copies are
// different blocks.
//
// dm-bow never frees a block again, so with a whole log of version 1.0 there is a
// contradiction if an entry names a block as a source, a newer one names it as a
// copy, and nothing says that it was free before. In Bowline's own logs, and
// where entries are missing, what was named as a copy counts as free.
func (c *Chain) checkSets() error {
	if c.head.Ext != nil || c.head.Partial {
		return nil
	}
	for x := range c.places.Extents(1, c.places.Size()) {
		if x.Value.has(markPut) && x.Value.has(markHeld) && !x.Value.has(markFree) {
			return fmt.Errorf("%w: sector %d was in use at the checkpoint and holds a copy as well", ErrCorrupt, c.sector(x.Start))
		}
	}
	return nil
}

// PutBack yields what is to be copied to have the content of the checkpoint
// back, in the order of Copy.To. Block 0 is not among it, see Original. No From
// lies in any To.
func (c *Chain) PutBack() iter.Seq[Copy] {
	return func(yield func(Copy) bool) {
		for x := range c.places.Extents(1, c.places.Size()) {
			if !x.Value.has(markPut) || x.Value.has(markHeld|markFree) {
				continue
			}
			if !yield(Copy{
				From: c.sector(x.Start + x.Value.delta()),
				To:   c.sector(x.Start),
				Size: (x.End - x.Start) * int64(c.head.BlockSize),
			}) {
				return
			}
		}
	}
}

// Original is the sector where the content is now that block 0 had at the
// checkpoint.
func (c *Chain) Original() uint64 { return c.sector(c.place(0)) }

// Moved is the number of bytes that were copied not because they belong to the
// checkpoint, but because the file system wanted the place of a copy, or of the
// live content of block 0, for itself.
func (c *Chain) Moved() int64 { return c.moved * int64(c.head.BlockSize) }

// place is the block where the content of block b is now.
func (c *Chain) place(b int64) int64 { return b + c.places.Get(b).Value.delta() }

func (c *Chain) block(sector uint64) int64 { return int64(sector / c.perBlock) }

func (c *Chain) sector(block int64) uint64 { return uint64(block) * c.perBlock }
