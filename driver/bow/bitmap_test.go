package bow

import (
	"math/rand/v2"
	"testing"
)

// TestBitmap does random things with a bitmap and with a list of bools.
func TestBitmap(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		blocks := 1 + rng.Int64N(4*chunkBits)
		if seed%4 == 0 {
			blocks = chunkBits * (1 + int64(seed)%3)
		}
		b := newBitmap(make([]byte, bitmapSize(blocks)))
		if b.size() < blocks || b.size() >= blocks+8 {
			t.Fatalf("%d blocks: %d bits", blocks, b.size())
		}
		want := make([]bool, b.size())
		for range 200 {
			start := rng.Int64N(blocks)
			end := min(start+1+rng.Int64N([]int64{3, 100, chunkBits, 3 * chunkBits}[rng.IntN(4)]), blocks)
			if rng.IntN(4) == 0 { // whole chunks
				start, end = start&^(chunkBits-1), min((end+chunkBits-1)&^(chunkBits-1), blocks)
			}
			on := rng.IntN(2) == 0
			b.set(start, end, on)
			for i := start; i < end; i++ {
				want[i] = on
			}
			from := rng.Int64N(blocks)
			to := from + 1 + rng.Int64N(blocks)
			got, stop := b.run(from, to)
			end = from
			for end < min(to, b.size()) && want[end] == want[from] {
				end++
			}
			if end == b.size() && !want[from] {
				end = to
			}
			if got != want[from] || stop != end {
				t.Fatalf("seed %d: run(%d, %d) = %t, %d, want %t, %d", seed, from, to, got, stop, want[from], end)
			}
		}
	}
}

// TestBitmapLeavesMemoryAlone: what is all the same costs no memory.
func TestBitmapLeavesMemoryAlone(t *testing.T) {
	b := newBitmap(make([]byte, bitmapSize(10*chunkBits)))
	for i := range b.bits {
		b.bits[i] = 0x5a // as if it was not there
	}
	b.set(0, 10*chunkBits, false)
	b.set(chunkBits, 9*chunkBits, true)
	b.set(2*chunkBits+5, 2*chunkBits+6, true)
	b.set(5*chunkBits+7, 5*chunkBits+9, false)
	for i, p := range b.bits {
		if c := i / chunkBytes; (c == 5) == (p == 0x5a) {
			t.Fatalf("byte %d of chunk %d is %#x", i%chunkBytes, c, p)
		}
	}
	for _, c := range []struct {
		at   int64
		on   bool
		stop int64
	}{{0, false, chunkBits}, {chunkBits, true, 5*chunkBits + 7}, {5*chunkBits + 7, false, 5*chunkBits + 9}, {5*chunkBits + 9, true, 9 * chunkBits}, {9 * chunkBits, false, 10 * chunkBits}} {
		if on, stop := b.run(c.at, 10*chunkBits); on != c.on || stop != c.stop {
			t.Errorf("run at %d: %t until %d, want %t until %d", c.at, on, stop, c.on, c.stop)
		}
	}
}
