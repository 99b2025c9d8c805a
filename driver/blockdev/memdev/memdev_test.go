package memdev_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/blockdevtest"
	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
)

func TestDevice(t *testing.T) {
	for _, blockSize := range []int{512, 1024, 2048, 4096} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			blockdevtest.Run(t, func(*testing.T) blockdev.Device {
				return memdev.New(1<<20+int64(blockSize), blockSize)
			})
		})
	}
	t.Run("Torn", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device {
			d := memdev.New(1<<20, 4096)
			d.SetAtomicUnit(512)
			return d
		})
	})
	t.Run("Huge", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return memdev.New(1<<40, 4096) })
	})
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, d *memdev.Device, off int64, p []byte) {
	t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("WriteAt = %d, %v", n, err)
	}
}

func content(t testing.TB, d *memdev.Device) string {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// letters is a device as text: one letter for each of its sectors, which hold
// nothing but that letter, '.' for zeros.
func letters(t testing.TB, d *memdev.Device) string {
	t.Helper()
	all := content(t, d)
	var text []byte
	for ; all != ""; all = all[512:] {
		c := all[0]
		if all[:512] != string(bytes.Repeat([]byte{c}, 512)) {
			t.Fatalf("sector %d is torn", len(text))
		}
		if c == 0 {
			c = '.'
		}
		text = append(text, c)
	}
	return string(text)
}

// sectors returns what letters shows as text.
func sectors(text string) []byte {
	var p []byte
	for _, c := range []byte(text) {
		if c == '.' {
			c = 0
		}
		p = append(p, bytes.Repeat([]byte{c}, 512)...)
	}
	return p
}

// states returns all states of a cut as letters, and fails if one comes twice.
func states(t testing.TB, c *memdev.Cut) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for d := range c.All() {
		s := letters(t, d)
		if all[s] {
			t.Fatalf("state %s comes twice", s)
		}
		all[s] = true
	}
	if n := c.States(); n != len(all) {
		t.Fatalf("%d states, States says %d", len(all), n)
	}
	return all
}

func wantStates(t *testing.T, c *memdev.Cut, want ...string) {
	t.Helper()
	got := states(t, c)
	for _, w := range want {
		if !got[w] {
			t.Errorf("state %s is missing", w)
		}
		delete(got, w)
	}
	for s := range got {
		t.Errorf("state %s cannot be", s)
	}
}

func TestStates(t *testing.T) {
	d := memdev.New(8*512, 512)
	h := d.Record()
	write(t, d, 0, sectors("AB"))
	wantStates(t, h.Cut(0), "........")
	wantStates(t, h.Cut(1), "........", "A.......", ".B......", "AB......")
	ok(t, d.Flush())
	wantStates(t, h.Cut(2), "AB......")
	// Of versions of one sector any may be found, also the old one.
	write(t, d, 512, sectors("x"))
	write(t, d, 512, sectors("y"))
	wantStates(t, h.Cut(4), "AB......", "Ax......", "Ay......")
	// Writing what is there makes no new state.
	write(t, d, 0, sectors("A"))
	wantStates(t, h.Cut(5), "AB......", "Ax......", "Ay......")
	ok(t, d.WriteZeroes(0, d.Size()))
	wantStates(t, h.Cut(6),
		"AB......", "Ax......", "Ay......", "A.......",
		".B......", ".x......", ".y......", "........")
	ok(t, d.Flush())
	wantStates(t, h.Cut(7), "........")
	wantStates(t, h.Cut(2), "AB......")
	if n := h.Len(); n != 7 {
		t.Errorf("%d operations", n)
	}
}

func TestDiscardedStates(t *testing.T) {
	d := memdev.New(8*512, 512)
	write(t, d, 0, sectors("ABCDEFGH"))
	ok(t, d.Flush())
	h := d.Record()
	ok(t, d.Discard(0, 512))
	wantStates(t, h.Cut(1), "ABCDEFGH", ".BCDEFGH", "\xdcBCDEFGH")
	write(t, d, 0, sectors("x"))
	wantStates(t, h.Cut(2), "ABCDEFGH", ".BCDEFGH", "\xdcBCDEFGH", "xBCDEFGH")
	if s := letters(t, h.Cut(1).Everything()); s != ".BCDEFGH" {
		t.Errorf("everything is %s", s)
	}
}

// TestDiscardIsUnreliable: without a cut, too, a discard keeps, zeroes and
// garbles.
func TestDiscardIsUnreliable(t *testing.T) {
	d := memdev.New(64*512, 512)
	write(t, d, 0, bytes.Repeat([]byte{'A'}, 64*512))
	ok(t, d.Discard(512, 62*512))
	s := letters(t, d)
	seen := map[rune]int{}
	for _, c := range s {
		seen[c]++
	}
	if s[0] != 'A' || s[63] != 'A' || seen['A'] < 5 || seen['.'] < 5 || seen['\ufffd'] < 5 {
		t.Errorf("after a discard: %q", s)
	}
}

func TestAtomicUnit(t *testing.T) {
	d := memdev.New(8*512, 1024)
	h := d.Record()
	write(t, d, 0, sectors("AB"))
	wantStates(t, h.Cut(1), "........", "AB......")
	d = memdev.New(8*512, 1024)
	d.SetAtomicUnit(512)
	h = d.Record()
	write(t, d, 0, sectors("AB"))
	wantStates(t, h.Cut(1), "........", "A.......", ".B......", "AB......")
}

// TestRecordMidway: what was not flushed when recording began can still be lost.
func TestRecordMidway(t *testing.T) {
	d := memdev.New(8*512, 512)
	write(t, d, 0, sectors("A"))
	ok(t, d.Flush())
	write(t, d, 0, sectors("B"))
	h := d.Record()
	write(t, d, 512, sectors("C"))
	wantStates(t, h.Cut(0), "A.......")
	wantStates(t, h.Cut(1), "A.......", "B.......")
	wantStates(t, h.Cut(h.Len()), "A.......", "B.......", "AC......", "BC......")
}

// TestModel does random operations and compares the states after each with sets
// of versions, kept sector by sector in the simplest way.
func TestModel(t *testing.T) {
	for range 30 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { testModel(t, seed) })
	}
}

func testModel(t *testing.T, seed uint64) {
	const n = 24 // sectors: the device ends in the middle of a page
	rng := rand.New(rand.NewPCG(seed, 0))
	d := memdev.New(n*512, 1024)
	d.SetAtomicUnit(512)
	now := bytes.Repeat([]byte{'0'}, n)
	write(t, d, 0, sectors(string(now)))
	ok(t, d.Flush())
	h := d.Record()

	may := make([]string, n) // letters that a sector may show after a cut
	settle := func() {
		for i, c := range []byte(letters(t, d)) {
			may[i] = string([]byte{c})
		}
	}
	settle()
	check := func(what string, c *memdev.Device) {
		t.Helper()
		s := letters(t, c)
		for i := range n {
			if bytes.IndexByte([]byte(may[i]), s[i]) < 0 {
				t.Fatalf("%s: sector %d is %q, may be one of %q", what, i, s[i], may[i])
			}
		}
	}
	for step := range 40 {
		first := 2 * rng.IntN(n/2)
		length := 2 * (1 + rng.IntN(min(3, (n-first)/2)))
		off, size := int64(first)*512, int64(length)*512
		var add string
		switch rng.IntN(6) {
		case 0:
			ok(t, d.Discard(off, size))
			add = ".\xdc"
		case 1:
			ok(t, d.WriteZeroes(off, size))
			add = "."
		case 2:
			ok(t, d.Flush())
			settle()
		default:
			add = string(rune('a' + step%26))
			write(t, d, off, bytes.Repeat([]byte(add), int(size)))
		}
		if add != "" {
			for i := first; i < first+length; i++ {
				may[i] += add
			}
		}
		cut := h.Cut(h.Len())
		check("now", d)
		check("crash", d.Crash(rng))
		check("nothing", cut.Nothing())
		check("everything", cut.Everything())
		check("random", cut.Random(rng))
		check("replay", cut.Replay(func(int, int64) memdev.Fate { return memdev.Fate(rng.IntN(3)) }))
		taken := 0
		for c := range cut.All() {
			check("one of all", c)
			if taken++; taken == 20 {
				break
			}
		}
		// Replay of one operation alone.
		if last := h.Ops()[h.Len()-1]; last.Kind == memdev.Write {
			c := cut.Replay(func(op int, _ int64) memdev.Fate {
				if op == h.Len()-1 {
					return memdev.Done
				}
				return memdev.Lost
			})
			if got := content(t, c)[off : off+size]; got != string(last.Data) {
				t.Fatalf("step %d: the last write is not there alone", step)
			}
		}
	}
}

// TestRandomReachesAll: random states are not only some corner of what can be.
func TestRandomReachesAll(t *testing.T) {
	d := memdev.New(8*512, 512)
	h := d.Record()
	write(t, d, 0, sectors("ABC"))
	write(t, d, 1024, sectors("xy"))
	want := states(t, h.Cut(2))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		delete(want, letters(t, d.Crash(rng)))
	}
	for s := range want {
		t.Errorf("state %s was never seen", s)
	}
}

func TestExplore(t *testing.T) {
	d := memdev.New(64*512, 512)
	h := d.Record()
	write(t, d, 0, sectors("AB"))
	ok(t, d.Flush())
	write(t, d, 4096, sectors("CDEFGHIJKLMNOPQ"))
	run := func(seed uint64) (names, found []string) {
		for s, c := range h.Explore(seed, 10) {
			names = append(names, s.String())
			found = append(found, letters(t, c))
		}
		return names, found
	}
	names, found := run(1)
	if len(names) != 1+4+1+10 {
		t.Fatalf("%d states: %q", len(names), names)
	}
	if want := "cut in front of operation 1, state 3 of 4 possible ones"; names[4] != want {
		t.Errorf("got %q, want %q", names[4], want)
	}
	if want := "cut in front of operation 3, state 9 of 10 random ones"; names[15] != want {
		t.Errorf("got %q, want %q", names[15], want)
	}
	_, again := run(1)
	_, other := run(2)
	if fmt.Sprint(found) != fmt.Sprint(again) {
		t.Error("the same seed gives other states")
	}
	if fmt.Sprint(found) == fmt.Sprint(other) {
		t.Error("another seed gives the same states")
	}

	// Few states, and the random ones are often the same.
	write(t, d, 0, sectors("abc"))
	n := 0
	seen := map[string]bool{}
	for s, c := range h.Explore(1, 7) {
		if s.Cut != 4 {
			continue
		}
		n++
		seen[letters(t, c)] = true
	}
	if n < 6 || len(seen) != n {
		t.Errorf("%d states, %d different ones", n, len(seen))
	}
}

// TestStatesAreDevices: what comes out of a cut can be used and cut again, and
// nobody else sees it.
func TestStatesAreDevices(t *testing.T) {
	d := memdev.New(8*512, 512)
	write(t, d, 0, sectors("ABCDEFGH"))
	ok(t, d.Flush())
	a, b := d.Clone(), d.Clone()
	write(t, a, 0, sectors("a"))
	write(t, b, 0, sectors("b"))
	write(t, d, 0, sectors("d"))
	for _, test := range []struct {
		dev  *memdev.Device
		want string
	}{{a, "aBCDEFGH"}, {b, "bBCDEFGH"}, {d, "dBCDEFGH"}} {
		if s := letters(t, test.dev); s != test.want {
			t.Errorf("%s, not %s", s, test.want)
		}
		h := test.dev.Record()
		wantStates(t, h.Cut(1), "ABCDEFGH", test.want)
	}
}
