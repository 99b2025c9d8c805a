package dmbow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Device is what the tool works on. A blockdev.Device is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
}

// ErrStopped is returned when the tool was stopped after the number of writes
// that was asked for.
var ErrStopped = errors.New("stopped")

// Tool is a restore tool that knows header version 1.0 only. It works like
// Android's: entry after entry, newest first.
type Tool struct {
	Dev Device

	// MaxWrites stops the tool before the write of one more block; -1 = never.
	MaxWrites int

	Writes int // blocks written so far
	Marks  int // how often a half-restored state was noted
}

// Validate walks the log as if it was being restored and compares the checksums
// of all copies.
func (t *Tool) Validate() error {
	l, err := t.readLog()
	if err != nil {
		return fmt.Errorf("block 0: %w", err)
	}
	where := map[uint64]uint64{} // block as if restored -> block where that is
	bs := uint64(l.blockSize)
	read := func(b uint64) ([]byte, error) {
		if to, ok := where[b]; ok {
			b = to
		}
		p := make([]byte, bs)
		_, err := t.Dev.ReadAt(p, int64(b*bs))
		return p, err
	}
	for {
		for i := len(l.entries) - 1; i >= 0; i-- {
			e := l.entries[i]
			source, dest := e.source*sectorSize/bs, e.dest*sectorSize/bs
			crc := uint32(source)
			moved := map[uint64]uint64{}
			for k := range uint64(e.size) / bs {
				p, err := read(dest + k)
				if err != nil {
					return err
				}
				crc = checksum(crc, p)
				moved[source+k] = dest + k
				if to, ok := where[dest+k]; ok {
					moved[source+k] = to
				}
			}
			if e.checksum != 0 && crc != e.checksum {
				return fmt.Errorf("log %d, entry %d: checksum %08x, expected %08x", l.sequence, i, crc, e.checksum)
			}
			for b, to := range moved {
				where[b] = to
			}
		}
		if l.sequence == 0 {
			return nil
		}
		p, err := read(0)
		if err != nil {
			return err
		}
		older, err := decode(p, t.Dev.Size())
		if err != nil {
			return fmt.Errorf("log %d: %w", l.sequence-1, err)
		}
		if older.sequence != l.sequence-1 || older.magic != magicLog {
			return fmt.Errorf("log %d: sequence %d, magic %08x", l.sequence-1, older.sequence, older.magic)
		}
		l = older
	}
}

// Restore validates, unless that was done by an earlier run that was stopped,
// and restores.
func (t *Tool) Restore() error {
	l, err := t.readLog()
	if err != nil {
		return fmt.Errorf("block 0: %w", err)
	}
	if l.magic == magicLog {
		if err := t.Validate(); err != nil {
			return err
		}
	}
	for {
		older, err := t.undo(l)
		if err != nil || older == nil {
			return err
		}
		l = older
	}
}

// undo undoes the log block l, which is in block 0, and returns the one before,
// which is in block 0 then; nil after the first one.
func (t *Tool) undo(l *logBlock) (*logBlock, error) {
	// Copies that would be needed again if the tool was stopped now.
	needed := map[uint64]bool{}
	bs := uint64(l.blockSize)
	for i := len(l.entries) - 1; i > 0; i-- {
		e := l.entries[i]
		source, dest := e.source*sectorSize/bs, e.dest*sectorSize/bs
		n := uint64(e.size) / bs
		for k := range n {
			if needed[source+k] {
				if err := t.mark(l, i+1); err != nil {
					return nil, err
				}
				clear(needed)
				break
			}
		}
		for k := range n {
			p := make([]byte, bs)
			if _, err := t.Dev.ReadAt(p, int64((dest+k)*bs)); err != nil {
				return nil, err
			}
			if err := t.write(p, int64((source+k)*bs)); err != nil {
				return nil, err
			}
			needed[dest+k] = true
		}
	}
	p := make([]byte, bs)
	if _, err := t.Dev.ReadAt(p, int64(l.entries[0].dest*sectorSize)); err != nil {
		return nil, err
	}
	if l.sequence == 0 {
		return nil, t.write(p, 0)
	}
	older, err := decode(p, t.Dev.Size())
	if err != nil {
		return nil, err
	}
	return older, t.mark(older, len(older.entries))
}

// mark notes in block 0 that count entries of l are left to be undone.
func (t *Tool) mark(l *logBlock, count int) error {
	binary.LittleEndian.PutUint32(l.raw, magicPartial)
	binary.LittleEndian.PutUint32(l.raw[12:], uint32(count))
	t.Marks++
	return t.write(l.raw, 0)
}

// RollForward gives up the checkpoint.
func (t *Tool) RollForward() error {
	l, err := t.readLog()
	if err != nil {
		return err
	}
	p := make([]byte, l.blockSize)
	if _, err := t.Dev.ReadAt(p, int64(l.sector0*sectorSize)); err != nil {
		return err
	}
	return t.write(p, 0)
}

func (t *Tool) write(p []byte, off int64) error {
	if t.MaxWrites >= 0 && t.Writes >= t.MaxWrites {
		return ErrStopped
	}
	t.Writes++
	_, err := t.Dev.WriteAt(p, off)
	return err
}

// readLog reads the log block in block 0. The first read is of 4096 bytes, or of
// the whole device if that is smaller, as the block size is not known.
func (t *Tool) readLog() (*logBlock, error) {
	p := make([]byte, min(4096, t.Dev.Size()))
	if _, err := t.Dev.ReadAt(p, 0); err != nil {
		return nil, err
	}
	bs := binary.LittleEndian.Uint32(p[8:])
	switch bs {
	case 512, 1024, 2048, 4096:
		return decode(p[:min(int(bs), len(p))], t.Dev.Size())
	}
	return nil, fmt.Errorf("block size %d", bs)
}
