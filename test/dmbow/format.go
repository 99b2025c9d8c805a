// Package dmbow is a second implementation of backup-on-write, to test the first
// one against: a model of the kernel's dm-bow that makes images (Target), and a
// restore tool that knows header version 1.0 only and works like Android's
// (Tool). It was written from the description of the format alone and shares no
// code with the driver, on purpose: a misunderstanding would have to be made
// twice. It is slow and simple, and for tests only.
package dmbow

import (
	"encoding/binary"
	"fmt"
)

const (
	magicLog     = 0x00574f42
	magicPartial = 0x00424f57
	version      = 0x0100
	headerSize   = 28
	entrySize    = 24
	sectorSize   = 512
)

type entry struct {
	source, dest uint64 // sectors
	size         uint32 // bytes
	checksum     uint32 // 0 = not recorded
}

type logBlock struct {
	raw        []byte // the block as it was read
	magic      uint32
	headerSize int
	blockSize  int
	sequence   uint32
	sector0    uint64
	entries    []entry
}

// encode makes a log block with the header of version 1.0.
func (l *logBlock) encode() []byte {
	le := binary.LittleEndian
	p := le.AppendUint32(nil, l.magic)
	p = le.AppendUint16(p, version)
	p = le.AppendUint16(p, headerSize)
	p = le.AppendUint32(p, uint32(l.blockSize))
	p = le.AppendUint32(p, uint32(len(l.entries)))
	p = le.AppendUint32(p, l.sequence)
	p = le.AppendUint64(p, l.sector0)
	for _, e := range l.entries {
		p = le.AppendUint64(p, e.source)
		p = le.AppendUint64(p, e.dest)
		p = le.AppendUint32(p, e.size)
		p = le.AppendUint32(p, e.checksum)
	}
	return append(p, make([]byte, l.blockSize-len(p))...)
}

// decode reads a log block of a device of size bytes and checks all its fields.
func decode(raw []byte, size int64) (*logBlock, error) {
	le := binary.LittleEndian
	l := &logBlock{
		raw:        raw,
		magic:      le.Uint32(raw),
		headerSize: int(le.Uint16(raw[6:])),
		blockSize:  int(le.Uint32(raw[8:])),
		sequence:   le.Uint32(raw[16:]),
		sector0:    le.Uint64(raw[20:]),
	}
	count := int(le.Uint32(raw[12:]))
	switch {
	case l.magic != magicLog && l.magic != magicPartial:
		return nil, fmt.Errorf("magic %08x", l.magic)
	case le.Uint16(raw[4:]) != version:
		return nil, fmt.Errorf("version %04x", le.Uint16(raw[4:]))
	case l.blockSize != len(raw):
		return nil, fmt.Errorf("block size %d, expected %d", l.blockSize, len(raw))
	case l.headerSize < headerSize || l.headerSize > l.blockSize:
		return nil, fmt.Errorf("header size %d", l.headerSize)
	case count < 1 || count > (l.blockSize-l.headerSize)/entrySize:
		return nil, fmt.Errorf("count %d", count)
	}
	for i := range count {
		p := raw[l.headerSize+i*entrySize:]
		e := entry{le.Uint64(p), le.Uint64(p[8:]), le.Uint32(p[16:]), le.Uint32(p[20:])}
		sectors, n := uint64(size)/sectorSize, uint64(e.size)/sectorSize
		switch {
		case e.size == 0 || int(e.size)%l.blockSize != 0:
			return nil, fmt.Errorf("entry %d: size %d", i, e.size)
		case e.source > sectors-n || e.dest > sectors-n || n > sectors:
			return nil, fmt.Errorf("entry %d: outside the device", i)
		case i == 0 && (e.source != 0 || int(e.size) != l.blockSize):
			return nil, fmt.Errorf("entry 0 is not of block 0")
		}
		l.entries = append(l.entries, e)
	}
	return l, nil
}

// checksum continues crc over data.
func checksum(crc uint32, data []byte) uint32 {
	for _, b := range data {
		crc = crc>>8 ^ shifted[byte(crc)^b]
	}
	return crc
}

// shifted is what becomes of each byte in the register, bit by bit.
var shifted = func() (table [256]uint32) {
	for i := range table {
		crc := uint32(i)
		for range 8 {
			low := crc & 1
			crc >>= 1
			if low == 1 {
				crc ^= 0xEDB88320
			}
		}
		table[i] = crc
	}
	return table
}()
