package faultdev

import (
	"slices"
	"sync/atomic"
)

// Kind says what an operation does.
type Kind uint8

// Kinds of operations.
const (
	Read Kind = iota
	Write
	Discard
	Zero
	Flush

	kinds = iota
)

// Op is an operation as predicates see it.
type Op struct {
	Kind     Kind
	Off, Len int64 // bytes; 0 for Flush
	Count    int64 // it is the Count-th of its kind on this device, from 1
}

// Predicate is a condition on an operation. It is called by any number of
// goroutines at once.
type Predicate func(Op) bool

// Always holds for every operation, as does a rule without predicates.
func Always(Op) bool { return true }

// OnKind holds for operations of these kinds.
func OnKind(kinds ...Kind) Predicate {
	return func(o Op) bool { return slices.Contains(kinds, o.Kind) }
}

// InRange holds for operations that touch any of the length bytes at off.
func InRange(off, length int64) Predicate {
	return func(o Op) bool { return o.Off < off+length && off < o.Off+o.Len }
}

// Nth holds for the n-th operation that it is asked about, from 1, and for no
// other.
func Nth(n int64) Predicate {
	var asked atomic.Int64
	return func(Op) bool { return asked.Add(1) == n }
}

// After holds for all operations that it is asked about but the first n.
func After(n int64) Predicate {
	var asked atomic.Int64
	return func(Op) bool { return asked.Add(1) > n }
}

// Not holds where p does not.
func Not(p Predicate) Predicate {
	return func(o Op) bool { return !p(o) }
}

// All holds where all of these hold. They are asked in order up to the first
// that does not.
func All(these ...Predicate) Predicate {
	return func(o Op) bool {
		for _, p := range these {
			if !p(o) {
				return false
			}
		}
		return true
	}
}

// Any holds where one of these holds. They are asked in order up to the first
// that does.
func Any(these ...Predicate) Predicate {
	return func(o Op) bool {
		for _, p := range these {
			if p(o) {
				return true
			}
		}
		return false
	}
}
