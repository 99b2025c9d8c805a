package restore_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// disk is a device in memory that remembers what was written where and fails
// reads of one range.
type disk struct {
	data []byte
	unit int
	bad  [2]int64 // bytes that cannot be read

	mu     sync.Mutex
	writes [][2]int64 // guarded by mu while there are requests
}

var errBad = errors.New("medium error")

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size(), d.unit); err != nil {
		return 0, err
	}
	if off < d.bad[1] && off+int64(len(p)) > d.bad[0] {
		return 0, errBad
	}
	return copy(p, d.data[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size(), d.unit); err != nil {
		return 0, err
	}
	d.mu.Lock()
	d.writes = append(d.writes, [2]int64{off, off + int64(len(p))})
	d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *disk) Flush() error                        { return nil }
func (d *disk) Discard(off, length int64) error     { return errors.ErrUnsupported }
func (d *disk) WriteZeroes(off, length int64) error { return errors.ErrUnsupported }
func (d *disk) Size() int64                         { return int64(len(d.data)) }
func (d *disk) BlockSize() int                      { return d.unit }
func (d *disk) Close() error                        { return nil }

// image is a device with an open checkpoint, written to step by step. All
// numbers in its methods are blocks. The first free block is the first home of
// the live content of block 0, the second one that of its original.
type image struct {
	bs       int
	data     []byte
	original []byte // the content at the checkpoint
	log      bowlog.Block

	noChecksums bool
}

const (
	blocks    = 64
	firstFree = 32 // and all that follow
	shadow    = blocks - 1
)

func newImage(blockSize int, extension bool) *image {
	m := &image{bs: blockSize, data: make([]byte, blocks*blockSize)}
	for i := range m.data {
		m.data[i] = byte(i/blockSize*31 + i%253)
	}
	m.original = bytes.Clone(m.data)
	m.log = bowlog.Block{BlockSize: blockSize, Sector0: m.sector(firstFree)}
	if extension {
		m.log.Ext = &bowlog.Extension{
			Opened:     time.Unix(1, 0),
			Checkpoint: bowlog.ID{1},
			Generation: 1,
			DeviceSize: int64(len(m.data)),
			Shadows:    [2]uint64{m.sector(shadow), 0},
		}
	}
	copy(m.block(firstFree, 1), m.block(0, 1))
	m.save(0, firstFree+1, 1)
	return m
}

func (m *image) block(b, n int) []byte { return m.data[b*m.bs : (b+n)*m.bs] }

func (m *image) sector(b int) uint64 { return uint64(b * m.bs / blockdev.SectorSize) }

// entry is what the log says of a copy of n blocks at source.
func (m *image) entry(source, dest, n int) bowlog.Entry {
	e := bowlog.Entry{Source: m.sector(source), Dest: m.sector(dest), Size: uint32(n * m.bs)}
	if !m.noChecksums {
		e.Checksum = bowlog.Checksum(uint32(source), m.block(source, n))
	}
	return e
}

// save copies n blocks, logs that, and writes something else where they were.
func (m *image) save(source, dest, n int) {
	e := m.entry(source, dest, n)
	copy(m.block(dest, n), m.block(source, n))
	m.log.Entries = append(m.log.Entries, e)
	if source > 0 {
		m.scribble(source, n)
	}
	m.writeLog()
}

func (m *image) scribble(b, n int) {
	p := m.block(b, n)
	for i := range p {
		p[i] = p[i]*5 + 17
	}
}

// turnOver puts the log block away to dest.
func (m *image) turnOver(dest int) {
	e := m.entry(0, dest, 1)
	copy(m.block(dest, 1), m.block(0, 1))
	m.log.Sequence++
	m.log.Entries = []bowlog.Entry{e}
	m.writeLog()
}

// moveLive moves the live content of block 0 to dest.
func (m *image) moveLive(dest int) {
	if m.log.Full() {
		return
	}
	b := int(m.log.Sector0) * blockdev.SectorSize / m.bs
	m.log.Sector0 = m.sector(dest)
	m.save(b, dest, 1)
	m.log.Entries[len(m.log.Entries)-1].Checksum = 0
	m.writeLog()
	m.scribble(dest, 1) // a write to block 0
}

func (m *image) writeLog() {
	if err := m.log.Marshal(m.block(0, 1)); err != nil {
		panic(err)
	}
}

func (m *image) disk() *disk { return &disk{data: bytes.Clone(m.data), unit: 512} }

// sample is an image with a bit of everything.
func sample(blockSize int, extension bool) *image {
	m := newImage(blockSize, extension)
	m.save(4, 40, 4) // four blocks to 40..43
	m.save(9, 44, 1)
	m.turnOver(45)
	m.save(41, 50, 2)        // parts of the first copy move
	m.moveLive(52)           // from firstFree
	m.save(10, firstFree, 1) // which is free again
	m.turnOver(53)
	m.save(51, 54, 1) // and one part once more
	m.save(12, 55, 2)
	m.save(12, 57, 1) // copied twice
	return m
}

func (m *image) check(t *testing.T, data []byte) {
	t.Helper()
	for b := range firstFree {
		at := b * m.bs
		if !bytes.Equal(data[at:at+m.bs], m.original[at:at+m.bs]) {
			t.Errorf("block %d has other content than at the checkpoint", b)
		}
	}
}
