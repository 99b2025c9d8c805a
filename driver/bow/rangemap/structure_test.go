package rangemap

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// count counts the leaves and the inner nodes below and including n.
func (n *node[V]) count() (leaves, inner int) {
	if n.kids == nil {
		return 1, 0
	}
	inner = 1
	for _, kid := range n.kids.nodes[:n.n] {
		l, i := kid.count()
		leaves, inner = leaves+l, inner+i
	}
	return leaves, inner
}

// alternating returns a map of n extents of length 2.
func alternating(n int64) *Map[letter] {
	m := New(2*n, letter(0))
	for i := int64(1); i < n; i += 2 {
		m.Set(2*i, 2*i+2, 2)
	}
	return m
}

// TestChurn: however long a map is changed, its nodes go with its extents, while
// these go up and down again and again.
func TestChurn(t *testing.T) {
	const size = 100_000
	r := rand.New(rand.NewPCG(3, 0))
	m := New(size, letter(0))
	for round := range 20 {
		length := int64(1)
		if round%2 == 1 {
			length = 200
		}
		for range 20_000 {
			start := r.Int64N(size - length)
			m.Set(start, start+length, letter(r.IntN(6)))
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		leaves, inner := m.root.count()
		if most := m.Len()/minFill + 1; leaves > most {
			t.Errorf("round %d: %d leaves for %d extents, want %d at most", round, leaves, m.Len(), most)
		}
		if most := leaves/minFill + 3; inner > most {
			t.Errorf("round %d: %d inner nodes over %d leaves, want %d at most", round, inner, leaves, most)
		}
	}
	m.Set(0, size, 0)
	if leaves, inner := m.root.count(); leaves != 1 || inner != 0 {
		t.Errorf("one extent takes %d leaves and %d inner nodes", leaves, inner)
	}
}

// TestOrders builds the same map in several orders, and takes it apart again.
func TestOrders(t *testing.T) {
	const n = 20_000
	up := make([]int, n)
	for i := range up {
		up[i] = i
	}
	down := slices.Clone(up)
	slices.Reverse(down)
	r := rand.New(rand.NewPCG(4, 0))
	orders := map[string][]int{"up": up, "down": down, "random": r.Perm(n)}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			m := New(3*n, letter(0))
			for step, i := range order {
				m.Set(int64(3*i+1), int64(3*i+2), 1)
				if step%1000 == 0 {
					if err := m.Check(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got, want := m.Len(), 2*n+1; got != want {
				t.Errorf("%d extents, want %d", got, want)
			}
			leaves, _ := m.root.count()
			t.Logf("%d extents in %d leaves: %d%% full", m.Len(), leaves, m.Len()*100/(leaves*maxFill))
			for step, i := range order {
				m.Set(int64(3*i), int64(3*i+2), 0)
				if step%1000 == 0 {
					if err := m.Check(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			if m.Len() != 1 {
				t.Errorf("%d extents are left, want 1", m.Len())
			}
		})
	}
}

// TestReplace: from all extents surviving to none, the tree is right.
func TestReplace(t *testing.T) {
	for _, n := range []int64{1, 2, maxFill, maxFill + 1, maxFill + minFill, 2 * maxFill, 10_000} {
		m := alternating(n)
		calls := 0
		m.Replace(func(l letter) letter { calls++; return l + 1 })
		if err := m.Check(); err != nil {
			t.Fatalf("%d extents: %v", n, err)
		}
		if int64(m.Len()) != n || int64(calls) != n {
			t.Errorf("%d extents after %d calls, want %d", m.Len(), calls, n)
		}
		if leaves, _ := m.root.count(); int64(leaves) != (n+maxFill-1)/maxFill {
			t.Errorf("%d extents in %d leaves", n, leaves)
		}
		m.Replace(func(letter) letter { return 9 })
		if err := m.Check(); err != nil {
			t.Fatalf("%d extents made one: %v", n, err)
		}
		if m.Len() != 1 || m.Total(letter(9).Class()) != 2*n {
			t.Errorf("%d extents, total %d", m.Len(), m.Total(letter(9).Class()))
		}
	}
}

// TestAllocations: looking allocates nothing, nor does a Set that splits no node.
func TestAllocations(t *testing.T) {
	const n = 100_000
	m := alternating(n)
	m.Set(n, n+1, 4)
	r := rand.New(rand.NewPCG(5, 0))
	for name, f := range map[string]func(){
		"Get":   func() { m.Get(r.Int64N(2 * n)) },
		"Next":  func() { m.Next(r.Int64N(2*n), letter(4).Class()) },
		"Prev":  func() { m.Prev(r.Int64N(2*n), letter(4).Class()) },
		"Total": func() { m.Total(1) },
		"Set":   func() { m.Set(n, n+1, 5); m.Set(n, n+1, 4) },
	} {
		if allocs := testing.AllocsPerRun(1000, f); allocs != 0 {
			t.Errorf("%s makes %v allocations", name, allocs)
		}
	}
}

// TestExtentsStops: an iteration that is left early yields nothing more.
func TestExtentsStops(t *testing.T) {
	m := alternating(1000)
	var got []int64
	for x := range m.Extents(301, 2000) {
		got = append(got, x.Start)
		if len(got) == 3 {
			break
		}
	}
	if want := []int64{301, 302, 304}; !slices.Equal(got, want) {
		t.Errorf("extents start at %v, want %v", got, want)
	}
}

// TestInvalidClass: a class that there cannot be panics before anything changes.
func TestInvalidClass(t *testing.T) {
	m := New(10, tooHigh(0))
	for name, f := range map[string]func(){
		"New":    func() { New(10, tooHigh(MaxClasses)) },
		"Set":    func() { m.Set(2, 3, MaxClasses) },
		"Resize": func() { m.Resize(20, MaxClasses) },
		"Total":  func() { m.Total(MaxClasses) },
		"Next":   func() { m.Next(0, MaxClasses) },
		"Prev":   func() { m.Prev(10, MaxClasses) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				if err := m.Check(); err != nil || m.Len() != 1 || m.Size() != 10 {
					t.Errorf("the map has changed: %d extents of %d positions, %v", m.Len(), m.Size(), err)
				}
			}()
			f()
		})
	}
}

// tooHigh has a class for each value, valid or not.
type tooHigh uint8

func (v tooHigh) Class() Class { return Class(v) }

// TestCheck: Check sees what it is there to see.
func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(m *Map[letter]){
		"length":         func(m *Map[letter]) { m.len++ },
		"total":          func(m *Map[letter]) { m.totals[0]++ },
		"size":           func(m *Map[letter]) { m.size++ },
		"equal values":   func(m *Map[letter]) { m.root.leaves(nil)[1].values[3] = m.root.leaves(nil)[1].values[2] },
		"order":          func(m *Map[letter]) { m.root.leaves(nil)[1].starts[3] = 0 },
		"first start":    func(m *Map[letter]) { m.root.starts[1]++ },
		"summary":        func(m *Map[letter]) { m.root.kids.masks[1] |= 1 << 7 },
		"fill":           func(m *Map[letter]) { m.root.leaves(nil)[1].n = minFill - 1 },
		"unused subtree": func(m *Map[letter]) { m.root.kids.nodes[slots-1] = new(node[letter]) },
		"depth":          func(m *Map[letter]) { m.root.kids.nodes[1] = m.root.kids.nodes[1].kids.nodes[0] },
	} {
		m := alternating(10_000)
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(m)
		if m.Check() == nil {
			t.Errorf("%s: nothing found", name)
		}
	}
}

// BenchmarkReplace rewrites a million extents and merges none.
func BenchmarkReplace(b *testing.B) {
	m := alternating(1_000_000)
	for b.Loop() {
		m.Replace(func(l letter) letter { return l ^ 1 })
	}
}

// BenchmarkNextThroughAll visits every extent of one class of a million.
func BenchmarkNextThroughAll(b *testing.B) {
	m := alternating(1_000_000)
	pos := int64(0)
	for b.Loop() {
		x, ok := m.Next(pos, 1)
		if pos = x.End; !ok {
			pos = 0
		}
	}
}
