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
	size int // of a piece, bytes

	mu      sync.Mutex
	slabs   []*slab   // guarded by mu
	growing bool      // somebody maps one more; guarded by mu
	changed sync.Cond // there may be a piece, or nobody maps any more
}

// slab is mapped at once.
type slab struct {
	mem  []byte
	used []bool // which pieces are given out
}

// NewPool makes a pool of pieces of size bytes, a multiple of a page.
func NewPool(size int) *Pool {
	p := &Pool{size: size}
	p.changed.L = &p.mu
	return p
}

// Get returns a piece that nobody has, with any content. Put gives it back.
func (p *Pool) Get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if piece := p.takeLocked(); piece != nil {
			return piece, nil
		}
		if !p.growing {
			break
		}
		// Many who come at once share what is mapped. Whoever gives a piece back
		// meanwhile ends the waiting as well.
		p.changed.Wait()
	}
	p.growing = true
	p.mu.Unlock()
	// Memory may have to be waited for, and what that depends on may need a piece that
	// somebody gives back.
	s, err := p.newSlab()
	p.mu.Lock()
	p.growing = false
	p.changed.Broadcast()
	if err != nil {
		return nil, err
	}
	s.used[0] = true
	p.slabs = append(p.slabs, s)
	return s.piece(0, p.size), nil
}

func (p *Pool) newSlab() (*slab, error) {
	mem, err := Map(max(p.size, hugePage))
	if err != nil {
		return nil, err
	}
	if err := Hold(mem); err != nil {
		_ = Unmap(mem)
		return nil, err
	}
	return &slab{mem: mem, used: make([]bool, len(mem)/p.size)}, nil
}

func (s *slab) piece(i, size int) []byte { return s.mem[i*size : (i+1)*size : (i+1)*size] }

// takeLocked returns a piece of the first slab that has one, so that the last ones
// become empty, or nil.
func (p *Pool) takeLocked() []byte {
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
		_ = Unmap(empty) // It fails where a process has too many mappings: it is lost then.
	}
}

// put returns what is to be unmapped, if anything.
func (p *Pool) put(piece []byte) (empty []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := address(piece)
	i := slices.IndexFunc(p.slabs, func(s *slab) bool {
		return address(s.mem) <= at && at < address(s.mem)+uintptr(len(s.mem))
	})
	if i < 0 {
		panic("iomem: what was put into the pool is not from there")
	}
	s := p.slabs[i]
	off := int(at - address(s.mem))
	if n := off / p.size; off%p.size != 0 || n >= len(s.used) || !s.used[n] {
		panic("iomem: what was put into the pool nobody had got")
	}
	s.used[off/p.size] = false
	p.changed.Signal()
	if slices.Contains(s.used, true) {
		return nil
	}
	p.slabs = slices.Delete(p.slabs, i, i+1)
	return s.mem
}

// address is where mem begins.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }
