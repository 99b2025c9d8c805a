package mapping

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
)

// Operations whose latencies are counted.
const (
	OpRead    = "read"
	OpWrite   = "write"
	OpFlush   = "flush"
	OpDiscard = "discard" // discards and zeroings
)

var operations = [...]string{OpRead, OpWrite, OpFlush, OpDiscard}

const (
	opRead = iota
	opWrite
	opFlush
	opDiscard
)

// Buckets are powers of two of microseconds: bucket i counts what took at most
// 2^(i+firstBucket) µs, the last one everything else.
const (
	firstBucket = 4 // 16 µs
	numBuckets  = 20
)

// Latency is how long the requests of one kind took in one state of the engine.
type Latency struct {
	Op      string
	State   bow.State
	Count   uint64
	Sum     time.Duration
	Buckets []Bucket // by UpTo; what took longer than the last is in Count only
}

// Bucket is the number of requests that took no longer than UpTo, those of the
// buckets before among them.
type Bucket struct {
	UpTo  time.Duration
	Count uint64
}

// meter is an engine whose requests are timed. It adds two readings of the clock
// and two atomic additions to a request.
type meter struct {
	*bow.Engine
	cells [len(operations)][3]cell // by operation and state
}

type cell struct {
	nanoseconds atomic.Int64
	buckets     [numBuckets]atomic.Uint64
}

func newMeter(e *bow.Engine) *meter { return &meter{Engine: e} }

func (m *meter) done(op int, began time.Time) {
	took := time.Since(began)
	c := &m.cells[op][m.State()]
	c.nanoseconds.Add(int64(took))
	c.buckets[bucketOf(took)].Add(1)
}

// bucketOf is the bucket that counts a duration.
func bucketOf(d time.Duration) int {
	us := uint64(max(d-1, 0) / time.Microsecond)
	return min(max(bits.Len64(us)-firstBucket, 0), numBuckets-1)
}

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	defer m.done(opRead, time.Now())
	return m.Engine.ReadAt(p, off)
}

func (m *meter) WriteAt(p []byte, off int64) (int, error) {
	defer m.done(opWrite, time.Now())
	return m.Engine.WriteAt(p, off)
}

// BeginShortcut implements blockdev.Shortcutter.
func (m *meter) BeginShortcut(s *blockdev.Shortcut) bool {
	s.Began = time.Now()
	return m.Engine.BeginShortcut(s)
}

// EndShortcut implements blockdev.Shortcutter.
func (m *meter) EndShortcut(s *blockdev.Shortcut) {
	op := opRead
	if s.Write {
		op = opWrite
	}
	m.done(op, s.Began)
	m.Engine.EndShortcut(s)
}

func (m *meter) Flush() error {
	defer m.done(opFlush, time.Now())
	return m.Engine.Flush()
}

func (m *meter) Discard(off, length int64) error {
	defer m.done(opDiscard, time.Now())
	return m.Engine.Discard(off, length)
}

func (m *meter) WriteZeroes(off, length int64) error {
	defer m.done(opDiscard, time.Now())
	return m.Engine.WriteZeroes(off, length)
}

func (m *meter) latencies() []Latency {
	var all []Latency
	for op := range m.cells {
		for state := range m.cells[op] {
			c := &m.cells[op][state]
			l := Latency{Op: operations[op], State: bow.State(state), Sum: time.Duration(c.nanoseconds.Load())}
			for i := range c.buckets {
				l.Count += c.buckets[i].Load()
				if i < numBuckets-1 {
					l.Buckets = append(l.Buckets, Bucket{time.Microsecond << (i + firstBucket), l.Count})
				}
			}
			all = append(all, l)
		}
	}
	return all
}
