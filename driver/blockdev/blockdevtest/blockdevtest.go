// Package blockdevtest holds every implementation of blockdev.Device to what
// that interface promises.
package blockdevtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// maxTested is how much of a large device is used, in bytes.
const maxTested = 1 << 20

// Run runs the suite. Each test has a device of its own from open, which may
// have any content and has to have room for at least 64 blocks. The suite
// writes to its first and its last blocks and closes it.
func Run(t *testing.T, open func(t *testing.T) blockdev.Device) {
	for _, test := range []struct {
		name string
		run  func(d device)
	}{
		{"Geometry", device.testGeometry},
		{"ReadsWhatWasWritten", device.testReadYourWrites},
		{"AnyMemory", device.testAnyMemory},
		{"Zeroes", device.testZeroes},
		{"Discard", device.testDiscard},
		{"LengthZero", device.testLengthZero},
		{"Misaligned", device.testMisaligned},
		{"OutOfRange", device.testOutOfRange},
		{"TheEnd", device.testTheEnd},
		{"Model", device.testModel},
		{"ConcurrentDisjoint", device.testConcurrentDisjoint},
	} {
		t.Run(test.name, func(t *testing.T) {
			dev := open(t)
			d := device{Device: dev, t: t, block: int64(dev.BlockSize())}
			d.blocks = min(dev.Size(), maxTested) / d.block
			if d.blocks < 64 {
				t.Fatalf("a device of %d blocks is too small for the suite", d.blocks)
			}
			test.run(d)
			if err := dev.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		})
	}
}

// device is the device under test. Positions and lengths in its methods' names
// that speak of blocks are in blocks.
type device struct {
	blockdev.Device
	t             *testing.T
	block, blocks int64
}

// pattern returns n blocks of content that depends on seed and tells blocks and
// bytes apart.
func (d device) pattern(seed, n int64) []byte {
	p := blockdev.Buffer(int(n * d.block))
	var key [32]byte
	binary.NativeEndian.PutUint64(key[:], uint64(seed))
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

func (d device) write(p []byte, off int64) {
	d.t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		d.t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}

func (d device) want(p []byte, off int64) {
	d.t.Helper()
	got := blockdev.Buffer(len(p))
	if n, err := d.ReadAt(got, off); n != len(got) || err != nil {
		d.t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(got), off, n, err)
	}
	if bytes.Equal(got, p) {
		return
	}
	for i := range got {
		if got[i] != p[i] {
			d.t.Fatalf("byte %d is %#x, not %#x", off+int64(i), got[i], p[i])
		}
	}
}

func (d device) ok(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d device) testGeometry() {
	if !blockdev.ValidBlockSize(d.BlockSize()) {
		d.t.Errorf("block size %d", d.BlockSize())
	}
	if d.Size()%d.block != 0 {
		d.t.Errorf("%d bytes are not whole blocks of %d", d.Size(), d.block)
	}
}

func (d device) testReadYourWrites() {
	old, new := d.pattern(1, d.blocks), d.pattern(2, 3)
	d.write(old, 0)
	d.want(old, 0)
	d.write(new, 5*d.block)
	copy(old[5*d.block:], new)
	d.want(old, 0)
	d.ok(d.Flush())
	d.want(old, 0)
}

func (d device) testAnyMemory() {
	p := d.pattern(1, 40)
	for _, skip := range []int{1, 4, 16, 511, 512, 4095} {
		room := blockdev.Buffer(len(p) + skip)
		copy(room[skip:], p)
		d.write(room[skip:], 0)
		if !bytes.Equal(room[skip:], p) {
			d.t.Fatal("WriteAt changed what it was given")
		}
		clear(room)
		if n, err := d.ReadAt(room[skip:], 0); n != len(p) || err != nil {
			d.t.Fatalf("ReadAt = %d, %v", n, err)
		}
		if !bytes.Equal(room[skip:], p) || !bytes.Equal(room[:skip], make([]byte, skip)) {
			d.t.Fatalf("wrong content in memory that begins %d bytes after a page", skip)
		}
		d.want(p, 0)
	}
}

func (d device) testZeroes() {
	p := d.pattern(1, 32)
	d.write(p, 0)
	for _, r := range [][2]int64{{3, 1}, {8, 16}, {31, 1}} {
		d.ok(d.WriteZeroes(r[0]*d.block, r[1]*d.block))
		clear(p[r[0]*d.block : (r[0]+r[1])*d.block])
		d.want(p, 0)
	}
	d.ok(d.Flush())
	d.want(p, 0)
	new := d.pattern(2, 2)
	d.write(new, 9*d.block)
	d.want(new, 9*d.block)
}

func (d device) testDiscard() {
	p := d.pattern(1, 32)
	d.write(p, 0)
	d.ok(d.Discard(8*d.block, 16*d.block))
	d.want(p[:8*d.block], 0)
	d.want(p[24*d.block:], 24*d.block)
	// What was discarded can be read, whatever it is, and written again.
	if n, err := d.ReadAt(blockdev.Buffer(len(p)), 0); n != len(p) || err != nil {
		d.t.Fatalf("reading what was discarded: %d, %v", n, err)
	}
	d.write(p[8*d.block:24*d.block], 8*d.block)
	d.want(p, 0)
	d.ok(d.Discard(0, 32*d.block))
	d.ok(d.Flush())
	d.ok(d.WriteZeroes(0, 32*d.block))
	d.want(make([]byte, len(p)), 0)
}

func (d device) testLengthZero() {
	for _, off := range []int64{0, d.block, d.Size()} {
		for what, err := range d.requests(off, 0) {
			if err != nil {
				d.t.Errorf("%s with length 0 at %d: %v", what, off, err)
			}
		}
	}
}

// requests makes every request there is at one range, and returns what became
// of it by name.
func (d device) requests(off, length int64) map[string]error {
	p := blockdev.Buffer(int(length))
	_, read := d.ReadAt(p, off)
	_, write := d.WriteAt(p, off)
	return map[string]error{
		"ReadAt":      read,
		"WriteAt":     write,
		"Discard":     d.Discard(off, length),
		"WriteZeroes": d.WriteZeroes(off, length),
	}
}

// wantRefused makes every request at one range and wants this error of it.
func (d device) wantRefused(off, length int64, want error) {
	d.t.Helper()
	for what, err := range d.requests(off, length) {
		if !errors.Is(err, want) {
			d.t.Errorf("%s of %d bytes at %d: %v; want: %v", what, length, off, err, want)
		}
	}
}

func (d device) testMisaligned() {
	p := d.pattern(1, 8)
	d.write(p, 0)
	for _, shift := range []int64{1, d.block / 2, d.block - 1} {
		d.wantRefused(shift, d.block, blockdev.ErrMisaligned)
		d.wantRefused(d.block, shift, blockdev.ErrMisaligned)
		d.wantRefused(d.block+shift, d.block-shift, blockdev.ErrMisaligned)
	}
	d.want(p, 0)
}

func (d device) testOutOfRange() {
	last := d.pattern(1, 2)
	end := d.Size()
	d.write(last, end-2*d.block)
	for _, r := range [][2]int64{
		{end, d.block},
		{end - d.block, 2 * d.block},
		{end + d.block, d.block},
		{end + d.block, 0},
		{-d.block, d.block},
		{-d.block, 0},
		{math.MaxInt64 &^ (d.block - 1), d.block},
	} {
		d.wantRefused(r[0], r[1], blockdev.ErrOutOfRange)
	}
	for _, r := range [][2]int64{{0, -d.block}, {d.block, math.MaxInt64 &^ (d.block - 1)}, {d.block, math.MinInt64}} {
		for what, err := range map[string]error{
			"Discard":     d.Discard(r[0], r[1]),
			"WriteZeroes": d.WriteZeroes(r[0], r[1]),
		} {
			if !errors.Is(err, blockdev.ErrOutOfRange) {
				d.t.Errorf("%s of %d bytes at %d: %v", what, r[1], r[0], err)
			}
		}
	}
	d.want(last, end-2*d.block)
	if d.Size() != end {
		d.t.Errorf("the size went from %d to %d", end, d.Size())
	}
}

// testTheEnd uses the last blocks: they are there, and nothing makes the device
// grow or shrink.
func (d device) testTheEnd() {
	p := d.pattern(1, 4)
	size := d.Size()
	start := size - 4*d.block
	d.write(p, start)
	d.want(p, start)
	d.ok(d.WriteZeroes(size-d.block, d.block))
	clear(p[3*d.block:])
	d.want(p, start)
	d.ok(d.Discard(size-2*d.block, 2*d.block))
	d.want(p[:2*d.block], start)
	d.write(p, start)
	d.ok(d.Flush())
	d.want(p, start)
	if d.Size() != size {
		d.t.Errorf("the size went from %d to %d", size, d.Size())
	}
}

// testModel does random requests and compares with an array.
func (d device) testModel() {
	seed := rand.Uint64()
	d.t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	model := d.pattern(1, d.blocks)
	defined := make([]bool, d.blocks)
	d.write(model, 0)
	for i := range defined {
		defined[i] = true
	}
	for i := range 300 {
		first := rng.Int64N(d.blocks)
		n := 1 + rng.Int64N(min(d.blocks-first, 1+rng.Int64N(40)))
		off, length := first*d.block, n*d.block
		here := model[off : off+length]
		known := true
		switch rng.IntN(8) {
		case 0:
			d.ok(d.Discard(off, length))
			known = false
		case 1:
			d.ok(d.WriteZeroes(off, length))
			clear(here)
		case 2:
			d.ok(d.Flush())
			continue
		default:
			copy(here, d.pattern(int64(i), n))
			d.write(here, off)
		}
		for b := first; b < first+n; b++ {
			defined[b] = known
		}
	}
	got := blockdev.Buffer(len(model))
	if _, err := d.ReadAt(got, 0); err != nil {
		d.t.Fatal(err)
	}
	for b, known := range defined {
		at := int64(b) * d.block
		if known && !bytes.Equal(got[at:at+d.block], model[at:at+d.block]) {
			d.t.Errorf("block %d is not what was last written", b)
		}
	}
}

// testConcurrentDisjoint has several workers do everything, each in a range of
// its own.
func (d device) testConcurrentDisjoint() {
	const workers, rounds = 8, 20
	each := d.blocks / workers
	failed := make(chan error, workers)
	var group sync.WaitGroup
	for w := range int64(workers) {
		group.Go(func() {
			if err := d.work(w*each, each, rounds); err != nil {
				failed <- fmt.Errorf("worker %d: %w", w, err)
			}
		})
	}
	group.Wait()
	close(failed)
	for err := range failed {
		d.t.Error(err)
	}
}

func (d device) work(first, n int64, rounds int) error {
	off, length := first*d.block, n*d.block
	got := blockdev.Buffer(int(length))
	for i := range rounds {
		p := d.pattern(first*1000+int64(i), n)
		if i%3 == 0 {
			if err := d.Discard(off, length); err != nil {
				return err
			}
		}
		if _, err := d.WriteAt(p, off); err != nil {
			return err
		}
		if i%4 == 1 {
			if err := d.WriteZeroes(off, d.block); err != nil {
				return err
			}
			clear(p[:d.block])
		}
		if i%5 == 2 {
			if err := d.Flush(); err != nil {
				return err
			}
		}
		if _, err := d.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, p) {
			return fmt.Errorf("round %d: not what was written", i)
		}
	}
	return nil
}
