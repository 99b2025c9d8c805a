package bow_test

import (
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// op is what a tap saw.
type op struct {
	kind        byte // r, w, f, d, z
	off, length int64
}

// tap is a device that counts what reaches the one below, and may get in its
// way: before sees every operation first, may wait, and may make it fail.
type tap struct {
	blockdev.Device

	mu     sync.Mutex
	count  map[byte]int // guarded by mu
	bytes  map[byte]int64
	before func(op) error // guarded by mu; called without it
}

func newTap(dev blockdev.Device) *tap {
	return &tap{Device: dev, count: map[byte]int{}, bytes: map[byte]int64{}}
}

// intercept sets before, or takes it away.
func (t *tap) intercept(f func(op) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.before = f
}

// reset forgets the counts and returns them.
func (t *tap) reset() map[byte]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.count
	t.count, t.bytes = map[byte]int{}, map[byte]int64{}
	return old
}

func (t *tap) see(o op) error {
	t.mu.Lock()
	t.count[o.kind]++
	t.bytes[o.kind] += o.length
	before := t.before
	t.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(o)
}

func (t *tap) ReadAt(p []byte, off int64) (int, error) {
	if err := t.see(op{'r', off, int64(len(p))}); err != nil {
		return 0, err
	}
	return t.Device.ReadAt(p, off)
}

func (t *tap) WriteAt(p []byte, off int64) (int, error) {
	if err := t.see(op{'w', off, int64(len(p))}); err != nil {
		return 0, err
	}
	return t.Device.WriteAt(p, off)
}

func (t *tap) Flush() error {
	if err := t.see(op{kind: 'f'}); err != nil {
		return err
	}
	return t.Device.Flush()
}

func (t *tap) Discard(off, length int64) error {
	if err := t.see(op{'d', off, length}); err != nil {
		return err
	}
	return t.Device.Discard(off, length)
}

func (t *tap) WriteZeroes(off, length int64) error {
	if err := t.see(op{'z', off, length}); err != nil {
		return err
	}
	return t.Device.WriteZeroes(off, length)
}

// fixture is an engine on a memory device with a tap between them. Block i is
// full of the byte i+1, and the blocks from free on are free.
type fixture struct {
	t      *testing.T
	mem    *memdev.Device
	tap    *tap
	engine *bow.Engine
	bs     int64
	blocks int64
	kept   []byte // what the device held when it was made
}

func newFixture(t *testing.T, bs, blocks, free int) *fixture {
	t.Helper()
	f := &fixture{t: t, mem: memdev.New(int64(bs*blocks), 512), bs: int64(bs), blocks: int64(blocks)}
	f.kept = make([]byte, bs*blocks)
	for i := range f.kept {
		f.kept[i] = byte(i/bs + 1)
	}
	if _, err := f.mem.WriteAt(f.kept, 0); err != nil {
		t.Fatal(err)
	}
	f.tap = newTap(f.mem)
	e, err := bow.Open(f.tap, bs)
	if err != nil {
		t.Fatal(err)
	}
	f.engine = e
	e.BackUpAlone()
	f.must(e.StartTrim())
	f.must(e.MarkFree(int64(free)*f.bs, int64(blocks-free)*f.bs))
	t.Cleanup(func() {
		if err := e.Check(); err != nil {
			t.Errorf("invariants: %v", err)
		}
	})
	return f
}

// checkpoint opens a checkpoint and forgets what the tap counted.
func (f *fixture) checkpoint() {
	f.t.Helper()
	f.must(f.engine.Checkpoint(f.t.Context(), bow.CheckpointOptions{}))
	f.tap.reset()
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// block returns a block full of b.
func (f *fixture) block(b byte) []byte {
	p := blockdev.Buffer(int(f.bs))
	for i := range p {
		p[i] = b
	}
	return p
}

func (f *fixture) write(block int64, b byte) error {
	_, err := f.engine.WriteAt(f.block(b), block*f.bs)
	return err
}

// want fails if a block does not read as full of b.
func (f *fixture) want(dev blockdev.Device, block int64, b byte) {
	f.t.Helper()
	p := blockdev.Buffer(int(f.bs))
	if _, err := dev.ReadAt(p, block*f.bs); err != nil {
		f.t.Fatal(err)
	}
	for i := range p {
		if p[i] != b {
			f.t.Fatalf("block %d has %d at %d, want %d", block, p[i], i, b)
		}
	}
}

// wantRollback restores a copy of the device, and fails if blocks [0, used) are
// not as they were.
func (f *fixture) wantRollback(used int64) {
	f.t.Helper()
	m := &model{t: f.t, dev: f.mem, bs: int(f.bs), blocks: int(used), kept: f.kept, inUse: make([]bool, used)}
	for i := range m.inUse {
		m.inUse[i] = true
	}
	m.checkRollback()
}
