package rangemap

import (
	"errors"
	"fmt"
)

// Check returns an error that says which invariant of the structure does not
// hold, or nil. It looks at all of the map and is meant for tests.
func (m *Map[V]) Check() error {
	if m.root == nil {
		return errors.New("no root")
	}
	c := checker[V]{leafDepth: -1}
	if err := c.node(m.root, 0, 0, m.size); err != nil {
		return err
	}
	if c.entries != m.len {
		return fmt.Errorf("there are %d extents, the map counts %d", c.entries, m.len)
	}
	if c.totals != m.totals {
		return fmt.Errorf("the totals are %v, the map has %v", c.totals, m.totals)
	}
	return nil
}

// checker is what Check has seen so far, from left to right.
type checker[V Value] struct {
	entries   int
	last      V // value of the last extent seen, if entries > 0
	leafDepth int
	totals    [MaxClasses]int64
}

// node checks the subtree n, which is to cover [lo, hi).
func (c *checker[V]) node(n *node[V], depth int, lo, hi int64) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("node of depth %d for [%d, %d): %s", depth, lo, hi, fmt.Sprintf(format, args...))
	}
	least := minFill
	switch {
	case depth == 0 && n.kids != nil:
		least = 2
	case depth == 0:
		least = 1
	}
	if n.n < least || n.n > maxFill {
		return wrong("%d entries, not %d to %d", n.n, least, maxFill)
	}
	if n.starts[0] != lo {
		return wrong("the first entry starts at %d", n.starts[0])
	}
	for i := range n.n {
		start, end := n.starts[i], n.end(i, hi)
		if start >= end {
			return wrong("entry %d is for [%d, %d)", i, start, end)
		}
		if n.kids == nil {
			if err := c.extent(Extent[V]{start, end, n.values[i]}); err != nil {
				return wrong("entry %d: %v", i, err)
			}
			continue
		}
		kid := n.kids.nodes[i]
		if kid == nil {
			return wrong("entry %d has no subtree", i)
		}
		if err := c.node(kid, depth+1, start, end); err != nil {
			return err
		}
		if has, want := n.kids.masks[i], kid.classes(^mask(0)); has != want {
			return wrong("entry %d has classes %016b, its summary is %016b", i, want, has)
		}
	}
	if n.kids == nil {
		if c.leafDepth < 0 {
			c.leafDepth = depth
		}
		if depth != c.leafDepth {
			return wrong("a leaf, but the first leaf is at depth %d", c.leafDepth)
		}
		return nil
	}
	for i, kid := range n.kids.nodes[n.n:] {
		if kid != nil {
			return wrong("entry %d is unused but keeps a subtree alive", n.n+i)
		}
	}
	return nil
}

// extent checks x, which follows the extents seen so far.
func (c *checker[V]) extent(x Extent[V]) error {
	class := x.Value.Class()
	if class >= MaxClasses {
		return fmt.Errorf("the value %v has class %d", x.Value, class)
	}
	if c.entries > 0 && x.Value == c.last {
		return fmt.Errorf("the extent at %d has the value of the one before, %v", x.Start, x.Value)
	}
	c.entries++
	c.last = x.Value
	c.totals[class] += x.Len()
	return nil
}
