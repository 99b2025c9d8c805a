package fuse

import (
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// idleTime is how long there must be no request before all but one worker end, and
// memory is given back; or before one is started because all hang.
const idleTime = 10 * time.Second

// hangTime is how long there must be no request after that before another one is
// started.
const hangTime = time.Second

// trimmer ends workers that are not needed any more, and starts one where all hang.
//
// A worker waits in a read of /dev/fuse and cannot be told anything there but
// by a request. So the kernel is asked for a request: to a notification of
// "retrieve" it answers with what it has cached of the file, which is nothing.
// Each of these messages wakes one worker.
type trimmer struct {
	mu struct {
		sync.Mutex
		timer  *time.Timer // nil if there is nothing to end
		before uint64      // requests when the timer was set
		closed bool        // the descriptor may not be used any more
	}
}

// watch begins to wait for the server to be idle, if that is not so already.
func (s *server) watch() {
	t := &s.trimmer
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed || t.mu.timer != nil {
		return
	}
	t.mu.before = s.counts.requests()
	t.mu.timer = time.AfterFunc(idleTime, s.trim)
}

// trim nudges all workers if there has been no request for idleTime, or has what
// brings them give back memory.
func (s *server) trim() {
	t := &s.trimmer
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed || t.mu.timer == nil {
		return
	}
	waiting, next := s.waiting.Load(), idleTime
	switch now := s.counts.requests(); {
	case now != t.mu.before:
		t.mu.before = now
	case s.uring != nil:
		t.mu.timer = nil
		s.uring.trim.Store(true)
		s.uring.rouse()
		return
	default:
		if waiting == 0 {
			s.relieve()
			next = hangTime
		}
		for range waiting {
			s.nudge()
		}
		s.jobs.shrink()
	}
	if waiting == 1 && s.workers.Load() == 1 && s.jobs.made() == 1 {
		t.mu.timer = nil
		return
	}
	t.mu.timer.Reset(next)
}

// relieve starts another worker, if there are any: all of them may be held up in the
// kernel, which has to wait before it can begin what flight has submitted, and nobody
// takes what it waits for perhaps, or what others want meanwhile.
func (s *server) relieve() {
	defer becomeFlusher()()
	j, _, err := s.jobs.take()
	if err != nil {
		return
	}
	for n := s.workers.Load(); n > 0; n = s.workers.Load() {
		if s.workers.CompareAndSwap(n, n+1) {
			go s.work(j)
			return
		}
	}
	s.jobs.put(j) // The last one has left.
}

// stopTrimming returns when no nudge is under way and none will be.
func (s *server) stopTrimming() {
	t := &s.trimmer
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.closed = true
	if t.mu.timer != nil {
		t.mu.timer.Stop()
	}
}

// nudge makes the kernel send a request that means nothing but that a worker
// that waits should look whether it is needed.
func (s *server) nudge() {
	m := struct {
		header linuxabi.FuseOutHeader
		body   linuxabi.FuseNotifyRetrieveOut
	}{
		header: linuxabi.FuseOutHeader{Error: linuxabi.FuseNotifyRetrieve},
		body:   linuxabi.FuseNotifyRetrieveOut{NodeID: fileID},
	}
	m.header.Len = uint32(unsafe.Sizeof(m))
	// A worker that is not woken stays until the next time.
	_, _ = unix.Write(s.fd, unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)))
}

// isNudge tells whether the request of n bytes in m is the answer to a nudge.
func (m *message) isNudge(n int) bool {
	h, ok := view[linuxabi.FuseInHeader](m.in()[:n])
	return ok && h.Opcode == linuxabi.FuseNotifyReply
}

// requests is the number of requests so far.
func (c *counters) requests() uint64 {
	return c.reads.Load() + c.writes.Load() + c.flushes.Load() + c.discards.Load() + c.zeroes.Load()
}
