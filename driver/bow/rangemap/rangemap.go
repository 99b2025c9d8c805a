// Package rangemap maps every position of [0, size) to a value. It keeps one
// entry for each run of positions with equal values, so its memory goes with
// the number of runs and not with the size.
//
// What a position is, is up to the user: a block, a sector, a byte. At any time
// the map is a sequence of extents that
//
//   - cover [0, size) without gaps and without overlaps,
//   - are not empty, and
//   - are maximal: extents that touch have different values.
//
// So a map is determined by what it maps; how it came about leaves no trace in
// what it returns. Values are compared with ==, which must hold between a value
// and itself (so no NaN).
//
// # Costs
//
// With n extents, Get, Next and Prev take O(log n) and allocate nothing, even
// if all the extents between the position and the one sought have other
// classes. Set takes O(log n), amortised over the extents that it removes, and
// allocates only when a node is split. Total takes O(1), Replace O(n).
//
// # Structure
//
// A map is a B+-tree of extents in order of position. As extents leave no gaps,
// an entry holds only where its extent starts: it ends where the next one
// starts. An inner node knows for each subtree where its first extent starts
// and which classes occur in it. All nodes but the root are at least a third
// full, so the tree shrinks as the number of extents does.
//
// # Errors
//
// Positions outside the map, ranges whose end is before their start, and
// classes from MaxClasses on are mistakes of the program, not of its input:
// they panic, and the map is as it was (see Replace for the one exception).
//
// A Map must not be used by several goroutines at once, unless all of them only
// read.
package rangemap

import (
	"fmt"
	"iter"
)

// Class groups values for totals and searches: one class may have any number of
// values. Valid classes are less than MaxClasses.
type Class uint8

// MaxClasses is the number of classes that a map can tell apart.
const MaxClasses = 16

// Value is what a Map holds for each position.
type Value interface {
	comparable

	// Class is the class of the value. It is a pure function of the value and
	// less than MaxClasses.
	Class() Class
}

// Extent says that all positions of [Start, End) have the same Value.
type Extent[V Value] struct {
	Start, End int64
	Value      V
}

// Len is the number of positions in the extent.
func (x Extent[V]) Len() int64 { return x.End - x.Start }

// Map maps every position of [0, Size()) to a value. Make one with New.
type Map[V Value] struct {
	root *node[V]
	size int64

	// len is the number of extents.
	len int

	// totals counts positions by class.
	totals [MaxClasses]int64
}

// New returns a map that has initial at all of its size positions.
//
// Precondition: size > 0.
// Postcondition: there is one extent.
func New[V Value](size int64, initial V) *Map[V] {
	if size <= 0 {
		panic(fmt.Sprintf("rangemap: New: size %d is not positive", size))
	}
	m := &Map[V]{root: new(node[V]), size: size, len: 1}
	m.root.n = 1
	m.root.values[0] = initial
	m.totals[classOf(initial)] = size
	return m
}

// Size is the number of positions.
func (m *Map[V]) Size() int64 { return m.size }

// Len is the number of extents.
func (m *Map[V]) Len() int { return m.len }

// Total is the number of positions whose value is of class c.
//
// Precondition: c < MaxClasses.
func (m *Map[V]) Total(c Class) int64 {
	checkClass(c)
	return m.totals[c]
}

// Get returns the extent that holds pos, all of it.
//
// Precondition: 0 <= pos < Size().
// Postcondition: x.Start <= pos < x.End, and the neighbours of x, if any, have
// other values.
func (m *Map[V]) Get(pos int64) (x Extent[V]) {
	if uint64(pos) >= uint64(m.size) {
		panic(fmt.Sprintf("rangemap: Get: position %d is outside [0, %d)", pos, m.size))
	}
	n, hi := m.root, m.size
	for {
		i := n.find(pos)
		hi = n.end(i, hi)
		if n.kids == nil {
			return Extent[V]{n.starts[i], hi, n.values[i]}
		}
		n = n.kids.nodes[i]
	}
}

// Next returns the part at and after pos of the first extent of class c that
// ends after pos; ok is false if there is none.
//
// Preconditions: 0 <= pos <= Size(), c < MaxClasses.
// Postcondition: if ok, x.Start >= pos, and no position of [pos, x.Start) is of
// class c. Otherwise no position from pos on is.
func (m *Map[V]) Next(pos int64, c Class) (x Extent[V], ok bool) {
	m.checkRange("Next", pos, m.size)
	checkClass(c)
	if pos == m.size || m.totals[c] == 0 {
		return x, false
	}
	return m.root.next(pos, m.size, c)
}

// Prev returns the part before pos of the last extent of class c that starts
// before pos; ok is false if there is none.
//
// Preconditions: 0 <= pos <= Size(), c < MaxClasses.
// Postcondition: if ok, x.End <= pos, and no position of [x.End, pos) is of
// class c. Otherwise no position before pos is.
func (m *Map[V]) Prev(pos int64, c Class) (x Extent[V], ok bool) {
	m.checkRange("Prev", 0, pos)
	checkClass(c)
	if pos == 0 || m.totals[c] == 0 {
		return x, false
	}
	return m.root.prev(pos, m.size, c)
}

// Extents yields the extents that overlap [start, end) in order, the first and
// the last of them clipped to it. The map must not change before the iteration
// ends.
//
// Precondition: 0 <= start <= end <= Size().
// Postcondition: what was yielded covers [start, end) exactly.
func (m *Map[V]) Extents(start, end int64) iter.Seq[Extent[V]] {
	m.checkRange("Extents", start, end)
	return func(yield func(Extent[V]) bool) {
		if start < end {
			m.root.walk(start, end, m.size, yield)
		}
	}
}

// Set gives all positions of [start, end) the value v.
//
// Preconditions: 0 <= start <= end <= Size(), v.Class() < MaxClasses.
// Postconditions: Get(start).End >= end if start < end; positions outside
// [start, end) have the values that they had.
func (m *Map[V]) Set(start, end int64, v V) {
	m.checkRange("Set", start, end)
	class := classOf(v)
	if start == end {
		return
	}

	// Take in the neighbours that have the same value: then what is to be
	// written is an extent, and no merging is left to be done.
	if start > 0 {
		if x := m.Get(start - 1); x.Value == v {
			if x.End >= end {
				return
			}
			start = x.Start
		}
	}
	if end < m.size {
		if x := m.Get(end); x.Value == v {
			if x.Start <= start {
				return
			}
			end = x.End
		}
	}

	m.totals[class] += end - start
	for pos := start; pos < end; {
		pos = m.overwrite(m.root, m.size, pos, end, v, pos == start)
		m.root = m.root.asRoot()
	}
}

// Resize gives the map a new size. Positions that are added have the value v.
//
// Preconditions: size >= Size(), v.Class() < MaxClasses.
// Postcondition: positions below the old size have the values that they had.
func (m *Map[V]) Resize(size int64, v V) {
	if size < m.size {
		panic(fmt.Sprintf("rangemap: Resize: size %d is less than the present %d", size, m.size))
	}
	classOf(v)

	// The last extent ends where the map does, so it has grown already.
	old, last := m.size, m.root.last()
	m.size = size
	m.totals[classOf(last)] += size - old
	m.Set(old, size, v)
}

// Replace gives each position the value f(v), where v is the value that it has.
// It calls f once for each extent, in order, and takes O(Len()).
//
// Preconditions: f(v).Class() < MaxClasses for all v in the map; f does not use
// the map. If f panics or breaks the first of these, the map must not be used
// any more.
// Postcondition: Len() is not greater than it was.
func (m *Map[V]) Replace(f func(V) V) {
	leaves := m.root.leaves(nil)
	m.totals = [MaxClasses]int64{}
	m.len = 0

	// Fill the leaves anew from the first one on, as full as they may be. What
	// is written never overtakes what is read: no leaf was fuller than that.
	var last V
	to, at := 0, 0
	for from, leaf := range leaves {
		hi := m.size
		if from+1 < len(leaves) {
			hi = leaves[from+1].starts[0]
		}
		for i, n := 0, leaf.n; i < n; i++ {
			start, end := leaf.starts[i], hi
			if i+1 < n {
				end = leaf.starts[i+1]
			}
			v := f(leaf.values[i])
			m.totals[classOf(v)] += end - start
			if m.len > 0 && v == last {
				continue
			}
			if at == maxFill {
				leaves[to].n = at
				to, at = to+1, 0
			}
			leaves[to].starts[at], leaves[to].values[at] = start, v
			at++
			m.len++
			last = v
		}
	}
	leaves[to].n = at
	leaves = leaves[:to+1]
	if to > 0 && at < minFill {
		balance(leaves[to-1], leaves[to])
	}
	m.root = build(leaves)
}

// checkRange panics unless 0 <= start <= end <= m.size.
func (m *Map[V]) checkRange(method string, start, end int64) {
	if start < 0 || start > end || end > m.size {
		panic(fmt.Sprintf("rangemap: %s: [%d, %d) is not a range of [0, %d)", method, start, end, m.size))
	}
}

// classOf is the class of v, checked.
func classOf[V Value](v V) Class {
	c := v.Class()
	checkClass(c)
	return c
}

// checkClass panics unless c is a valid class.
func checkClass(c Class) {
	if c >= MaxClasses {
		panic(fmt.Sprintf("rangemap: class %d is not less than %d", c, MaxClasses))
	}
}
