package dmbow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

type blockType byte

const (
	unchanged blockType = iota
	sector0
	sector0Current
	free
	changed
	backup
)

// ErrNoSpace is returned for a write that finds no room for a backup.
var ErrNoSpace = errors.New("no free block for a backup")

// Target is a model of the kernel's target, over an image in memory.
type Target struct {
	Image     []byte
	BlockSize int

	// Refree makes a discard of a formerly free block free it again, which the
	// kernel's target does not do but another one may.
	Refree bool

	types   []blockType
	wasFree []bool // at the checkpoint
	current int    // block with the live content of block 0
	log     *logBlock
	rng     *rand.Rand
}

// NewTarget is a target in state 0 over image. The places of backups are drawn
// from rng.
func NewTarget(image []byte, blockSize int, rng *rand.Rand) *Target {
	n := len(image) / blockSize
	return &Target{
		Image:     image,
		BlockSize: blockSize,
		types:     make([]blockType, n),
		rng:       rng,
	}
}

// Blocks is the size of the target.
func (t *Target) Blocks() int { return len(t.types) }

// LogBlocks is the number of log blocks since the checkpoint.
func (t *Target) LogBlocks() int { return int(t.log.sequence) + 1 }

// InUse tells whether block b was in use at the checkpoint.
func (t *Target) InUse(b int) bool { return !t.wasFree[b] }

func (t *Target) block(b int) []byte {
	return t.Image[b*t.BlockSize:][:t.BlockSize]
}

func (t *Target) sectors(b int) uint64 {
	return uint64(b) * uint64(t.BlockSize) / sectorSize
}

// Discard discards n blocks from b on.
func (t *Target) Discard(b, n int) {
	for ; n > 0; b, n = b+1, n-1 {
		switch {
		case t.log == nil && b > 0:
			t.types[b] = free
		case t.log != nil && t.Refree && t.wasFree[b] && t.types[b] == changed:
			t.types[b] = free
		}
	}
}

// Checkpoint enters state 1.
func (t *Target) Checkpoint() error {
	t.wasFree = make([]bool, len(t.types))
	for b, typ := range t.types {
		t.wasFree[b] = typ == free
	}
	live, old := t.take(1), t.take(1)
	if live < 0 || old < 0 {
		return ErrNoSpace
	}
	t.types[0] = sector0
	t.types[live], t.current = sector0Current, live
	copy(t.block(live), t.block(0))
	t.types[old] = backup
	copy(t.block(old), t.block(0))
	t.log = &logBlock{
		magic:     magicLog,
		blockSize: t.BlockSize,
		sector0:   t.sectors(live),
		entries:   []entry{{0, t.sectors(old), uint32(t.BlockSize), checksum(0, t.block(0))}},
	}
	t.writeLog()
	return nil
}

// Read returns what a reader of block b sees.
func (t *Target) Read(b int) []byte {
	if b == 0 && t.log != nil {
		b = t.current
	}
	return t.block(b)
}

// Write writes data, whole blocks, from block b on. With ErrNoSpace only some of
// the blocks have been written.
func (t *Target) Write(b int, data []byte) error {
	for len(data) > 0 {
		n := t.run(b, len(data)/t.BlockSize)
		if err := t.prepare(b, n); err != nil {
			return err
		}
		copy(t.Read(b)[:t.BlockSize], data)
		copy(t.Image[(b+1)*t.BlockSize:], data[t.BlockSize:n*t.BlockSize])
		b, data = b+n, data[n*t.BlockSize:]
	}
	return nil
}

// run is the number of blocks from b on, at most most, that are of one type.
func (t *Target) run(b, most int) int {
	n := 1
	for n < most && t.types[b+n] == t.types[b] {
		n++
	}
	return n
}

// prepare makes n blocks of one type from b on ready to be overwritten.
func (t *Target) prepare(b, n int) error {
	switch {
	case t.log == nil:
		for i := range n {
			t.types[b+i] = unchanged
		}
	case t.types[b] == free:
		for i := range n {
			t.types[b+i] = changed
		}
	case t.types[b] == unchanged || t.types[b] == backup:
		for i := 0; i < n; {
			k := min(n-i, 1+t.rng.IntN(4))
			done, err := t.copy(b+i, k, true)
			if err != nil {
				return err
			}
			i += done
		}
	case t.types[b] == sector0Current:
		_, err := t.copy(b, 1, false)
		return err
	}
	return nil
}

// copy copies up to n blocks from b on to free ones, logs that, and returns the
// number of blocks.
func (t *Target) copy(b, n int, check bool) (int, error) {
	if t.full() {
		if err := t.turnOver(); err != nil {
			return 0, err
		}
	}
	typ := t.types[b]
	dest := t.take(n)
	for dest < 0 && n > 1 {
		n /= 2
		dest = t.take(n)
	}
	if dest < 0 {
		return 0, fmt.Errorf("block %d: %w", b, ErrNoSpace)
	}
	e := entry{source: t.sectors(b), dest: t.sectors(dest), size: uint32(n * t.BlockSize)}
	crc := uint32(b)
	for i := range n {
		copy(t.block(dest+i), t.block(b+i))
		crc = checksum(crc, t.block(b+i))
		t.types[b+i] = changed
		t.types[dest+i] = backup
	}
	if check {
		e.checksum = crc
	}
	if typ == sector0Current {
		t.types[dest] = sector0Current
		t.current = dest
		t.log.sector0 = t.sectors(dest)
	}
	t.log.entries = append(t.log.entries, e)
	t.writeLog()
	return n, nil
}

func (t *Target) full() bool {
	return headerSize+(len(t.log.entries)+1)*entrySize > t.BlockSize
}

// turnOver puts the log block away and begins the next one.
func (t *Target) turnOver() error {
	dest := t.take(1)
	if dest < 0 {
		return fmt.Errorf("log block: %w", ErrNoSpace)
	}
	copy(t.block(dest), t.block(0))
	t.types[dest] = backup
	t.log.sequence++
	t.log.entries = []entry{{0, t.sectors(dest), uint32(t.BlockSize), checksum(0, t.block(0))}}
	t.writeLog()
	return nil
}

func (t *Target) writeLog() { copy(t.block(0), t.log.encode()) }

// take finds n free blocks in a row; -1 if there are none.
func (t *Target) take(n int) int {
	start := t.rng.IntN(len(t.types))
	for i := range t.types {
		b := (start + i) % len(t.types)
		if b+n <= len(t.types) && t.types[b] == free && t.run(b, n) == n {
			return b
		}
	}
	return -1
}

// Scenario is a target that was written to at random, and what it should be
// restored to.
type Scenario struct {
	*Target
	Original []byte // the content at the checkpoint, as its users saw it
	Current  []byte // the content now, as its users see it
}

// NewScenario makes a target of the given size, frees parts of it, opens a
// checkpoint, and writes until there are about logBlocks log blocks or no space
// is left.
func NewScenario(seed uint64, blockSize, blocks, logBlocks int, refree bool) (*Scenario, error) {
	rng := rand.New(rand.NewPCG(seed, uint64(blockSize)))
	t := NewTarget(make([]byte, blocks*blockSize), blockSize, rng)
	t.Refree = refree
	random := func(n int) []byte {
		p := make([]byte, n*blockSize)
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
		}
		return p
	}
	copy(t.Image, random(blocks))
	somewhere := func(most int) (b, n int) {
		n = 1 + rng.IntN(most)
		return rng.IntN(blocks - n), n
	}
	for range blocks / 16 {
		t.Discard(somewhere(16))
	}
	for range blocks / 64 {
		b, n := somewhere(4)
		if err := t.Write(b, random(n)); err != nil {
			return nil, err
		}
	}
	s := &Scenario{Target: t, Original: bytes.Clone(t.Image)}
	if err := t.Checkpoint(); err != nil {
		return nil, err
	}
	for t.LogBlocks() < logBlocks {
		b, n := somewhere(6)
		switch rng.IntN(16) {
		case 0:
			b, n = 0, 1+rng.IntN(3)
		case 1:
			b, n = t.current, 1
		case 2:
			t.Discard(b, n)
			continue
		}
		err := t.Write(b, random(n))
		if errors.Is(err, ErrNoSpace) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	s.Current = bytes.Clone(t.Image)
	copy(s.Current, t.Read(0))
	return s, nil
}

// Check compares image with the content at the checkpoint: all that was in use
// must be there.
func (s *Scenario) Check(image []byte) error {
	for b := range s.Blocks() {
		at := b * s.BlockSize
		if s.InUse(b) && !bytes.Equal(image[at:at+s.BlockSize], s.Original[at:at+s.BlockSize]) {
			return fmt.Errorf("block %d, in use at the checkpoint, has other content", b)
		}
	}
	return nil
}
