package fuse

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/aio"
	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// flight has the kernel do reads and writes with which there is nothing else to do
// (blockdev.Shortcut), while the worker that took them takes the next. One goroutine
// answers those that have ended, many in a row. So a worker does not wait for each of
// them, and where there are many, few threads take turns.
//
// It can be done although a successor may take over: what the kernel still does for a
// process that is dead holds the descriptor of the file or device below (package aio),
// and the successor waits until that is released. What was not answered is sent again.
type flight struct {
	srv   *server
	below blockdev.Shortcutter // the device

	begun sync.Once
	ctx   *aio.Context                 // after begun; nil if there can be none
	jobs  [maxJobs]atomic.Pointer[job] // that are under way, by their numbers
	under sync.WaitGroup               // as many
	ended chan struct{}                // closed when the goroutine has ended
}

// flightOver is the Data of the event that ends the goroutine; other events have the
// number of a job.
const flightOver = maxJobs

// newFlight returns nil if the device of s has no shortcuts.
func newFlight(s *server) *flight {
	below, ok := s.dev.(blockdev.Shortcutter)
	if !ok {
		return nil
	}
	return &flight{srv: s, below: below, ended: make(chan struct{})}
}

// start begins with the first request: most volumes are idle most of the time. Where
// there is no asynchronous I/O, or too much of it (fs.aio-max-nr), workers go on to do
// everything.
func (f *flight) start() {
	ctx, err := aio.New(maxJobs)
	if err != nil {
		return
	}
	f.ctx = ctx
	go f.land()
}

// begin has the kernel do what j asks for, and returns a job for the worker to go on
// with. It returns nil if the worker has to do j itself.
func (f *flight) begin(j *job) (next *job) {
	s, r := f.srv, &j.request
	if !s.mayPass(r) {
		return nil
	}
	if f.begun.Do(f.start); f.ctx == nil {
		return nil
	}
	// Before anything is locked below: memory may have to be waited for.
	next, err := s.takeJob()
	if err != nil {
		return nil
	}
	j.shortcut = r.shortcut()
	if !f.below.BeginShortcut(&j.shortcut) {
		s.jobs.put(next)
		return nil
	}
	j.passed = aio.Request{
		Data: uint64(j.number), Opcode: linuxabi.AIORead, FD: uint32(j.shortcut.FD),
		Offset: r.off, Bytes: uint64(r.length), Buf: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(j.data())))),
	}
	if j.shortcut.Write {
		j.passed.Opcode = linuxabi.AIOWrite
	}
	f.under.Add(1)
	f.jobs[j.number].Store(j)
	if f.ctx.Submit(&j.passed) != nil {
		f.under.Done()
		f.below.EndShortcut(&j.shortcut)
		s.jobs.put(next)
		return nil
	}
	return next
}

// land answers the requests that have ended, until end.
func (f *flight) land() {
	defer close(f.ended)
	defer becomeFlusher()()
	memory := make([]aio.Event, maxJobs)
	var y yielder
	for {
		y.yield()
		events, err := f.ctx.Wait(memory)
		if err != nil {
			// The kernel has refused what it cannot refuse. If this went on, those
			// who use the device would wait for ever.
			panic(err)
		}
		for _, e := range events {
			if e.Data == flightOver {
				_ = f.ctx.Close()
				return
			}
			f.done(f.jobs[e.Data].Load(), e.Res)
		}
	}
}

// done answers j, or has it done again if it was not as it should be.
func (f *flight) done(j *job, result int64) {
	f.below.EndShortcut(&j.shortcut)
	if result != j.request.length {
		go func() {
			defer becomeFlusher()()
			f.srv.handle(j.message, &j.request, 0)
			f.leave(j)
		}()
		return
	}
	f.srv.reply(j.message, j.request.unique, 0, f.srv.passed(j.data(), &j.request))
	f.leave(j)
}

func (f *flight) leave(j *job) {
	f.srv.counts.inFlight.Add(-1)
	f.srv.jobs.put(j)
	f.under.Done()
}

// end waits for what is under way. The connection has ended, and nothing begins any
// more.
func (f *flight) end() {
	f.under.Wait()
	f.begun.Do(func() {}) // for f.ctx
	if f.ctx == nil {
		return
	}
	// An event for who waits: a connection can always be written to, if it is there.
	over := aio.Request{Data: flightOver, Opcode: linuxabi.AIOPoll, FD: uint32(f.srv.fd), Buf: unix.POLLOUT | unix.POLLERR}
	for f.ctx.Submit(&over) != nil { // for want of memory
		time.Sleep(10 * time.Millisecond)
	}
	<-f.ended
}
