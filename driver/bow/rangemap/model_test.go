package rangemap

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// letter is a value for tests. Two neighbours in the alphabet share a class.
type letter uint8

func (l letter) Class() Class   { return Class(l/2) % MaxClasses }
func (l letter) String() string { return string('a' + rune(l)) }

// model does what a Map does, position by position.
type model []letter

func newModel(size int64, l letter) model {
	var m model
	return m.resize(size, l)
}

func (m model) resize(size int64, l letter) model {
	for int64(len(m)) < size {
		m = append(m, l)
	}
	return m
}

func (m model) set(start, end int64, l letter) {
	for i := start; i < end; i++ {
		m[i] = l
	}
}

func (m model) replace(f func(letter) letter) {
	for i := range m {
		m[i] = f(m[i])
	}
}

func (m model) get(pos int64) Extent[letter] {
	x := Extent[letter]{pos, pos + 1, m[pos]}
	for x.Start > 0 && m[x.Start-1] == x.Value {
		x.Start--
	}
	for x.End < int64(len(m)) && m[x.End] == x.Value {
		x.End++
	}
	return x
}

func (m model) next(pos int64, c Class) (Extent[letter], bool) {
	for ; pos < int64(len(m)); pos++ {
		if m[pos].Class() == c {
			x := m.get(pos)
			x.Start = pos
			return x, true
		}
	}
	return Extent[letter]{}, false
}

func (m model) prev(pos int64, c Class) (Extent[letter], bool) {
	for ; pos > 0; pos-- {
		if m[pos-1].Class() == c {
			x := m.get(pos - 1)
			x.End = pos
			return x, true
		}
	}
	return Extent[letter]{}, false
}

func (m model) extents(start, end int64) (xs []Extent[letter]) {
	for pos := start; pos < end; {
		x := m.get(pos)
		x.Start, x.End = pos, min(x.End, end)
		xs = append(xs, x)
		pos = x.End
	}
	return xs
}

// pair is a map and its model, and what was done to both.
type pair struct {
	t       testing.TB
	m       *Map[letter]
	model   model
	history []string
}

func newPair(t testing.TB, size int64, l letter) *pair {
	p := &pair{t: t, m: New(size, l), model: newModel(size, l)}
	p.note("New(%d, %v)", size, l)
	p.check()
	return p
}

func (p *pair) note(format string, args ...any) {
	p.history = append(p.history, fmt.Sprintf(format, args...))
}

func (p *pair) fatalf(format string, args ...any) {
	p.t.Helper()
	for _, op := range p.history[max(0, len(p.history)-10):] {
		p.t.Log(op)
	}
	p.t.Fatalf("after %d operations: %s", len(p.history), fmt.Sprintf(format, args...))
}

func (p *pair) set(start, end int64, l letter) {
	p.note("Set(%d, %d, %v)", start, end, l)
	p.m.Set(start, end, l)
	p.model.set(start, end, l)
}

func (p *pair) resize(size int64, l letter) {
	p.note("Resize(%d, %v)", size, l)
	p.m.Resize(size, l)
	p.model = p.model.resize(size, l)
}

// replace gives values with bit b set in choice the value l.
func (p *pair) replace(choice uint64, l letter) {
	p.note("Replace(%#x, %v)", choice, l)
	f := func(old letter) letter {
		if choice>>old&1 != 0 {
			return l
		}
		return old
	}
	p.m.Replace(f)
	p.model.replace(f)
}

// look compares what searches from pos find, and what [pos, end) holds.
func (p *pair) look(pos, end int64) {
	p.t.Helper()
	if pos < p.m.Size() {
		if got, want := p.m.Get(pos), p.model.get(pos); got != want {
			p.fatalf("Get(%d) is %v, want %v", pos, got, want)
		}
	}
	for c := range Class(MaxClasses) {
		got, ok := p.m.Next(pos, c)
		if want, wantOK := p.model.next(pos, c); got != want || ok != wantOK {
			p.fatalf("Next(%d, %d) is %v, %t, want %v, %t", pos, c, got, ok, want, wantOK)
		}
		got, ok = p.m.Prev(pos, c)
		if want, wantOK := p.model.prev(pos, c); got != want || ok != wantOK {
			p.fatalf("Prev(%d, %d) is %v, %t, want %v, %t", pos, c, got, ok, want, wantOK)
		}
	}
	if got, want := slices.Collect(p.m.Extents(pos, end)), p.model.extents(pos, end); !slices.Equal(got, want) {
		p.fatalf("Extents(%d, %d) are %v, want %v", pos, end, got, want)
	}
}

// check checks the structure, and compares all that the map holds.
func (p *pair) check() {
	p.t.Helper()
	if err := p.m.Check(); err != nil {
		p.fatalf("%v", err)
	}
	size := int64(len(p.model))
	if got := p.m.Size(); got != size {
		p.fatalf("Size() is %d, want %d", got, size)
	}
	want := p.model.extents(0, size)
	if got := slices.Collect(p.m.Extents(0, size)); !slices.Equal(got, want) {
		p.fatalf("the map is %v, want %v", got, want)
	}
	if got := p.m.Len(); got != len(want) {
		p.fatalf("Len() is %d, want %d", got, len(want))
	}
	var totals [MaxClasses]int64
	for _, l := range p.model {
		totals[l.Class()]++
	}
	for c, want := range totals {
		if got := p.m.Total(Class(c)); got != want {
			p.fatalf("Total(%d) is %d, want %d", c, got, want)
		}
	}
}

// randomRange returns a range of [0, size): most are short, some may be of any
// length, a few empty or all there is.
func randomRange(r *rand.Rand, size int64) (start, end int64) {
	start = r.Int64N(size + 1)
	switch r.IntN(64) {
	case 0:
		return 0, size
	case 1:
		return start, start
	case 2, 3:
		return start, start + r.Int64N(size-start+1)
	case 4, 5, 6, 7:
		return start, min(size, start+r.Int64N(max(1, size/16)))
	}
	return start, min(size, start+1+r.Int64N(3))
}

// churn does steps random operations and checks after each of them.
func (p *pair) churn(r *rand.Rand, steps int, alphabet uint8, grow int64) {
	any := func() letter { return letter(r.IntN(int(alphabet))) }
	for range steps {
		start, end := randomRange(r, p.m.Size())
		switch r.IntN(200) {
		case 0:
			p.resize(p.m.Size()+r.Int64N(grow+1), any())
		case 1:
			p.replace(r.Uint64()&r.Uint64(), any())
		default:
			p.set(start, end, any())
		}
		p.look(start, end)
		p.check()
	}
}

// TestRandomOperations compares maps with models, with small and large numbers
// of extents, from fixed seeds and one that is new each time.
func TestRandomOperations(t *testing.T) {
	fresh := uint64(time.Now().UnixNano())
	for _, c := range []struct {
		size     int64
		alphabet uint8
		dense    bool // begin with an extent for each position
		steps    int
		seeds    uint64
	}{
		{size: 1, alphabet: 3, steps: 200, seeds: 4},
		{size: 7, alphabet: 2, steps: 1000, seeds: 4},
		{size: 100, alphabet: 3, steps: 1000, seeds: 4},
		{size: 100, alphabet: 26, dense: true, steps: 1000, seeds: 2},
		{size: 1000, alphabet: 2, steps: 800, seeds: 2},
		{size: 1000, alphabet: 5, dense: true, steps: 800, seeds: 2},
		{size: 6000, alphabet: 4, dense: true, steps: 200, seeds: 2}, // three levels
	} {
		for i := range c.seeds + 1 {
			seed := i
			if i == c.seeds {
				seed = fresh
			}
			t.Run(fmt.Sprintf("size=%d/alphabet=%d/dense=%t/seed=%d", c.size, c.alphabet, c.dense, seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 0))
				p := newPair(t, c.size, 0)
				if c.dense {
					for _, pos := range r.Perm(int(c.size)) {
						p.set(int64(pos), int64(pos)+1, letter(pos%int(c.alphabet)))
					}
					p.check()
				}
				p.churn(r, c.steps, c.alphabet, c.size/20+2)
			})
		}
	}
}

// FuzzOperations reads operations of four bytes each.
func FuzzOperations(f *testing.F) {
	f.Add(uint16(10), []byte{0, 3, 2, 1, 0, 5, 1, 2, 9, 0, 0, 0})
	f.Add(uint16(300), []byte{1, 0, 255, 1, 3, 9, 9, 9, 200, 7, 1, 1, 251, 40, 3, 2, 255, 1, 2, 3})
	f.Fuzz(func(t *testing.T, size uint16, ops []byte) {
		p := newPair(t, int64(size%1024)+1, 0)
		// More than one leaf is wanted, and a short input.
		for i := range p.m.Size() {
			p.set(i, i+1, letter(i%3))
		}
		for ; len(ops) >= 4; ops = ops[4:] {
			size := p.m.Size()
			start := (int64(ops[0])<<8 | int64(ops[1])) % (size + 1)
			end := min(size, start+int64(ops[2]))
			l := letter(ops[3] % 32)
			switch ops[0] {
			case 255:
				p.resize(size+int64(ops[1]), l)
			case 254:
				p.replace(uint64(ops[1])<<8|uint64(ops[2]), l)
			case 253:
				p.set(start, size, l)
			default:
				p.set(start, end, l)
			}
			p.look(start, end)
			p.check()
		}
	})
}
