package bowlog

import (
	"errors"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// maxBlockSize is the largest block that a log may have, bytes.
const maxBlockSize = 4096

// Load reads the log block in force from dev: block 0, or, if that is torn, the
// whole shadow of the same checkpoint and generation, or of the next one. The block is validated against
// the size of dev. Load writes nothing.
//
// Errors wrap ErrNoLog if dev has no log, ErrUnsupported, ErrTorn (block 0 is
// torn and no shadow is whole) or ErrCorrupt, or are I/O errors.
func Load(dev blockdev.Device) (*Block, error) {
	unit := max(dev.BlockSize(), blockdev.SectorSize)
	buf := blockdev.Buffer(int(min(dev.Size(), int64(max(maxBlockSize, unit)))))
	if _, err := dev.ReadAt(buf, 0); err != nil {
		return nil, fmt.Errorf("reading block 0: %w", err)
	}
	b, err := Unmarshal(buf)
	if err == nil {
		return b, b.Validate(dev.Size())
	}
	if !errors.Is(err, ErrTorn) {
		return nil, fmt.Errorf("block 0: %w", err)
	}
	torn := err
	if err := b.Validate(dev.Size()); err != nil {
		return nil, err
	}
	var best *Block
	for _, sector := range b.Ext.Shadows {
		s, err := loadShadow(dev, b, sector)
		if err != nil {
			torn = fmt.Errorf("%w; shadow at sector %d: %w", torn, sector, err)
			continue
		}
		// One of the same generation as the header was flushed before the
		// header was written. The next one may be a write that was given up.
		if best == nil || s.Ext.Generation == b.Ext.Generation {
			best = s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("block 0: %w", torn)
	}
	return best, nil
}

// loadShadow reads the second copy at sector of the log block whose header, in
// block 0, is head.
func loadShadow(dev blockdev.Device, head *Block, sector uint64) (*Block, error) {
	if sector == 0 {
		return nil, ErrNoLog
	}
	s, err := ReadBlock(dev, sector, head.BlockSize)
	if err != nil {
		return nil, err
	}
	if s.Ext == nil || s.Ext.Checkpoint != head.Ext.Checkpoint || s.Ext.Phase != PhaseOpen {
		return nil, fmt.Errorf("%w: of another checkpoint", ErrNoLog)
	}
	// The write that tore block 0 was of the generation in its header, if that
	// arrived, or else of the next one. An older shadow lacks entries whose
	// blocks may have been overwritten; a newer one may name copies that never
	// arrived.
	if g := s.Ext.Generation; g != head.Ext.Generation && g != head.Ext.Generation+1 {
		return nil, fmt.Errorf("%w: generation %d does not follow %d", ErrNoLog, g, head.Ext.Generation)
	}
	return s, s.Validate(dev.Size())
}

// ReadBlock reads and decodes the log block of blockSize bytes at sector.
// The caller has checked that it lies inside dev; what the block names has not
// been checked, see Block.Validate.
func ReadBlock(dev blockdev.Device, sector uint64, blockSize int) (*Block, error) {
	buf := blockdev.Buffer(blockSize)
	if _, err := dev.ReadAt(buf, int64(sector)*blockdev.SectorSize); err != nil {
		return nil, fmt.Errorf("reading the log block at sector %d: %w", sector, err)
	}
	b, err := Unmarshal(buf)
	if err == nil && b.BlockSize != blockSize {
		err = fmt.Errorf("%w: block size %d in a log of blocks of %d", ErrCorrupt, b.BlockSize, blockSize)
	}
	if err != nil {
		return nil, fmt.Errorf("log block at sector %d: %w", sector, err)
	}
	return b, nil
}

// Write puts b in force: it writes it to block 0 and flushes. The shadow must
// have been written and flushed before, unless a block is atomic on dev.
func Write(dev blockdev.Device, b *Block) error {
	buf := blockdev.Buffer(b.BlockSize)
	if err := b.Marshal(buf); err != nil {
		return err
	}
	if _, err := dev.WriteAt(buf, 0); err != nil {
		return fmt.Errorf("writing the log block: %w", err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("flushing the log block: %w", err)
	}
	return nil
}

// Take takes block 0 away from its user and puts b, the first log block, there.
//
// The content of block 0 must be durable at b.Sector0 and b at one of its
// shadows. A crash before Take returns leaves block 0 as it was, or a header in
// PhaseOpening or PhaseOpen that Recover or Load understands.
func Take(dev blockdev.Device, b *Block) error {
	if dev.BlockSize() < b.BlockSize {
		// The block may tear, and half a log on half of somebody else's
		// block 0 would be neither. So the header goes first, alone.
		if err := writeHeader(dev, b, PhaseOpening, b.Sector0); err != nil {
			return err
		}
	}
	return Write(dev, b)
}

// GiveBack ends the checkpoint whose log b is: block 0 becomes what is at
// sector content, which must be durable. A crash on the way leaves a header in
// PhaseClosing, which Recover brings to its end. A log of version 1.0 gets an
// extension for that time.
func GiveBack(dev blockdev.Device, b *Block, content uint64) error {
	buf := blockdev.Buffer(b.BlockSize)
	if _, err := dev.ReadAt(buf, int64(content)*blockdev.SectorSize); err != nil {
		return fmt.Errorf("reading the content of block 0 from sector %d: %w", content, err)
	}
	unit := max(dev.BlockSize(), blockdev.SectorSize)
	if unit < b.BlockSize {
		if err := writeHeader(dev, b, PhaseClosing, content); err != nil {
			return err
		}
		// The header is in the first unit and names the content as long as
		// the rest is not durable.
		if err := writeFlush(dev, buf[unit:], int64(unit)); err != nil {
			return err
		}
		buf = buf[:unit]
	}
	return writeFlush(dev, buf, 0)
}

// MarkHalfRestored says in block 0 that the content of dev, whose log b is, is
// being put back: from then on it is neither the current one nor that of the
// checkpoint, and only restoring makes sense. It is the mark that Android's tool
// makes, with all entries still to be undone.
func MarkHalfRestored(dev blockdev.Device, b *Block) error {
	if b.Partial {
		return nil
	}
	// Block 0 may be torn and b a shadow. When all of b is there, the mark
	// changes no more than the first sector.
	if err := Write(dev, b); err != nil {
		return err
	}
	marked := *b
	marked.Partial = true
	return Write(dev, &marked)
}

// Recover finishes what a crash interrupted in Take or GiveBack: block 0 becomes
// what the header says that belongs there. It tells whether there was something
// to do; a device without a log, or with an open one, is left alone.
func Recover(dev blockdev.Device) (bool, error) {
	b, err := Load(dev)
	switch {
	case errors.Is(err, ErrNoLog):
		return false, nil
	case err != nil:
		return false, err
	case b.Ext == nil || b.Ext.Phase == PhaseOpen:
		return false, nil
	}
	return true, GiveBack(dev, b, b.Sector0)
}

// writeHeader makes the first unit of block 0 a header like that of b, but
// without entries, in the given phase and with the given sector0.
func writeHeader(dev blockdev.Device, b *Block, phase Phase, sector0 uint64) error {
	h := Block{BlockSize: b.BlockSize, Sequence: b.Sequence, Sector0: sector0, Ext: &Extension{Opened: time.Unix(0, 0)}}
	if b.Ext != nil {
		*h.Ext = *b.Ext
	}
	h.Ext.Phase = phase
	buf := blockdev.Buffer(b.BlockSize)
	if err := h.Marshal(buf); err != nil {
		return err
	}
	if err := writeFlush(dev, buf[:max(dev.BlockSize(), blockdev.SectorSize)], 0); err != nil {
		return fmt.Errorf("phase %s: %w", phase, err)
	}
	return nil
}

func writeFlush(dev blockdev.Device, p []byte, off int64) error {
	if _, err := dev.WriteAt(p, off); err != nil {
		return fmt.Errorf("writing block 0: %w", err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("flushing block 0: %w", err)
	}
	return nil
}
