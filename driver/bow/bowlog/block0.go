package bowlog

import (
	"errors"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// maxBlockSize is the largest block that a log may have, bytes.
const maxBlockSize = 4096

// Load reads the log block in force from dev: block 0, or, if that is torn, its
// shadow. The block is validated against the size of dev. Load writes nothing.
//
// If the block is unproven (Extension.Unproven), the one in force may be the one
// before it: see Prove, which needs to read more.
//
// Errors wrap ErrNoLog if dev has no log, ErrUnsupported, ErrTorn (block 0 is
// torn and no shadow fits) or ErrCorrupt, or are I/O errors.
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
	if verr := b.Validate(dev.Size()); verr != nil {
		return nil, verr
	}
	s, serr := loadShadow(dev, b, b.Ext.Generation)
	if errors.Is(serr, errNotThere) && b.unproven() {
		// The header arrived and the shadow did not: the flush of both did not end.
		s, serr = loadShadow(dev, b, b.Ext.Generation-1)
	}
	if serr != nil {
		return nil, fmt.Errorf("block 0: %w; %w", err, serr)
	}
	return s, nil
}

// errNotThere says that where a shadow is to be something else is.
var errNotThere = errors.New("no such shadow")

// loadShadow reads the log block of the given generation from its shadow. head is the
// log block in block 0, or its header. If that one is not there, as a whole, the error
// wraps errNotThere.
func loadShadow(dev blockdev.Device, head *Block, generation uint64) (*Block, error) {
	sector := head.Ext.Shadows[generation%2]
	if sector == 0 {
		return nil, fmt.Errorf("%w: the header names none", errNotThere)
	}
	s, err := ReadBlock(dev, sector, head.BlockSize)
	switch {
	case errors.Is(err, ErrNoLog), errors.Is(err, ErrUnsupported), errors.Is(err, ErrTorn), errors.Is(err, ErrCorrupt):
		return nil, fmt.Errorf("%w: %w", errNotThere, err)
	case err != nil:
		return nil, err
	case s.Ext == nil || s.Ext.Checkpoint != head.Ext.Checkpoint || s.Ext.Phase != PhaseOpen || s.Partial:
		return nil, fmt.Errorf("%w: log block at sector %d is of another checkpoint", errNotThere, sector)
	case s.Ext.Generation != generation:
		return nil, fmt.Errorf("%w: log block at sector %d is of generation %d, not %d", errNotThere, sector, s.Ext.Generation, generation)
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

// WriteShadow writes b to the shadow of its generation. The caller flushes.
func WriteShadow(dev blockdev.Device, b *Block) error {
	buf := blockdev.Buffer(b.BlockSize)
	if err := b.Marshal(buf); err != nil {
		return err
	}
	at := b.Ext.Shadows[b.Ext.Generation%2]
	if _, err := dev.WriteAt(buf, int64(at)*blockdev.SectorSize); err != nil {
		return fmt.Errorf("writing the shadow of the log block: %w", err)
	}
	return nil
}

// Write puts b in force: it writes it to block 0 and flushes. Its shadow and all that
// it names must be durable; or b is unproven, and then they must be written.
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

// MarkHalfRestored says in block 0 that the content of dev, whose log b is (proven),
// is being put back: from then on it is neither the current one nor that of the
// checkpoint, and only restoring makes sense. It is the mark that Android's tool
// makes, with all entries still to be undone.
func MarkHalfRestored(dev blockdev.Device, b *Block) error {
	if b.Partial {
		return nil
	}
	// Block 0 may be torn and b a shadow. When all of b is there, the mark
	// changes no more than the first sector.
	b, err := Settle(dev, b)
	if err != nil {
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
