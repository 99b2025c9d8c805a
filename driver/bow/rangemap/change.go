package rangemap

// overwrite sets [start, stop) to v, where stop is end or where the extents of
// the leaf that holds start end, whatever is less, and returns stop. Setting a
// longer range takes several calls; it is the first one that makes an extent
// out of v, and the others let it grow.
//
// Whoever calls it for the root must see to it that the root is neither too
// full nor useless (asRoot).
//
// Preconditions: n is the subtree that holds start, and ends at hi. If first,
// the extent before start has another value than v; otherwise it has the value
// v, and an extent starts at start. The extent that starts
// at end, if one does, has another value than v, and if none does, the one that
// holds end has.
// Postconditions: n has at most two entries more, and may have any number less
// if it is a leaf, or one less if it is an inner node. All summaries in n are
// right. All totals are, but for that of v, which the caller counts.
func (m *Map[V]) overwrite(n *node[V], hi, start, end int64, v V, first bool) (stop int64) {
	i := n.find(start)
	if n.kids == nil {
		stop = min(end, hi)
		m.overwriteLeaf(n, i, hi, start, stop, v, first)
		return stop
	}
	within := n.kids.masks[i] | maskOf(v.Class())
	stop = m.overwrite(n.kids.nodes[i], n.end(i, hi), start, end, v, first)
	n.mend(i, within)
	return stop
}

// overwriteLeaf is overwrite for a leaf in which extent i holds start and no
// extent ends after stop.
func (m *Map[V]) overwriteLeaf(n *node[V], i int, hi, start, stop int64, v V, first bool) {
	// Extents i to j-1 overlap the range. Take them off their totals.
	j, tail := i, Extent[V]{}
	for ; j < n.n && n.starts[j] < stop; j++ {
		tail = Extent[V]{n.starts[j], n.end(j, hi), n.values[j]}
		m.totals[tail.Value.Class()] -= min(tail.End, stop) - max(tail.Start, start)
	}

	// Extent i stays if it begins before the range: it ends there now.
	if n.starts[i] < start {
		i++
	}
	put := 0
	if first {
		put++
	}
	if stop < tail.End {
		put++
	}
	m.len += put - (j - i)
	n.shift(j, i+put)
	if first {
		n.starts[i], n.values[i] = start, v
		i++
	}
	if stop < tail.End {
		n.starts[i], n.values[i] = stop, tail.Value
	}
}

// mend makes node n right again after its subtree i has changed: it splits the
// subtree if it is too full, joins it to a neighbour if it has too few entries,
// and brings the summaries of what it touched up to date.
//
// Preconditions: n is an inner node with two subtrees at least. Subtree i is
// right in itself, but may have up to slots entries, or none, and has no class
// that is not in within.
// Postcondition: all is right in n, which may have one entry more or less.
func (n *node[V]) mend(i int, within mask) {
	kid := n.kids.nodes[i]
	switch {
	case kid.n > maxFill:
		// Maps are often filled in ascending order. Then what is split off on
		// the left is never touched again, so let it be fuller.
		at := kid.n / 2
		if i == n.n-1 {
			at = kid.n * 2 / 3
		}
		n.shift(i+1, i+2)
		n.kids.nodes[i+1] = kid.split(at)
		n.summarize(i+1, within)
	case kid.n < minFill:
		i = max(i-1, 0)
		left, right := n.kids.nodes[i], n.kids.nodes[i+1]
		within |= n.kids.masks[i] | n.kids.masks[i+1]
		if left.n+right.n <= mergeFill {
			left.take(left.n, right, 0, right.n)
			n.shift(i+2, i+1)
		} else {
			balance(left, right)
			n.summarize(i+1, within)
		}
	}
	n.summarize(i, within)
}

// summarize brings what n knows of subtree i up to date. The subtree has no
// class that is not in within.
func (n *node[V]) summarize(i int, within mask) {
	kid := n.kids.nodes[i]
	n.starts[i] = kid.starts[0]
	n.kids.masks[i] = kid.classes(within)
}

// asRoot returns the root of the tree whose root n was before a change: a new
// one above n if n is too full, the only subtree of n if it has but one.
func (n *node[V]) asRoot() *node[V] {
	switch {
	case n.n > maxFill:
		return build([]*node[V]{n, n.split(n.n / 2)})
	case n.kids != nil && n.n == 1:
		return n.kids.nodes[0]
	}
	return n
}

// build returns the root of a tree over subtrees of equal height, given in
// order. It overwrites the slice.
//
// Preconditions: there is one subtree at least; if there are several, each has
// from minFill to maxFill entries.
func build[V Value](nodes []*node[V]) *node[V] {
	for len(nodes) > 1 {
		// As few parents as possible, and equally full: so none has less than
		// half of maxFill.
		parents := (len(nodes) + maxFill - 1) / maxFill
		from := 0
		for p := range parents {
			to := len(nodes) * (p + 1) / parents
			parent := &node[V]{kids: new(kids[V])}
			for i, kid := range nodes[from:to] {
				parent.kids.nodes[i] = kid
				parent.summarize(i, ^mask(0))
			}
			parent.n = to - from
			nodes[p] = parent
			from = to
		}
		nodes = nodes[:parents]
	}
	return nodes[0]
}

// split keeps at entries and returns a new node with the others.
//
// Precondition: 0 < at < n.n.
func (n *node[V]) split(at int) *node[V] {
	right := new(node[V])
	if n.kids != nil {
		right.kids = new(kids[V])
	}
	right.take(0, n, at, n.n)
	n.shift(n.n, at)
	return right
}

// balance makes two neighbours equally full.
//
// Precondition: they have 2*minFill entries at least, and 2*slots at most.
func balance[V Value](left, right *node[V]) {
	half := (left.n + right.n) / 2
	if k := half - left.n; k > 0 {
		left.take(left.n, right, 0, k)
		right.shift(k, 0)
	} else if k < 0 {
		right.shift(0, -k)
		right.take(0, left, half, left.n)
		left.shift(left.n, half)
	}
}

// take copies entries [start, end) of another node of the same height to
// entries at and following.
//
// Precondition: there is room for them.
// Postcondition: n has all entries that it had, and at least those taken.
func (n *node[V]) take(at int, from *node[V], start, end int) {
	copy(n.starts[at:], from.starts[start:end])
	if n.kids == nil {
		copy(n.values[at:], from.values[start:end])
	} else {
		copy(n.kids.nodes[at:], from.kids.nodes[start:end])
		copy(n.kids.masks[at:], from.kids.masks[start:end])
	}
	n.n = max(n.n, at+end-start)
}

// shift moves the entries from index i on so that the first of them gets index
// j. Entries that are moved onto are gone; in a gap that opens there is
// anything.
//
// Preconditions: 0 <= i <= n.n, 0 <= j, and n.n+j-i <= slots.
// Postcondition: n has j-i entries more.
func (n *node[V]) shift(i, j int) {
	if i == j {
		return
	}
	old := n.n
	n.n += j - i
	copy(n.starts[j:n.n], n.starts[i:old])
	if n.kids == nil {
		copy(n.values[j:n.n], n.values[i:old])
		return
	}
	copy(n.kids.nodes[j:n.n], n.kids.nodes[i:old])
	copy(n.kids.masks[j:n.n], n.kids.masks[i:old])
	if n.n < old {
		clear(n.kids.nodes[n.n:old]) // or they could not be freed
	}
}
