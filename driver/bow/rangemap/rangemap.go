// Package rangemap is a map from positions to values that is made of few, long
// ranges: every position of [0, size) has a value, and neighbours with equal
// values cost nothing.
//
// Memory and time go with the number of extents and not with the size. The
// extents are kept as sorted runs ("leaves") of at most leafCap extents, and the
// leaves in one sorted slice; with a million extents that slice has some six
// thousand entries, which is little to search and to shift. An extent is its
// start and its value: where it ends, the next one begins.
//
// A Map is not safe for concurrent use. Positions outside of [0, size) and ranges
// that end before they begin are mistakes of the caller, and panic.
package rangemap

import (
	"fmt"
	"iter"
	"slices"
)

// Class groups values for totals and searches.
type Class uint8

// MaxClasses is the number of classes that there can be.
const MaxClasses = 16

// Value is what a Map holds. Class must be less than MaxClasses and the same for
// equal values.
type Value interface {
	comparable
	Class() Class
}

// Extent is a maximal range of positions with one value, [Start, End), or a part
// of one.
type Extent[V Value] struct {
	Start, End int64
	Value      V
}

const (
	leafCap = 256
	// A leaf with fewer extents is joined with a neighbour if both fit into
	// one with room to grow.
	leafMin  = leafCap / 4
	leafJoin = leafCap * 3 / 4
)

// Map is a map of [0, Size) to values.
type Map[V Value] struct {
	size   int64
	len    int
	totals [MaxClasses]int64 // positions by class

	// The leaves in order; never empty, and none of them is. first[i] is the
	// first start in leaves[i], masks[i] has a bit for each class in it.
	leaves []*leaf[V]
	first  []int64
	masks  []uint16
}

// leaf is a run of extents. starts and values have equal length.
type leaf[V Value] struct {
	starts []int64
	values []V
	counts [MaxClasses]uint16 // extents by class
}

// cursor is the place of an extent: its leaf, and the index in it.
type cursor struct{ leaf, i int }

// New returns a map of [0, size) in which every position has the value initial.
func New[V Value](size int64, initial V) *Map[V] {
	if size <= 0 {
		panic(fmt.Sprintf("rangemap: size %d", size))
	}
	m := &Map[V]{size: size, len: 1}
	l := &leaf[V]{}
	l.insert(0, 0, initial)
	m.leaves, m.first, m.masks = []*leaf[V]{l}, []int64{0}, []uint16{l.mask()}
	m.totals[initial.Class()] = size
	return m
}

// Size returns the number of positions.
func (m *Map[V]) Size() int64 { return m.size }

// Len returns the number of extents.
func (m *Map[V]) Len() int { return m.len }

// Total returns the number of positions whose value is of class c.
func (m *Map[V]) Total(c Class) int64 { return m.totals[c] }

// Get returns the maximal extent that holds pos.
func (m *Map[V]) Get(pos int64) Extent[V] {
	m.check(pos, pos+1)
	return m.at(m.find(pos))
}

// Extents iterates over what is in [start, end), in order; the first and the last
// extent are cut to that. The map must not change meanwhile.
func (m *Map[V]) Extents(start, end int64) iter.Seq[Extent[V]] {
	m.check(start, end)
	return func(yield func(Extent[V]) bool) {
		if start == end {
			return
		}
		for c, ok := m.find(start), true; ok; c, ok = m.next(c) {
			x := m.at(c)
			if x.Start >= end {
				return
			}
			x.Start, x.End = max(x.Start, start), min(x.End, end)
			if !yield(x) {
				return
			}
		}
	}
}

// Next returns the first extent of class c that ends after pos, cut to begin at
// pos at the earliest. pos may be Size.
func (m *Map[V]) Next(pos int64, c Class) (Extent[V], bool) {
	m.check(pos, pos)
	if pos == m.size || m.totals[c] == 0 {
		return Extent[V]{}, false
	}
	at := m.find(pos)
	for li, i := at.leaf, at.i; li < len(m.leaves); li, i = li+1, 0 {
		if m.masks[li]&(1<<c) == 0 {
			continue
		}
		for l := m.leaves[li]; i < len(l.values); i++ {
			if l.values[i].Class() == c {
				x := m.at(cursor{li, i})
				x.Start = max(x.Start, pos)
				return x, true
			}
		}
	}
	return Extent[V]{}, false
}

// Prev returns the last extent of class c that starts before pos, cut to end at
// pos at the latest. pos may be Size.
func (m *Map[V]) Prev(pos int64, c Class) (Extent[V], bool) {
	m.check(pos, pos)
	if pos == 0 || m.totals[c] == 0 {
		return Extent[V]{}, false
	}
	at := m.find(pos - 1)
	for li, i := at.leaf, at.i; li >= 0; {
		if m.masks[li]&(1<<c) != 0 {
			for l := m.leaves[li]; i >= 0; i-- {
				if l.values[i].Class() == c {
					x := m.at(cursor{li, i})
					x.End = min(x.End, pos)
					return x, true
				}
			}
		}
		if li--; li >= 0 {
			i = len(m.leaves[li].values) - 1
		}
	}
	return Extent[V]{}, false
}

// Set gives every position of [start, end) the value v.
func (m *Map[V]) Set(start, end int64, v V) {
	m.check(start, end)
	if start == end {
		return
	}
	from := m.find(start)
	if x := m.at(from); x.Value == v && x.End >= end {
		return
	}

	// What begins in [start, end] goes; begin and end of the range come back
	// where the value changes there.
	c := from
	if m.startOf(c) < start {
		c, _ = m.next(c)
	}
	var right V // value at end, if end < size
	for x := range m.Extents(start, end) {
		m.totals[x.Value.Class()] -= x.End - x.Start
		right = x.Value
	}
	m.totals[v.Class()] += end - start
	if end < m.size {
		right = m.at(m.find(end)).Value
	}
	m.removeStarts(c, end)
	if start == 0 || m.at(m.find(start-1)).Value != v {
		m.insertStart(start, v)
	}
	if end < m.size && right != v {
		m.insertStart(end, right)
	}
}

// Replace gives every position the value that f makes of its value.
func (m *Map[V]) Replace(f func(V) V) {
	old := *m
	*m = Map[V]{size: old.size}
	var l *leaf[V]
	var last V
	for _, from := range old.leaves {
		for i, start := range from.starts {
			v := f(from.values[i])
			if m.len > 0 && v == last {
				continue
			}
			if l == nil || len(l.starts) == leafJoin {
				l = &leaf[V]{}
				m.leaves = append(m.leaves, l)
				m.first = append(m.first, start)
				m.masks = append(m.masks, 0)
			}
			l.insert(len(l.starts), start, v)
			m.masks[len(m.masks)-1] |= 1 << v.Class()
			m.len++
			last = v
		}
	}
	for x := range m.Extents(0, m.size) {
		m.totals[x.Value.Class()] += x.End - x.Start
	}
}

// Resize makes the map larger; what is new has the value v.
func (m *Map[V]) Resize(size int64, v V) {
	if size < m.size {
		panic(fmt.Sprintf("rangemap: size %d is less than %d", size, m.size))
	}
	if size == m.size {
		return
	}
	old, last := m.size, m.at(m.find(m.size-1))
	m.size = size
	m.totals[last.Value.Class()] += size - old // until Set says otherwise
	m.Set(old, size, v)
}

func (m *Map[V]) check(start, end int64) {
	if start < 0 || start > end || end > m.size {
		panic(fmt.Sprintf("rangemap: range [%d, %d) of a map of %d", start, end, m.size))
	}
}

// find returns the place of the extent that holds pos.
func (m *Map[V]) find(pos int64) cursor {
	li := upper(m.first, pos) - 1
	return cursor{li, upper(m.leaves[li].starts, pos) - 1}
}

// upper returns the number of elements of the sorted list that are at most pos.
func upper(list []int64, pos int64) int {
	lo, hi := 0, len(list)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); list[mid] <= pos {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

func (m *Map[V]) startOf(c cursor) int64 { return m.leaves[c.leaf].starts[c.i] }

func (m *Map[V]) at(c cursor) Extent[V] {
	l := m.leaves[c.leaf]
	x := Extent[V]{Start: l.starts[c.i], End: m.size, Value: l.values[c.i]}
	if c.i+1 < len(l.starts) {
		x.End = l.starts[c.i+1]
	} else if c.leaf+1 < len(m.first) {
		x.End = m.first[c.leaf+1]
	}
	return x
}

// next returns the place after c. Without one it returns the end, one leaf
// behind the last, and false.
func (m *Map[V]) next(c cursor) (cursor, bool) {
	if c.i+1 < len(m.leaves[c.leaf].starts) {
		return cursor{c.leaf, c.i + 1}, true
	}
	return cursor{c.leaf + 1, 0}, c.leaf+1 < len(m.leaves)
}

// removeStarts removes the extents from c on that start at end or before. What
// they covered belongs to the extent before them until a start is inserted.
func (m *Map[V]) removeStarts(c cursor, end int64) {
	emptied := 0 // leaves from c.leaf (or the one after) on that became empty
	firstEmpty := c.leaf
	for li, i := c.leaf, c.i; li < len(m.leaves); li, i = li+1, 0 {
		l := m.leaves[li]
		n := upper(l.starts[i:], end)
		l.remove(i, i+n)
		m.len -= n
		if len(l.starts) == 0 {
			if emptied == 0 {
				firstEmpty = li
			}
			emptied++
			continue
		}
		m.refresh(li)
		if i < len(l.starts) {
			break // something behind end is left
		}
	}
	m.dropLeaves(firstEmpty, firstEmpty+emptied)
	if li := min(c.leaf, len(m.leaves)-1); li >= 0 {
		m.join(li)
	}
}

// insertStart inserts an extent with a start that no other has.
func (m *Map[V]) insertStart(start int64, v V) {
	m.len++
	if len(m.leaves) == 0 {
		m.leaves, m.first, m.masks = append(m.leaves, &leaf[V]{}), append(m.first, start), append(m.masks, 0)
	}
	li := max(upper(m.first, start)-1, 0)
	l := m.leaves[li]
	if len(l.starts) == leafCap {
		m.split(li)
		if start > m.first[li+1] {
			li++
		}
		l = m.leaves[li]
	}
	l.insert(upper(l.starts, start), start, v)
	m.refresh(li)
}

// split divides a full leaf in two.
func (m *Map[V]) split(li int) {
	l, r := m.leaves[li], &leaf[V]{}
	r.take(l, leafCap/2)
	m.leaves = slices.Insert(m.leaves, li+1, r)
	m.first = slices.Insert(m.first, li+1, r.starts[0])
	m.masks = slices.Insert(m.masks, li+1, r.mask())
	m.refresh(li)
}

// join joins a small leaf with a neighbour.
func (m *Map[V]) join(li int) {
	if len(m.leaves[li].starts) >= leafMin {
		return
	}
	for _, left := range []int{li - 1, li} {
		if left < 0 || left+1 >= len(m.leaves) {
			continue
		}
		l, r := m.leaves[left], m.leaves[left+1]
		if len(l.starts)+len(r.starts) > leafJoin {
			continue
		}
		l.take(r, 0)
		m.dropLeaves(left+1, left+2)
		m.refresh(left)
		return
	}
}

func (m *Map[V]) dropLeaves(from, to int) {
	m.leaves = slices.Delete(m.leaves, from, to)
	m.first = slices.Delete(m.first, from, to)
	m.masks = slices.Delete(m.masks, from, to)
}

// refresh brings up to date what the map knows of a leaf.
func (m *Map[V]) refresh(li int) {
	m.first[li], m.masks[li] = m.leaves[li].starts[0], m.leaves[li].mask()
}

func (l *leaf[V]) mask() uint16 {
	var mask uint16
	for c, n := range l.counts {
		if n > 0 {
			mask |= 1 << c
		}
	}
	return mask
}

func (l *leaf[V]) insert(i int, start int64, v V) {
	if l.starts == nil {
		l.starts, l.values = make([]int64, 0, 8), make([]V, 0, 8)
	}
	l.starts = slices.Insert(l.starts, i, start)
	l.values = slices.Insert(l.values, i, v)
	l.counts[v.Class()]++
}

func (l *leaf[V]) remove(from, to int) {
	for _, v := range l.values[from:to] {
		l.counts[v.Class()]--
	}
	l.starts = slices.Delete(l.starts, from, to)
	l.values = slices.Delete(l.values, from, to)
}

// take appends the extents of from, beginning with the index i, to l, and removes
// them there.
func (l *leaf[V]) take(from *leaf[V], i int) {
	l.starts = append(l.starts, from.starts[i:]...)
	l.values = append(l.values, from.values[i:]...)
	for _, v := range from.values[i:] {
		l.counts[v.Class()]++
	}
	from.remove(i, len(from.starts))
}

// Check tells whether the map is as it should be: for tests.
func (m *Map[V]) Check() error {
	var totals [MaxClasses]int64
	n, at := 0, int64(0)
	if len(m.first) != len(m.leaves) || len(m.masks) != len(m.leaves) || len(m.leaves) == 0 {
		return fmt.Errorf("rangemap: %d leaves, %d first starts, %d masks", len(m.leaves), len(m.first), len(m.masks))
	}
	var last V
	for li, l := range m.leaves {
		if len(l.starts) == 0 || len(l.starts) > leafCap || len(l.starts) != len(l.values) {
			return fmt.Errorf("rangemap: leaf %d has %d starts and %d values", li, len(l.starts), len(l.values))
		}
		if m.first[li] != l.starts[0] || m.masks[li] != l.mask() {
			return fmt.Errorf("rangemap: leaf %d begins at %d with mask %x, known are %d, %x", li, l.starts[0], l.mask(), m.first[li], m.masks[li])
		}
		var counts [MaxClasses]uint16
		for i, v := range l.values {
			x := m.at(cursor{li, i})
			if x.Start != at || x.End <= x.Start {
				return fmt.Errorf("rangemap: extent [%d, %d) follows %d", x.Start, x.End, at)
			}
			if n > 0 && v == last {
				return fmt.Errorf("rangemap: two extents with equal values meet at %d", x.Start)
			}
			counts[v.Class()]++
			totals[v.Class()] += x.End - x.Start
			last, at = v, x.End
			n++
		}
		if counts != l.counts {
			return fmt.Errorf("rangemap: leaf %d has %v extents by class, known are %v", li, counts, l.counts)
		}
	}
	switch {
	case at != m.size:
		return fmt.Errorf("rangemap: the last extent ends at %d, the size is %d", at, m.size)
	case n != m.len:
		return fmt.Errorf("rangemap: %d extents, known are %d", n, m.len)
	case totals != m.totals:
		return fmt.Errorf("rangemap: totals are %v, known are %v", totals, m.totals)
	}
	return nil
}
