package memdev

import (
	"fmt"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"sort"
	"sync"
)

// History is what has been done to a device, in order. It may be looked at while
// it grows.
type History struct {
	geometry

	mu struct {
		sync.Mutex
		ops     []Op
		flushes []flushed
	}
}

// flushed says what was durable after the first n operations.
type flushed struct {
	n       int
	durable snapshot
}

// add appends o. durable is what is on the medium after it, if it is a Flush.
func (h *History) add(o Op, durable snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.ops = append(h.mu.ops, o)
	if o.Kind == Flush {
		h.mu.flushes = append(h.mu.flushes, flushed{len(h.mu.ops), durable})
	}
}

// Ops returns the operations so far.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.ops[:len(h.mu.ops):len(h.mu.ops)]
}

// Len returns the number of operations so far. What a test has seen acknowledged
// when Len was n has to be there after a cut in front of operation n or of any
// later one.
func (h *History) Len() int { return len(h.Ops()) }

// Cut returns a power cut in front of operation n: operations 0 to n-1 have been
// done, those after the last Flush among them perhaps in vain. n is at most
// Len, which is a cut after everything.
func (h *History) Cut(n int) *Cut {
	h.mu.Lock()
	defer h.mu.Unlock()
	later := sort.Search(len(h.mu.flushes), func(i int) bool { return h.mu.flushes[i].n > n })
	last := h.mu.flushes[later-1]
	return &Cut{geometry: h.geometry, base: last.durable, ops: h.mu.ops[last.n:n:n], first: last.n}
}

// State names one state of a device after a power cut.
type State struct {
	Cut   int // in front of this operation of the history
	Index int // from 0
	Of    int // number of states looked at for this cut, or the most it can be if not All
	All   bool
}

func (s State) String() string {
	kind := "random"
	if s.All {
		kind = "possible"
	}
	return fmt.Sprintf("cut in front of operation %d, state %d of %d %s ones", s.Cut, s.Index, s.Of, kind)
}

// Explore goes over states of the device after a cut in front of each operation
// and after the last. For each cut it delivers all states if those are at most
// limit, and otherwise limit of them: Nothing, Everything, and random ones, fewer if
// chance does not find as many. No state comes twice for a cut. The same seed gives
// the same states of the same history.
func (h *History) Explore(seed uint64, limit int) iter.Seq2[State, *Device] {
	return func(yield func(State, *Device) bool) {
		for n := range h.Len() + 1 {
			for s, d := range h.Cut(n).explore(n, seed, limit) {
				if !yield(s, d) {
					return
				}
			}
		}
	}
}

func (c *Cut) explore(n int, seed uint64, limit int) iter.Seq2[State, *Device] {
	return func(yield func(State, *Device) bool) {
		places := c.places()
		if states := count(places); states <= limit {
			s := State{Cut: n, Of: states, All: true}
			for d := range c.all(places) {
				if !yield(s, d) {
					return
				}
				s.Index++
			}
			return
		}
		s := State{Cut: n, Of: limit}
		seen := map[uint64]bool{}
		for i := 0; s.Index < limit && i < drawsPerState*limit; i++ {
			var d *Device
			switch i {
			case 0:
				d = c.Nothing()
			case 1:
				d = c.Everything()
			default:
				d = c.Random(rand.New(rand.NewPCG(seed, uint64(n)<<32|uint64(i))))
			}
			sum := d.sum(places)
			if seen[sum] {
				continue
			}
			seen[sum] = true
			if !yield(s, d) {
				return
			}
			s.Index++
		}
	}
}

// drawsPerState is how many random states are drawn for each one that is wanted,
// because some come more than once.
const drawsPerState = 4

// sums is what all sums begin with.
var sums = maphash.MakeSeed()

// sum tells d from other states of the same cut, which has these places.
func (d *Device) sum(places []place) uint64 {
	var h maphash.Hash
	h.SetSeed(sums)
	for _, p := range places {
		h.Write(d.mu.durable.piece(p.off, d.unit)) // never fails
	}
	return h.Sum64()
}
