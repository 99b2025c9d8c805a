package rangemap_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/bowline-csi/bowline/driver/bow/rangemap"
)

// color is a small value, one class each.
type color uint8

func (c color) Class() rangemap.Class { return rangemap.Class(c) }

// shift is a value of which there are many, in two classes.
type shift int64

func (s shift) Class() rangemap.Class {
	if s == 0 {
		return 0
	}
	return 1
}

// array is the obvious implementation.
type array []color

func (a array) get(pos int64) rangemap.Extent[color] {
	x := rangemap.Extent[color]{Start: pos, End: pos + 1, Value: a[pos]}
	for x.Start > 0 && a[x.Start-1] == x.Value {
		x.Start--
	}
	for x.End < int64(len(a)) && a[x.End] == x.Value {
		x.End++
	}
	return x
}

// compare fails if m is not what a is.
func compare(t *testing.T, m *rangemap.Map[color], a array) {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	var totals [rangemap.MaxClasses]int64
	n := 0
	for pos := int64(0); pos < int64(len(a)); n++ {
		want := a.get(pos)
		if got := m.Get(pos + rand.Int64N(want.End-pos)); got != want {
			t.Fatalf("extent at %d is %v, want %v", pos, got, want)
		}
		totals[want.Value] += want.End - want.Start
		pos = want.End
	}
	if m.Len() != n {
		t.Fatalf("%d extents, want %d", m.Len(), n)
	}
	for c, want := range totals {
		if got := m.Total(rangemap.Class(c)); got != want {
			t.Fatalf("total of class %d is %d, want %d", c, got, want)
		}
	}
}

// compareSearch fails if looking around from pos gives something else.
func compareSearch(t *testing.T, m *rangemap.Map[color], a array, pos int64, c color) {
	t.Helper()
	var want rangemap.Extent[color]
	var found bool
	for i := pos; i < int64(len(a)) && !found; i++ {
		if found = a[i] == c; found {
			want = a.get(i)
			want.Start = max(want.Start, pos)
		}
	}
	if got, ok := m.Next(pos, c.Class()); ok != found || got != want {
		t.Fatalf("next of class %d after %d is %v, %v, want %v, %v", c, pos, got, ok, want, found)
	}
	want, found = rangemap.Extent[color]{}, false
	for i := pos - 1; i >= 0 && !found; i-- {
		if found = a[i] == c; found {
			want = a.get(i)
			want.End = min(want.End, pos)
		}
	}
	if got, ok := m.Prev(pos, c.Class()); ok != found || got != want {
		t.Fatalf("previous of class %d before %d is %v, %v, want %v, %v", c, pos, got, ok, want, found)
	}
}

func TestRandom(t *testing.T) {
	for _, size := range []int64{1, 2, 7, 100, 5000} {
		for _, colors := range []int{2, 3, 8} {
			for _, seed := range []uint64{1, rand.Uint64()} {
				t.Run(fmt.Sprintf("size=%d/colors=%d/seed=%d", size, colors, seed), func(t *testing.T) {
					testRandom(t, size, colors, rand.New(rand.NewPCG(seed, 0)))
				})
			}
		}
	}
}

func testRandom(t *testing.T, size int64, colors int, rng *rand.Rand) {
	m, a := rangemap.New(size, color(0)), make(array, size)
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for i := range steps {
		start := rng.Int64N(size)
		end := start + rng.Int64N(size-start+1)
		if rng.IntN(3) > 0 {
			end = min(start+rng.Int64N(4), size)
		}
		v := color(rng.IntN(colors))
		switch {
		case i%500 == 499:
			f := func(c color) color { return (c + v) / 2 }
			m.Replace(f)
			for p := range a {
				a[p] = f(a[p])
			}
		case i%700 == 699:
			size += rng.Int64N(50)
			m.Resize(size, v)
			for int64(len(a)) < size {
				a = append(a, v)
			}
		default:
			m.Set(start, end, v)
			for p := start; p < end; p++ {
				a[p] = v
			}
		}
		if size <= 100 || i%10 == 0 {
			compare(t, m, a)
		} else if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		compareSearch(t, m, a, rng.Int64N(size+1), color(rng.IntN(colors)))
		at := min(start, size)
		for x := range m.Extents(start, end) {
			want := a.get(x.Start)
			if x.Start != at || x.End != min(want.End, end) || x.Value != want.Value {
				t.Fatalf("extents of [%d, %d): got %v after %d", start, end, x, at)
			}
			at = x.End
		}
		if at != end {
			t.Fatalf("extents of [%d, %d) end at %d", start, end, at)
		}
	}
}

// FuzzSet reads operations from its input: three bytes each, a range and a value.
func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 255, 1, 10, 20, 2, 15, 5, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const size = 256
		m, a := rangemap.New(size, color(0)), make(array, size)
		for ; len(ops) >= 3; ops = ops[3:] {
			start := int64(ops[0])
			end := min(start+int64(ops[1]), size)
			v := color(ops[2] % rangemap.MaxClasses)
			m.Set(start, end, v)
			for p := start; p < end; p++ {
				a[p] = v
			}
		}
		compare(t, m, a)
	})
}

// TestManyValues: neighbours merge if they are equal, whatever their class.
func TestManyValues(t *testing.T) {
	m := rangemap.New(1000, shift(0))
	for pos := int64(100); pos < 900; pos++ {
		m.Set(pos, pos+1, shift(7))
	}
	m.Set(500, 600, shift(8))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if m.Len() != 5 || m.Total(1) != 800 {
		t.Errorf("%d extents, %d positions shifted", m.Len(), m.Total(1))
	}
	if x, ok := m.Next(0, 1); !ok || x != (rangemap.Extent[shift]{Start: 100, End: 500, Value: 7}) {
		t.Errorf("first shifted extent is %v", x)
	}
}

// TestPanics: positions that do not exist are noticed.
func TestPanics(t *testing.T) {
	m := rangemap.New(10, color(0))
	for name, f := range map[string]func(){
		"get":     func() { m.Get(10) },
		"below":   func() { m.Set(-1, 3, 1) },
		"behind":  func() { m.Set(3, 11, 1) },
		"reverse": func() { m.Set(5, 4, 1) },
		"shrink":  func() { m.Resize(9, 0) },
		"empty":   func() { rangemap.New(0, color(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				if err := m.Check(); err != nil {
					t.Error(err)
				}
			}()
			f()
		})
	}
}

const (
	tib     = 1 << 40 / 4096 // blocks of 4 KiB
	million = 1_000_000
)

// scattered returns a map of 1 TiB with some million extents.
func scattered(rng *rand.Rand) *rangemap.Map[color] {
	m := rangemap.New(tib, color(0))
	for m.Len() < million {
		start := rng.Int64N(tib - 4)
		m.Set(start, start+1+rng.Int64N(4), color(1+rng.IntN(3)))
	}
	return m
}

// TestMemory: 1 TiB with a million extents fits in 64 MiB, also after a long time
// of churn, and what becomes one extent again needs next to nothing.
func TestMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	before := heap()
	m := scattered(rng)
	built := heap() - before
	for range million {
		start, n, v := rng.Int64N(tib-1000), 1+rng.Int64N(8), color(rng.IntN(4))
		if m.Len() > million {
			n, v = 1000, 0
		}
		m.Set(start, start+n, v)
	}
	churned := heap() - before
	t.Logf("%d extents: %d KiB when built, %d KiB after churn", m.Len(), built>>10, churned>>10)
	for name, n := range map[string]int64{"built": built, "churned": churned} {
		if n > 64<<20 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
	m.Set(0, tib, color(2))
	if n := heap() - before; n > 1<<20 {
		t.Errorf("one extent takes %d bytes", n)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(m)
}

func BenchmarkGet(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := scattered(rng)
	for b.Loop() {
		m.Get(rng.Int64N(tib))
	}
}

func BenchmarkSet(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := scattered(rng)
	for b.Loop() {
		start := rng.Int64N(tib - 4)
		m.Set(start, start+1+rng.Int64N(4), color(rng.IntN(4)))
	}
}

// BenchmarkNextFar looks for the one extent of its class behind a million others.
func BenchmarkNextFar(b *testing.B) {
	m := scattered(rand.New(rand.NewPCG(1, 2)))
	m.Set(tib-1, tib, color(5))
	for b.Loop() {
		if _, ok := m.Next(0, 5); !ok {
			b.Fatal("not found")
		}
	}
}
