package bowlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// The free map is the list of all blocks that were free at the checkpoint, in a
// chain of blocks that were free themselves. It is written once, before the log.
// The file system may want the place of such a block; then it moves like any
// copy, and the log has an entry for that.
//
//	offset  type     field
//	0       u32      magic       0x46574f42, "BOWF"
//	4       u32      crc         CRC-32C of the block, this field as zero
//	8       16 bytes checkpoint  as in the log
//	24      u32      index       0 for the first block, one more for each that follows
//	28      u32      length      bytes of the list in this block
//	32      u64      next        sector of the next block when the map was written; 0 = none
//	40               list        for each run of free blocks two varints (7 bits a byte, least
//	                             first): blocks since the end of the last run, blocks in the run
//
// The list goes on from block to block; a run is not divided.

// Part of the format.
const (
	freeMapMagic      = 0x46574f42 // "BOWF"
	freeMapHeaderSize = 40
)

// FreeMap encodes a free map, or decodes one.
type FreeMap struct {
	BlockSize  int
	Checkpoint ID
	blocks     [][]byte // lists, without headers
	end        int64    // of the last run
}

// Add appends a run of free blocks, [start, end), which begins behind the last.
func (m *FreeMap) Add(start, end int64) {
	var run [2 * binary.MaxVarintLen64]byte
	n := binary.PutUvarint(run[:], uint64(start-m.end))
	n += binary.PutUvarint(run[n:], uint64(end-start))
	m.end = end
	last := len(m.blocks) - 1
	if last < 0 || len(m.blocks[last])+n > m.BlockSize-freeMapHeaderSize {
		m.blocks = append(m.blocks, make([]byte, 0, m.BlockSize-freeMapHeaderSize))
		last++
	}
	m.blocks[last] = append(m.blocks[last], run[:n]...)
}

// Len is the number of blocks that the map takes on disk.
func (m *FreeMap) Len() int { return len(m.blocks) }

// Marshal encodes block i into buf, which has BlockSize bytes; next is the sector
// where the block after it goes, or 0.
func (m *FreeMap) Marshal(buf []byte, i int, next uint64) {
	clear(buf)
	le := binary.LittleEndian
	le.PutUint32(buf[0:], freeMapMagic)
	copy(buf[8:24], m.Checkpoint[:])
	le.PutUint32(buf[24:], uint32(i))
	le.PutUint32(buf[28:], uint32(len(m.blocks[i])))
	le.PutUint64(buf[32:], next)
	copy(buf[freeMapHeaderSize:], m.blocks[i])
	le.PutUint32(buf[4:], crc32.Checksum(buf, castagnoli))
}

// ReadFreeMap reads the free map of the log that chain was made of, and calls
// block for the place where each of its blocks is now and run for each run of
// free blocks in it. Errors wrap ErrCorrupt, or ErrNoLog if the log has no map, or
// are I/O errors.
func ReadFreeMap(dev blockdev.Device, chain *Chain, block func(sector uint64), run func(start, end int64)) error {
	ext := chain.head.Ext
	if ext == nil || ext.FreeMap == 0 {
		return fmt.Errorf("%w: it has no free map", ErrNoLog)
	}
	blocks := chain.places.Size()
	buf := blockdev.Buffer(chain.head.BlockSize)
	pos := int64(0)
	for i, sector := int64(0), ext.FreeMap; sector != 0; i++ {
		b := chain.block(sector)
		if sector%chain.perBlock != 0 || b < 0 || b >= blocks || i >= blocks {
			return fmt.Errorf("%w: block %d of the free map at sector %d of a device of %d blocks", ErrCorrupt, i, sector, blocks)
		}
		at := chain.sector(chain.place(b))
		if _, err := dev.ReadAt(buf, int64(at)*blockdev.SectorSize); err != nil {
			return fmt.Errorf("reading block %d of the free map at sector %d: %w", i, at, err)
		}
		list, next, err := unmarshalFreeMap(buf, uint32(i), ext.Checkpoint)
		if err != nil {
			return fmt.Errorf("block %d of the free map at sector %d: %w", i, at, err)
		}
		for len(list) > 0 {
			gap, n := binary.Uvarint(list)
			length, m := binary.Uvarint(list[max(n, 0):])
			if n <= 0 || m <= 0 || length == 0 || gap > uint64(blocks-pos) || length > uint64(blocks-pos)-gap {
				return fmt.Errorf("%w: block %d of the free map: a run that cannot be, behind block %d", ErrCorrupt, i, pos)
			}
			list = list[n+m:]
			run(pos+int64(gap), pos+int64(gap+length))
			pos += int64(gap + length)
		}
		block(at)
		sector = next
	}
	return nil
}

// unmarshalFreeMap returns the list in a block of a free map, and where the next
// one is.
func unmarshalFreeMap(buf []byte, index uint32, id ID) (list []byte, next uint64, err error) {
	le := binary.LittleEndian
	if magic := le.Uint32(buf); magic != freeMapMagic {
		return nil, 0, fmt.Errorf("%w: magic %#08x", ErrCorrupt, magic)
	}
	want := le.Uint32(buf[4:])
	le.PutUint32(buf[4:], 0)
	if got := crc32.Checksum(buf, castagnoli); got != want {
		return nil, 0, fmt.Errorf("%w: checksum is %08x, recorded %08x", ErrCorrupt, got, want)
	}
	if ID(buf[8:24]) != id || le.Uint32(buf[24:]) != index {
		return nil, 0, fmt.Errorf("%w: index %d of checkpoint %v", ErrCorrupt, le.Uint32(buf[24:]), ID(buf[8:24]))
	}
	length := le.Uint32(buf[28:])
	if length > uint32(len(buf)-freeMapHeaderSize) {
		return nil, 0, fmt.Errorf("%w: list of %d bytes", ErrCorrupt, length)
	}
	return buf[freeMapHeaderSize : freeMapHeaderSize+length], le.Uint64(buf[32:]), nil
}
