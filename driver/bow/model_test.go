package bow_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/restore"
)

// model is a volume as its user sees it: an engine on a memory device, and what
// every block should hold. It is as simple as can be, so that when the two do not
// agree the engine is wrong.
type model struct {
	t      testing.TB
	rng    *rand.Rand
	dev    *memdev.Device
	engine *bow.Engine
	bs     int
	blocks int
	next   uint64 // so often something was written

	now       []byte // content
	undefined []bool // by block: discarded or free, anything may be read
	kept      []byte // content at the checkpoint
	inUse     []bool // by block: was in use at the checkpoint
	history   []note
	redone    func(*model) // after a death: the request that was under way
	scratch   []byte       // what was read last, see read
}

// note is a line of the history of a model, put into words only if they are wanted.
type note struct {
	format string
	args   []any
}

func (n note) String() string { return fmt.Sprintf(n.format, n.args...) }

func newModel(t testing.TB, seed uint64, bs, blocks, unit int) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 1)), bs: bs, blocks: blocks}
	m.dev = memdev.New(int64(bs*blocks), unit)
	m.open()
	m.now = make([]byte, bs*blocks)
	m.undefined = make([]bool, blocks)
	m.fill(0, blocks)
	return m
}

func (m *model) open() {
	m.t.Helper()
	e, err := bow.Open(m.dev, m.bs)
	if err != nil {
		m.fatal("open: %v", err)
	}
	m.engine = e
}

func (m *model) fatal(format string, args ...any) {
	m.t.Helper()
	tail := m.history[max(0, len(m.history)-30):]
	for i, h := range tail {
		m.t.Logf("%d: %s", len(m.history)-len(tail)+i, h)
	}
	m.t.Fatalf(format, args...)
}

func (m *model) note(format string, args ...any) {
	m.history = append(m.history, note{format, args})
}

// fill writes new content to blocks [start, end). It tells whether there was
// space for the backups.
func (m *model) fill(start, end int) bool {
	m.t.Helper()
	m.next++
	p := blockdev.Buffer((end - start) * m.bs)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], m.next<<32|uint64(i))
	}
	n, err := m.engine.WriteAt(p, int64(start*m.bs))
	m.note("write [%d, %d): %v", start, end, err)
	if errors.Is(err, bow.ErrNoSpace) {
		if n != 0 {
			m.fatal("a write without space for backups wrote %d bytes", n)
		}
		return false
	}
	if err != nil || n != len(p) {
		m.fatal("write [%d, %d): %d, %v", start, end, n, err)
	}
	m.set(start, end, p)
	return true
}

// zero zeroes blocks [start, end). It tells whether there was space for the
// backups.
func (m *model) zero(start, end int) bool {
	m.t.Helper()
	err := m.engine.WriteZeroes(int64(start*m.bs), int64((end-start)*m.bs))
	m.note("zero [%d, %d): %v", start, end, err)
	if errors.Is(err, bow.ErrNoSpace) {
		return false
	}
	if err != nil {
		m.fatal("zero [%d, %d): %v", start, end, err)
	}
	m.set(start, end, make([]byte, (end-start)*m.bs))
	return true
}

func (m *model) set(start, end int, p []byte) {
	copy(m.now[start*m.bs:], p)
	clear(m.undefined[start:end])
}

func (m *model) discard(start, end int) {
	m.t.Helper()
	before := m.engine.Stats()
	err := m.engine.Discard(int64(start*m.bs), int64((end-start)*m.bs))
	m.note("discard [%d, %d): %v", start, end, err)
	if err != nil {
		m.fatal("discard [%d, %d): %v", start, end, err)
	}
	if after := m.engine.Stats(); after.Free < before.Free {
		m.fatal("discarding [%d, %d) used %d bytes of free space", start, end, before.Free-after.Free)
	}
	for i := start; i < end; i++ {
		m.undefined[i] = true
	}
}

// checkpoint opens a checkpoint as a file system would have it: some blocks are
// reported free, and some of those are written before the switch.
func (m *model) checkpoint(free float64) {
	m.t.Helper()
	if err := m.engine.StartTrim(); err != nil {
		m.fatal("start trim: %v", err)
	}
	for i := 1; i < m.blocks; {
		n := 1 + m.rng.IntN(m.blocks/4)
		n = min(n, m.blocks-i)
		if m.rng.Float64() < free {
			if err := m.engine.MarkFree(int64(i*m.bs), int64(n*m.bs)); err != nil {
				m.fatal("mark free: %v", err)
			}
			m.note("free [%d, %d)", i, i+n)
			for b := i; b < i+n; b++ {
				m.undefined[b] = true
			}
		}
		i += n
	}
	for range m.rng.IntN(4) {
		start, end := m.someRange()
		m.fill(start, end)
	}
	err := m.engine.Checkpoint(context.Background(), bow.CheckpointOptions{})
	m.note("checkpoint: %v", err)
	if errors.Is(err, bow.ErrNoSpace) {
		return
	}
	if err != nil {
		m.fatal("checkpoint: %v", err)
	}
	m.kept = bytes.Clone(m.now)
	m.inUse = make([]bool, m.blocks)
	for i, u := range m.undefined {
		m.inUse[i] = !u
	}
}

func (m *model) commit() {
	m.t.Helper()
	err := m.engine.Commit()
	m.note("commit: %v", err)
	if err != nil {
		m.fatal("commit: %v", err)
	}
}

func (m *model) someRange() (start, end int) {
	start = m.rng.IntN(m.blocks)
	if m.rng.IntN(8) == 0 {
		start = 0
	}
	n := 1 + m.rng.IntN(4)
	if m.rng.IntN(10) == 0 {
		n = 1 + m.rng.IntN(m.blocks/3)
	}
	return start, min(start+n, m.blocks)
}

func (m *model) checkInvariants() {
	m.t.Helper()
	if err := m.engine.Check(); err != nil {
		m.fatal("invariants: %v", err)
	}
}

// check compares what is read with what should be.
func (m *model) check() {
	m.t.Helper()
	got := m.read(m.engine)
	for i := range m.blocks {
		a, b := i*m.bs, (i+1)*m.bs
		if !m.undefined[i] && !bytes.Equal(got[a:b], m.now[a:b]) {
			m.fatal("block %d is not what was written", i)
		}
	}
}

// read returns the content of dev, until it is called again: there is so much to be
// read that new memory each time would be most of the work.
func (m *model) read(dev blockdev.Device) []byte {
	m.t.Helper()
	if int64(len(m.scratch)) != dev.Size() {
		m.scratch = blockdev.Buffer(int(dev.Size()))
	}
	if n, err := dev.ReadAt(m.scratch, 0); n != len(m.scratch) || err != nil {
		m.fatal("read: %d, %v", n, err)
	}
	return m.scratch
}

// image returns the content of the device below.
func (m *model) image() []byte {
	m.t.Helper()
	return bytes.Clone(m.read(m.dev))
}

// wantKept fails if image does not have the content of the checkpoint in every
// block that was in use then.
func (m *model) wantKept(image []byte, by any) {
	m.t.Helper()
	for i := range m.blocks {
		a, b := i*m.bs, (i+1)*m.bs
		if m.inUse[i] && !bytes.Equal(image[a:b], m.kept[a:b]) {
			m.fatal("%v: block %d was not put back", by, i)
		}
	}
}

// checkRollback restores a copy of the device, and compares.
func (m *model) checkRollback() {
	m.t.Helper()
	c := m.dev.Clone()
	if _, err := restore.Restore(context.Background(), c, restore.Options{}); err != nil {
		m.fatal("restore: %v", err)
	}
	m.wantKept(m.read(c), "restore")
}

// rollback restores the device itself and goes on with it.
func (m *model) rollback() {
	m.t.Helper()
	m.note("rollback")
	if _, err := restore.Restore(context.Background(), m.dev, restore.Options{}); err != nil {
		m.fatal("restore: %v", err)
	}
	m.open()
	m.now = m.image()
	m.wantKept(m.now, "rollback")
	for i := range m.undefined {
		m.undefined[i] = !m.inUse[i]
	}
}

// step does one random operation.
func (m *model) step() {
	m.t.Helper()
	start, end := m.someRange()
	state := m.engine.Stats().State
	switch n := m.rng.IntN(100); {
	case n < 55:
		m.fill(start, end)
	case n < 65:
		m.zero(start, end)
	case n < 80:
		m.discard(start, end)
	case n < 85:
		if err := m.engine.Flush(); err != nil {
			m.fatal("flush: %v", err)
		}
	case n < 88 && state == bow.Checkpoint:
		m.commit()
	case n < 90 && state == bow.Checkpoint:
		m.rollback()
	case n < 90:
		m.checkpoint(m.rng.Float64())
	}
}

// TestModel does random operations on an engine and on an array in memory, with
// every block size, on disks whose atomic unit is a sector or a block, and
// compares what the user sees and what a rollback would give.
func TestModel(t *testing.T) {
	steps := 400
	if testing.Short() {
		steps = 100
	}
	for _, bs := range []int{512, 1024, 2048, 4096} {
		for _, unit := range []int{512, bs} {
			for _, blocks := range []int{16, 64, 300} {
				for _, seed := range []uint64{1, rand.Uint64()} {
					t.Run(fmt.Sprintf("%d/%d/%d/seed=%d", bs, unit, blocks, seed), func(t *testing.T) {
						t.Parallel()
						m := newModel(t, seed, bs, blocks, unit)
						for i := range steps {
							m.step()
							m.checkInvariants()
							if blocks < 100 || i%10 == 0 {
								m.check()
							}
							if i%10 == 0 && m.engine.Stats().State == bow.Checkpoint {
								m.checkRollback()
							}
						}
					})
				}
			}
		}
	}
}
