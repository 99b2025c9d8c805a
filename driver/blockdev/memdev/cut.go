package memdev

import (
	"bytes"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
)

// Cut is a power cut at one moment, and the source of all states in which the
// device may be after it. It is not changed by anything, and its methods may be
// called at the same time.
type Cut struct {
	geometry
	base  snapshot
	ops   []Op
	first int // position of ops[0] in the history
}

// Replay returns the device with everything that was durable and that part of
// the operations since then which choose says. It is asked once for every piece
// that would make a difference, in order; op is the position of the operation in
// the history and off the position of the piece on the device in bytes.
func (c *Cut) Replay(choose func(op int, off int64) Fate) *Device {
	m := c.base.image()
	for i, o := range c.ops {
		o.pieces(&m, c.unit, func(off int64) {
			o.apply(&m, off, c.unit, choose(c.first+i, off))
		})
	}
	return newDevice(c.geometry, m)
}

// Nothing returns the device with nothing but what was durable.
func (c *Cut) Nothing() *Device {
	return newDevice(c.geometry, c.base.image())
}

// Everything returns the device as if all had been flushed. What was discarded
// is zeros.
func (c *Cut) Everything() *Device {
	m := c.base.image()
	for _, o := range c.ops {
		o.apply(&m, o.Off, o.Len, Done)
	}
	return newDevice(c.geometry, m)
}

// Random returns one of the states, preferably one of those in which faults show:
// most operations whole, few lost or few that survive, some torn.
func (c *Cut) Random(rng *rand.Rand) *Device {
	survive := []float64{0.1, 0.5, 0.9}[rng.IntN(3)]
	tear := []float64{0, 0.2, 1}[rng.IntN(3)]
	fate := func(o Op) Fate {
		if rng.Float64() >= survive {
			return Lost
		}
		if o.Kind == Discard && rng.IntN(2) == 0 {
			return Garbage
		}
		return Done
	}
	m := c.base.image()
	for _, o := range c.ops {
		if rng.Float64() >= tear {
			o.apply(&m, o.Off, o.Len, fate(o))
			continue
		}
		o.pieces(&m, c.unit, func(off int64) {
			o.apply(&m, off, c.unit, fate(o))
		})
	}
	return newDevice(c.geometry, m)
}

// States returns the number of different states, or math.MaxInt if it is not
// less than that.
func (c *Cut) States() int {
	return count(c.places())
}

func count(places []place) int {
	n := 1
	for _, p := range places {
		if n > math.MaxInt/len(p.versions) {
			return math.MaxInt
		}
		n *= len(p.versions)
	}
	return n
}

// All goes over all states, each once. The first is Nothing.
func (c *Cut) All() iter.Seq[*Device] {
	return c.all(c.places())
}

func (c *Cut) all(places []place) iter.Seq[*Device] {
	return func(yield func(*Device) bool) {
		// A number with one digit for each place.
		digits := make([]int, len(places))
		for {
			m := c.base.image()
			for i, p := range places {
				if digits[i] > 0 {
					m.write(p.versions[digits[i]], p.off)
				}
			}
			if !yield(newDevice(c.geometry, m)) {
				return
			}
			i := 0
			for i < len(digits) && digits[i] == len(places[i].versions)-1 {
				digits[i] = 0
				i++
			}
			if i == len(digits) {
				return
			}
			digits[i]++
		}
	}
}

// place is a piece of the device that may have several versions. The first is
// the durable one.
type place struct {
	off      int64
	versions [][]byte
}

func (p *place) add(version []byte) {
	for _, v := range p.versions {
		if bytes.Equal(v, version) {
			return
		}
	}
	p.versions = append(p.versions, version)
}

// places returns the places with more than one version, in the order in which
// they were first changed.
func (c *Cut) places() []place {
	var all []place
	index := map[int64]int{}
	// Zeroing and discarding make a difference only where there may be something
	// else than zeros: where m has a page.
	m := c.base.image()
	for _, o := range c.ops {
		o.pieces(&m, c.unit, func(off int64) {
			i, ok := index[off]
			if !ok {
				i = len(all)
				index[off] = i
				all = append(all, place{off, [][]byte{c.base.piece(off, c.unit)}})
			}
			switch o.Kind {
			case Write:
				all[i].add(o.Data[off-o.Off:][:c.unit])
			case Discard:
				all[i].add(zeros[:c.unit])
				all[i].add(garbage[:c.unit])
			case Zero:
				all[i].add(zeros[:c.unit])
			case Flush:
			}
		})
		if o.Kind == Write {
			o.apply(&m, o.Off, o.Len, Done)
		}
	}
	return slices.DeleteFunc(all, func(p place) bool { return len(p.versions) == 1 })
}
