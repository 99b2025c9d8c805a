// Package faultdev is a blockdev.Device in front of another one that fails in the
// way a test says.
//
// What goes wrong is a Rule: a condition on the operation, made of predicates,
// and what happens when it holds.
//
//	dev := faultdev.New(inner)
//	rule := faultdev.Fail(unix.EIO, faultdev.OnKind(faultdev.Write), faultdev.Nth(3))
//	dev.Add(rule)     // the third write from now on fails
//	...
//	rule.Hits()       // did it?
//	dev.Remove(rule)
//
// All of a rule's predicates have to hold, and they are asked in order, each only
// if those before it held. So the ones that count (Nth, After) count what those
// before them let through.
//
// An operation meets the rules in the order in which they were added. It waits
// for every rule that makes it wait, and the first that makes it fail ends it.
package faultdev

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
)

// Device is a device with faults. Rules can be added and removed at any time.
type Device struct {
	inner  blockdev.Device
	counts [kinds]atomic.Int64

	mu struct {
		sync.Mutex // not held during I/O
		rules      []*Rule
	}
}

// New returns a device that does what inner does as far as the rules let it. It
// closes inner when it is closed.
func New(inner blockdev.Device, rules ...*Rule) *Device {
	d := &Device{inner: inner}
	d.mu.rules = rules
	return d
}

// Add adds a rule behind those that are there.
func (d *Device) Add(r *Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.rules = append(slices.Clip(d.mu.rules), r)
}

// Remove takes a rule away. Operations that have met it already are not helped
// by that.
func (d *Device) Remove(r *Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.rules = slices.DeleteFunc(slices.Clone(d.mu.rules), func(other *Rule) bool { return other == r })
}

// Rule says what goes wrong, and when.
type Rule struct {
	when Predicate
	hits atomic.Int64
	hit  chan struct{} // closed at the first hit
	once sync.Once

	wait  <-chan struct{} // nil: does not wait
	err   error           // nil: does not fail
	reach func(Op) int64  // bytes that are done before it fails
}

// Hits returns how often the rule has taken effect.
func (r *Rule) Hits() int { return int(r.hits.Load()) }

// Hit is closed when the rule takes effect for the first time. For Delay that is
// when the operation begins to wait.
func (r *Rule) Hit() <-chan struct{} { return r.hit }

func newRule(r *Rule, when []Predicate) *Rule {
	r.when, r.hit = All(when...), make(chan struct{})
	return r
}

// Fail makes operations fail with err without doing anything.
func Fail(err error, when ...Predicate) *Rule {
	return Short(0, err, when...)
}

// Short makes operations fail with err after n bytes, rounded down to whole
// blocks; all of a shorter operation is done, and fails nevertheless. A Flush that
// fails is not done.
func Short(n int64, err error, when ...Predicate) *Rule {
	return newRule(&Rule{err: err, reach: func(Op) int64 { return n }}, when)
}

// BadSectors makes every read that touches the length bytes at off fail with EIO
// where they begin.
func BadSectors(off, length int64) *Rule {
	r := &Rule{err: unix.EIO, reach: func(o Op) int64 { return off - o.Off }}
	return newRule(r, []Predicate{OnKind(Read), InRange(off, length)})
}

// Delay makes operations wait until the channel is closed.
func Delay(until <-chan struct{}, when ...Predicate) *Rule {
	return newRule(&Rule{wait: until}, when)
}

func (r *Rule) matches(o Op) bool {
	if !r.when(o) {
		return false
	}
	r.hits.Add(1)
	r.once.Do(func() { close(r.hit) })
	return true
}

// meet lets an operation meet the rules. It returns how many bytes of it are to
// be done, and with what error it fails thereafter, if it does.
func (d *Device) meet(kind Kind, off, length int64) (int64, error) {
	o := Op{Kind: kind, Off: off, Len: length, Count: d.counts[kind].Add(1)}
	d.mu.Lock()
	rules := d.mu.rules // never changed in place
	d.mu.Unlock()
	for _, r := range rules {
		if !r.matches(o) {
			continue
		}
		if r.wait != nil {
			<-r.wait
		}
		if r.err != nil {
			n := min(max(r.reach(o), 0), length)
			return n &^ int64(d.inner.BlockSize()-1), r.err
		}
	}
	return length, nil
}
