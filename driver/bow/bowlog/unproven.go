package bowlog

import (
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Prove finds out whether the copies that b, the log block that Load returned, adds to
// the one written before it have arrived, and returns the log block in force after all:
// b, or the one before. For an unproven block was written together with the copies,
// before one flush of all. Who finds it after a crash does not know whether that flush
// came to an end, but the checksums tell: if a copy is not there, and everything that
// was copied is still as it was, it makes no difference, and the one before is as
// right as it was. If something was overwritten, the flush had come to an end, and b is
// in force; whether its copies are good is for who reads them.
//
// Prove writes nothing. Errors wrap ErrCorrupt if b does not follow the one before,
// or are I/O errors.
func Prove(dev blockdev.Device, b *Block) (*Block, error) {
	copies, before, err := addedSince(dev, b)
	if err != nil {
		return nil, err
	}
	arrived := true
	for _, e := range copies {
		there, err := holds(dev, e.Dest, e, b.BlockSize)
		arrived = arrived && there && err == nil
	}
	if arrived {
		return b, nil
	}
	for _, e := range copies {
		same, err := holds(dev, e.Source, e, b.BlockSize)
		if err != nil {
			return nil, fmt.Errorf("looking whether log block %d of generation %d is in force: reading the source of %v: %w", b.Sequence, b.Ext.Generation, e, err)
		}
		if !same {
			return b, nil
		}
	}
	return before, nil
}

// addedSince returns what b adds to the log block before it, and that; or nothing if
// what b adds has arrived without doubt.
func addedSince(dev blockdev.Device, b *Block) ([]Entry, *Block, error) {
	if !b.unproven() {
		return nil, nil, nil
	}
	before, err := loadShadow(dev, b, b.Ext.Generation-1)
	if errors.Is(err, errNotThere) {
		// Its place was given to a later one, and that comes after the flush.
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("log block of generation %d, before the one in block 0: %w", b.Ext.Generation-1, err)
	}
	copies, err := added(before, b)
	return copies, before, err
}

// unproven tells whether the copies that b adds may not have arrived. Restoring begins
// when they have.
func (b *Block) unproven() bool {
	return b.Ext != nil && b.Ext.Unproven && b.Ext.Phase == PhaseOpen && !b.Partial
}

// added returns what b, the log block written after before, adds to it. The checksum
// of each is recorded.
func added(before, b *Block) ([]Entry, error) {
	wrong := func(why string) ([]Entry, error) {
		return nil, fmt.Errorf("%w: the newest log block, of generation %d, does not follow the one before: %s", ErrCorrupt, b.Ext.Generation, why)
	}
	n := len(before.Entries)
	if before.Sequence != b.Sequence || before.Sector0 != b.Sector0 || len(b.Entries) < n {
		return wrong("another sequence, place of block 0, or number of entries")
	}
	copies := append([]Entry(nil), b.Entries[n:]...)
	for i, e := range before.Entries {
		x := b.Entries[i]
		if x == e {
			continue
		}
		if i < n-1 || x.Source != e.Source || x.Dest != e.Dest || x.Size <= e.Size || x.Checksum == 0 || e.Checksum == 0 {
			return wrong(fmt.Sprintf("entry %d", i))
		}
		copies = append(copies, tail(x, e, b.BlockSize))
	}
	for _, e := range copies[:len(b.Entries)-n] {
		if e.Checksum == 0 {
			return wrong("a copy without a checksum")
		}
	}
	return copies, nil
}

// holds tells whether what is at sector has the checksum of e.
func holds(dev blockdev.Device, sector uint64, e Entry, blockSize int) (bool, error) {
	crc := Seed(e.Source, blockSize)
	err := inPieces(e, func(p []byte, off int64) error {
		_, err := dev.ReadAt(p, int64(sector)*blockdev.SectorSize+off)
		crc = Checksum(crc, p)
		return err
	})
	return crc == e.Checksum, err
}

// inPieces calls do with buffers that together have the length of e, in order.
func inPieces(e Entry, do func(p []byte, off int64) error) error {
	const most = 1 << 20
	buf := blockdev.Buffer(int(min(e.Size, most)))
	for off := int64(0); off < int64(e.Size); off += int64(len(buf)) {
		if err := do(buf[:min(int64(e.Size)-off, int64(len(buf)))], off); err != nil {
			return err
		}
	}
	return nil
}

// Settle makes b, which is what Prove returned, the log block in force in a way that
// no later crash makes doubtful. It returns b as it is on the disk then.
func Settle(dev blockdev.Device, b *Block) (*Block, error) {
	if b.Ext == nil || b.Ext.Shadows[0] == 0 || b.Ext.Shadows[1] == 0 {
		return b, Write(dev, b)
	}
	if b.unproven() {
		// Who read the copies, and block 0, may have read a cache, and of the
		// shadow nobody knows. As long as the one before is there, nobody needs to.
		if err := rewriteCopies(dev, b); err != nil {
			return nil, err
		}
		if err := flushShadow(dev, b); err != nil {
			return nil, err
		}
	}
	// What was read may not be on the disk, where block 0 may still need the other shadow.
	if err := Write(dev, b); err != nil {
		return nil, err
	}
	settled, ext := *b, *b.Ext
	settled.Ext = &ext
	ext.Unproven = false
	// Prove may have found the one after b wanting. The shadow of b stays.
	ext.Generation += 1 + GivenUp
	if err := flushShadow(dev, &settled); err != nil {
		return nil, err
	}
	return &settled, Write(dev, &settled)
}

func flushShadow(dev blockdev.Device, b *Block) error {
	if err := WriteShadow(dev, b); err != nil {
		return err
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("flushing the shadow of the log block: %w", err)
	}
	return nil
}

// GivenUp is how many generations are left out after a log block that was given up and
// may be on the disk or not: the next one goes to the same shadow, so that the one in
// force keeps its own, and cannot be mistaken for it.
const GivenUp = 2

// rewriteCopies writes the copies that b, which is proven, adds to the one before once
// more. The caller flushes.
func rewriteCopies(dev blockdev.Device, b *Block) error {
	copies, _, err := addedSince(dev, b)
	if err != nil {
		return err
	}
	for _, e := range copies {
		err := inPieces(e, func(p []byte, off int64) error {
			at := int64(e.Dest)*blockdev.SectorSize + off
			if _, err := dev.ReadAt(p, at); err != nil {
				return err
			}
			_, err := dev.WriteAt(p, at)
			return err
		})
		if err != nil {
			return fmt.Errorf("writing the copy of %v once more: %w", e, err)
		}
	}
	return nil
}

// Extend makes last the entry of what it copied and of what next copied, which
// continues it in both places. Both have checksums.
func Extend(last *Entry, next Entry, blockSize int) {
	// The checksum of the bytes of next began with its own seed; what is
	// wanted is that it had begun with the checksum so far. As there is no
	// inversion, checksums are linear, and the difference is the checksum of as
	// many zeros begun with the difference of the two seeds.
	last.Checksum = next.Checksum ^ overZeros(Seed(next.Source, blockSize)^last.Checksum, next.Size)
	last.Size += next.Size
}

// tail is the entry that has to be given to Extend to make whole of head.
func tail(whole, head Entry, blockSize int) Entry {
	t := Entry{Source: head.Source + head.Sectors(), Dest: head.Dest + head.Sectors(), Size: whole.Size - head.Size}
	t.Checksum = whole.Checksum ^ overZeros(Seed(t.Source, blockSize)^head.Checksum, t.Size)
	return t
}

// overZeros is the checksum crc continued over n zeros.
func overZeros(crc, n uint32) uint32 {
	for n > 0 {
		k := min(n, uint32(len(zeros)))
		crc = Checksum(crc, zeros[:k])
		n -= k
	}
	return crc
}

var zeros [64 << 10]byte
