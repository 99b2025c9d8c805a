package fuse

import (
	"fmt"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/iomem"
)

// A request of the loop device is made of whole blocks, but the kernel may cut
// it into several FUSE requests, and it cuts by pages of memory: 256 KiB
// whose memory does not begin at a page lie in 65 pages, of which 64 go into
// the first request and the rest into another. Direct I/O needs memory that is
// aligned to 512 bytes only, so with larger blocks such a cut can go through a
// block. This is rare, so it need not be fast, but it has to be right.

// aligned tells whether r is made of whole blocks of the device.
func (s *server) aligned(r *request) bool {
	return (r.off|r.length)&(int64(s.dev.BlockSize())-1) == 0
}

// around is the range of whole blocks that contains [off, off+length), which
// has to consist of sectors.
func (s *server) around(off, length int64) (start, end int64, err error) {
	if (off|length)&(blockdev.SectorSize-1) != 0 {
		return 0, 0, fmt.Errorf("range [%d, +%d): %w", off, length, blockdev.ErrMisaligned)
	}
	mask := int64(s.dev.BlockSize()) - 1
	return off &^ mask, (off + length + mask) &^ mask, nil
}

// raggedBufLocked is memory for n bytes, aligned to pages.
func (s *server) raggedBufLocked(n int64) ([]byte, error) {
	if s.ragged.buf == nil {
		const size = maxIO + 2*4096 // and a part of a block at either end
		mem, err := iomem.Map(size)
		if err != nil {
			return nil, err
		}
		s.ragged.buf = mem
	}
	return s.ragged.buf[:n], nil
}

func (s *server) readRagged(p []byte, off int64) error {
	start, end, err := s.around(off, int64(len(p)))
	if err != nil {
		return err
	}
	s.ragged.Lock()
	defer s.ragged.Unlock()
	buf, err := s.raggedBufLocked(end - start)
	if err != nil {
		return err
	}
	if _, err := s.dev.ReadAt(buf, start); err != nil {
		return err
	}
	copy(p, buf[off-start:])
	return nil
}

// writeRagged reads the blocks at the ends and writes them with the new parts.
// The lock keeps the other part of a cut block from doing the same at the same
// time. Whole-block writes to the same block at the same time would be writes
// that overlap in the first place.
func (s *server) writeRagged(p []byte, off int64) error {
	start, end, err := s.around(off, int64(len(p)))
	if err != nil {
		return err
	}
	s.ragged.Lock()
	defer s.ragged.Unlock()
	buf, err := s.raggedBufLocked(end - start)
	if err != nil {
		return err
	}
	block := int64(s.dev.BlockSize())
	if _, err := s.dev.ReadAt(buf[:block], start); err != nil {
		return err
	}
	if end-start > block {
		if _, err := s.dev.ReadAt(buf[end-start-block:], end-block); err != nil {
			return err
		}
	}
	copy(buf[off-start:], p)
	_, err = s.dev.WriteAt(buf, start)
	return err
}
