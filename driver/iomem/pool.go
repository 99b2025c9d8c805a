package iomem

import (
	"slices"
	"sync"
	"unsafe"
)

// Pool gives out pieces of memory of one size that share huge pages, so that a piece
// need not be as large as one. The memory is there, and not swapped out (Hold). Huge
// pages of which nothing is used any more are given back to the system.
type Pool struct {
	size  int // of a piece, bytes
	whole int // of what is mapped at once, bytes

	mu    sync.Mutex
	slabs []*slab // guarded by mu
}

// slab is mapped at once.
type slab struct {
	mem  []byte
	used []bool // which pieces are given out
}

// NewPool makes a pool of pieces of size bytes, a multiple of a page.
func NewPool(size int) *Pool {
	return &Pool{size: size, whole: max(hugePage/size, 1) * size}
}

// Get returns a piece that nobody has, with any content. Put gives it back.
func (p *Pool) Get() ([]byte, error) {
	if piece := p.take(); piece != nil {
		return piece, nil
	}
	// Not under mu: memory may have to be waited for, and what that depends on may need
	// a piece that somebody gives back.
	mem, err := Map(max(p.whole, hugePage))
	if err != nil {
		return nil, err
	}
	if err := Hold(mem); err != nil {
		_ = Unmap(mem)
		return nil, err
	}
	s := &slab{mem: mem, used: make([]bool, p.whole/p.size)}
	s.used[0] = true
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slabs = append(p.slabs, s)
	return s.piece(0, p.size), nil
}

func (s *slab) piece(i, size int) []byte { return s.mem[i*size : (i+1)*size : (i+1)*size] }

// take returns a piece of the first slab that has one, so that the last ones become
// empty, or nil.
func (p *Pool) take() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.slabs {
		if i := slices.Index(s.used, false); i >= 0 {
			s.used[i] = true
			return s.piece(i, p.size)
		}
	}
	return nil
}

// Put takes a piece back that Get has returned.
func (p *Pool) Put(piece []byte) {
	if empty := p.put(piece); empty != nil {
		_ = Unmap(empty) // which cannot fail for what was mapped whole
	}
}

// put returns what is to be unmapped, if anything.
func (p *Pool) put(piece []byte) (empty []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := uintptr(unsafe.Pointer(unsafe.SliceData(piece)))
	i := slices.IndexFunc(p.slabs, func(s *slab) bool {
		begin := uintptr(unsafe.Pointer(unsafe.SliceData(s.mem)))
		return begin <= at && at < begin+uintptr(len(s.mem))
	})
	if i < 0 {
		panic("iomem: what was put into the pool is not from there")
	}
	s := p.slabs[i]
	s.used[int(at-uintptr(unsafe.Pointer(unsafe.SliceData(s.mem))))/p.size] = false
	if slices.Contains(s.used, true) {
		return nil
	}
	p.slabs = slices.Delete(p.slabs, i, i+1)
	return s.mem
}
