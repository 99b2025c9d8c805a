package memdev

import "iter"

const (
	pageSize = 4096
	fanout   = 64
)

type page [pageSize]byte

// image is the content of a device: a radix tree of pages, in which what is
// missing is zeros. Images share nodes and pages; a node is changed in place only
// by the image whose token it carries, so that a copy of an image costs nothing
// until one of the two is written.
type image struct {
	snapshot
	token *token
}

// snapshot is an image that nobody changes any more.
type snapshot struct {
	root   *node
	levels int // of nodes; the pages hang below the last
}

// token has a size so that each one has an address of its own.
type token struct{ _ byte }

// node has kids, or pages on the lowest level.
//
// Invariant: the pages whose bit is set in private are in no other image, as
// long as the node has the token of the image.
type node struct {
	token   *token
	kids    *[fanout]*node
	pages   *[fanout]*page
	private uint64
}

// newImage returns an image of zeros with room for size bytes.
func newImage(size int64) image {
	s := snapshot{levels: 1}
	for room := int64(fanout * pageSize); room < size; room *= fanout {
		s.levels++
	}
	return s.image()
}

// image returns an image with the content of s.
func (s snapshot) image() image { return image{s, new(token)} }

// freeze returns the content of m as it is now.
func (m *image) freeze() snapshot {
	m.token = new(token) // nothing there is its own any more
	return m.snapshot
}

// slot returns the index of page i among the kids of a node, where below is the
// number of levels under that node.
func slot(i int64, below int) int {
	return int(i>>(6*below)) % fanout
}

// page returns page i, to be read only, and nil if it is zeros.
func (s snapshot) page(i int64) *page {
	n := s.root
	for below := s.levels - 1; n != nil; below-- {
		if below == 0 {
			return n.pages[slot(i, 0)]
		}
		n = n.kids[slot(i, below)]
	}
	return nil
}

// read fills p from offset off.
func (s snapshot) read(p []byte, off int64) {
	for len(p) > 0 {
		in := off % pageSize
		n := min(len(p), int(pageSize-in))
		if page := s.page(off / pageSize); page != nil {
			copy(p[:n], page[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// piece returns the n bytes at offset off, which lie in one page, to be read only.
func (s snapshot) piece(off, n int64) []byte {
	page := s.page(off / pageSize)
	if page == nil {
		page = &zeros
	}
	return page[off%pageSize:][:n]
}

var zeros page

// present goes over the numbers of the pages in [first, end) that are there. The
// page just delivered may be changed or dropped meanwhile.
func (s snapshot) present(first, end int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		s.walk(s.root, 0, s.levels-1, first, end, yield)
	}
}

// walk does the part of present below node n, whose first page is number base.
func (s snapshot) walk(n *node, base int64, below int, first, end int64, yield func(int64) bool) bool {
	if n == nil {
		return true
	}
	each := int64(1) << (6 * below) // pages under a slot
	from := max(0, (first-base)/each)
	for k := from; k < fanout && base+k*each < end; k++ {
		at := base + k*each
		switch {
		case below > 0:
			if !s.walk(n.kids[k], at, below-1, first, end, yield) {
				return false
			}
		case n.pages[k] != nil:
			if !yield(at) {
				return false
			}
		}
	}
	return true
}

// leaf returns the lowest node above page i, with the whole path to it made the
// image's own.
func (m *image) leaf(i int64) *node {
	at := &m.root
	for below := m.levels - 1; ; below-- {
		n := *at
		switch {
		case n == nil && below > 0:
			n = &node{token: m.token, kids: new([fanout]*node)}
		case n == nil:
			n = &node{token: m.token, pages: new([fanout]*page)}
		case n.token == m.token:
		case below > 0:
			kids := *n.kids
			n = &node{token: m.token, kids: &kids}
		default:
			pages := *n.pages
			n = &node{token: m.token, pages: &pages}
		}
		*at = n
		if below == 0 {
			return n
		}
		at = &n.kids[slot(i, below)]
	}
}

// own returns page i to be changed. Its content is undefined if the caller is
// going to overwrite all of it.
func (m *image) own(i int64, overwrite bool) *page {
	n := m.leaf(i)
	k := slot(i, 0)
	if n.private&(1<<k) == 0 {
		old := n.pages[k]
		n.pages[k] = new(page)
		if old != nil && !overwrite {
			*n.pages[k] = *old
		}
		n.private |= 1 << k
	}
	return n.pages[k]
}

// drop makes page i zeros.
func (m *image) drop(i int64) {
	n := m.leaf(i)
	k := slot(i, 0)
	n.pages[k] = nil
	n.private &^= 1 << k
}

func (m *image) write(p []byte, off int64) {
	for len(p) > 0 {
		in := off % pageSize
		n := min(len(p), int(pageSize-in))
		copy(m.own(off/pageSize, n == pageSize)[in:], p[:n])
		p, off = p[n:], off+int64(n)
	}
}

func (m *image) zero(off, length int64) {
	for part := range m.parts(off, length) {
		if part.whole() {
			m.drop(part.page)
		} else {
			clear(m.own(part.page, false)[part.from:part.to])
		}
	}
}

// garble fills the parts of the range that are not zeros with garbage.
func (m *image) garble(off, length int64) {
	for part := range m.parts(off, length) {
		copy(m.own(part.page, part.whole())[part.from:part.to], garbage[:])
	}
}

// garbage is what may be read where something was discarded.
var garbage = func() *page {
	p := new(page)
	for i := range p {
		p[i] = 0xdc
	}
	return p
}()

// part is the part [from, to) of a page.
type part struct {
	page     int64
	from, to int64
}

func (p part) whole() bool { return p.to-p.from == pageSize }

// parts goes over the parts of the pages that are there and lie in the range.
func (s snapshot) parts(off, length int64) iter.Seq[part] {
	return func(yield func(part) bool) {
		for i := range s.present(off/pageSize, (off+length+pageSize-1)/pageSize) {
			base := i * pageSize
			if !yield(part{i, max(off-base, 0), min(off+length-base, pageSize)}) {
				return
			}
		}
	}
}
