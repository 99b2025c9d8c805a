package rangemap

const (
	// slots is the number of entries for which a node has room: as many as make
	// a leaf with values of one byte fit an allocation of 640 bytes.
	slots = 68

	// maxFill is how many entries a node may have. Two less than the room for
	// them: overwriting a range adds two at most, and a node is split after
	// that.
	maxFill = slots - 2

	// minFill is how many entries a node other than the root has at least.
	minFill = maxFill / 3

	// mergeFill is how many entries two siblings may have together to be made
	// one, if one of them has too few. It is less than maxFill, so that the
	// next few entries do not split the node again.
	mergeFill = maxFill * 3 / 4
)

// node is a node of the tree: a leaf, whose entries are extents, or an inner
// node, whose entries are subtrees, all of the same height.
//
// A node does not know where its last extent ends: that is where its successor
// in the parent starts, or in the parent's parent and so on, or the size of the
// map. Methods get it as hi from above.
type node[V Value] struct {
	// kids are the subtrees; nil in a leaf. The only pointers stand first, so
	// that the garbage collector looks no further.
	kids *kids[V]

	// n is the number of entries.
	n int

	// starts tells where the extents start, or the first ones in the subtrees.
	starts [slots]int64

	// values are those of a leaf's extents. Inner nodes, one in some forty
	// nodes, do not use it.
	values [slots]V
}

// kids is what only inner nodes have.
type kids[V Value] struct {
	nodes [slots]*node[V]

	// masks are the classes that occur in each subtree.
	masks [slots]mask
}

// mask is a set of classes.
type mask uint16

func maskOf(c Class) mask       { return 1 << c }
func (s mask) has(c Class) bool { return s>>c&1 != 0 }

// find returns the index of the last entry that starts at pos or before, or 0
// if there is none.
//
// The branch is meant: where memory is slow, a processor that guesses it loads
// what it needs next meanwhile. Arithmetic in its place was measured to be half
// as fast with a million extents.
func (n *node[V]) find(pos int64) int {
	starts := n.starts[:n.n]
	i := 0
	for left := len(starts); left > 1; {
		half := left / 2
		if starts[i+half] <= pos {
			i += half
		}
		left -= half
	}
	return i
}

// end tells where entry i ends.
func (n *node[V]) end(i int, hi int64) int64 {
	if i+1 < n.n {
		return n.starts[i+1]
	}
	return hi
}

// last is the value of the last extent.
func (n *node[V]) last() V {
	for n.kids != nil {
		n = n.kids.nodes[n.n-1]
	}
	return n.values[n.n-1]
}

// next is Map.Next in a subtree, for any pos less than hi.
//
// Only the first subtree that it enters on each level can be one that has the
// class in vain, so it takes O(log n).
func (n *node[V]) next(pos, hi int64, c Class) (x Extent[V], ok bool) {
	for i := n.find(pos); i < n.n; i++ {
		switch {
		case n.kids == nil:
			if n.values[i].Class() == c {
				return Extent[V]{max(n.starts[i], pos), n.end(i, hi), n.values[i]}, true
			}
		case n.kids.masks[i].has(c):
			if x, ok = n.kids.nodes[i].next(pos, n.end(i, hi), c); ok {
				return x, true
			}
		}
	}
	return x, false
}

// prev is Map.Prev in a subtree, for any pos greater than its first start.
func (n *node[V]) prev(pos, hi int64, c Class) (x Extent[V], ok bool) {
	for i := n.find(pos - 1); i >= 0; i-- {
		switch {
		case n.kids == nil:
			if n.values[i].Class() == c {
				return Extent[V]{n.starts[i], min(n.end(i, hi), pos), n.values[i]}, true
			}
		case n.kids.masks[i].has(c):
			if x, ok = n.kids.nodes[i].prev(pos, n.end(i, hi), c); ok {
				return x, true
			}
		}
	}
	return x, false
}

// walk yields what a subtree has of [start, end), clipped to it. It returns
// false if yield did.
func (n *node[V]) walk(start, end, hi int64, yield func(Extent[V]) bool) bool {
	for i := n.find(start); i < n.n && n.starts[i] < end; i++ {
		stop := n.end(i, hi)
		if n.kids != nil {
			if !n.kids.nodes[i].walk(start, end, stop, yield) {
				return false
			}
		} else if !yield(Extent[V]{max(n.starts[i], start), min(stop, end), n.values[i]}) {
			return false
		}
	}
	return true
}

// leaves appends the leaves of a subtree to to, in order.
func (n *node[V]) leaves(to []*node[V]) []*node[V] {
	if n.kids == nil {
		return append(to, n)
	}
	for _, kid := range n.kids.nodes[:n.n] {
		to = kid.leaves(to)
	}
	return to
}

// classes returns the classes that occur in a subtree. They must be among
// those of within: it stops looking when it has seen all of these.
func (n *node[V]) classes(within mask) (seen mask) {
	if n.kids == nil {
		for i := 0; i < n.n && seen != within; i++ {
			seen |= maskOf(n.values[i].Class())
		}
		return seen
	}
	for i := 0; i < n.n && seen != within; i++ {
		seen |= n.kids.masks[i]
	}
	return seen
}
