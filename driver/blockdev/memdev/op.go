package memdev

import "fmt"

// Kind says what an operation does.
type Kind uint8

// Kinds of operations that change something.
const (
	Write Kind = iota
	Discard
	Zero
	Flush
)

func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Discard:
		return "discard"
	case Zero:
		return "zero"
	case Flush:
		return "flush"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Op is an operation that a device has done.
type Op struct {
	Kind     Kind
	Off, Len int64  // bytes; 0 for Flush
	Data     []byte // of Write; not to be changed
}

func (o Op) String() string {
	if o.Kind == Flush {
		return "flush"
	}
	return fmt.Sprintf("%v [%d, +%d)", o.Kind, o.Off, o.Len)
}

// Fate is what became of one piece of an operation by the time the power is
// back. A piece is as long as the atomic unit of the device.
type Fate uint8

const (
	// Lost: as if the operation had not been done.
	Lost Fate = iota
	// Done: the medium has it. What was discarded reads as zeros.
	Done
	// Garbage: what was discarded reads as neither zeros nor what was there.
	// For other operations it is the same as Done.
	Garbage
)

// apply does the piece [off, off+length) of op o.
func (o Op) apply(m *image, off, length int64, fate Fate) {
	switch {
	case fate == Lost:
	case o.Kind == Write:
		m.write(o.Data[off-o.Off:][:length], off)
	case o.Kind == Discard && fate == Garbage:
		m.garble(off, length)
	case o.Kind == Discard || o.Kind == Zero:
		m.zero(off, length)
	}
}

// pieces calls f for each piece of o of this length that makes a difference to
// image m: zeros that become zeros do not.
func (o Op) pieces(m *image, unit int64, f func(off int64)) {
	switch o.Kind {
	case Write:
		for off := o.Off; off < o.Off+o.Len; off += unit {
			f(off)
		}
	case Discard, Zero:
		for part := range m.parts(o.Off, o.Len) {
			for in := part.from; in < part.to; in += unit {
				f(part.page*pageSize + in)
			}
		}
	case Flush:
	}
}
