package fuse

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/iomem"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// server answers the requests of one FUSE connection with the help of a device.
//
// Everything it says follows from the device and from these fields: it keeps no
// tables, node ids and file handles are constants. A process that has the
// descriptor of the connection, the device and the name can therefore continue
// where another stopped, whatever was going on.
type server struct {
	fd        int // /dev/fuse, blocking; never cloned, see package comment
	dev       blockdev.Device
	file      string // the name of the file
	blockSize int    // of the exported block device, at least that of dev

	// discards says what a punched hole means; see the type.
	discards atomic.Int32
	// probed is set when a zeroing was refused, see attach.
	probed atomic.Bool
	// resends is set if the kernel can send requests again to a successor.
	resends atomic.Bool

	workers atomic.Int32  // that exist
	waiting atomic.Int32  // of these, in read
	done    chan struct{} // closed when the last worker has ended

	counts  counters
	trimmer trimmer

	jobs   jobs
	flight *flight // nil if requests come over io_uring, or dev has no shortcuts

	// uring brings the requests if it is not nil. INIT, and what has no reply, come
	// from the descriptor all the same, to the only worker.
	uring *uring

	ragged struct {
		sync.Mutex // held across the I/O
		buf        []byte
	}
}

// counters are export.Stats while they are counted.
type counters struct {
	inFlight                                         atomic.Int64
	reads, writes, flushes, discards, zeroes, errors atomic.Uint64
	bytesRead, bytesWritten                          atomic.Uint64
}

func (c *counters) stats() export.Stats {
	return export.Stats{
		InFlight:     c.inFlight.Load(),
		Reads:        c.reads.Load(),
		Writes:       c.writes.Load(),
		Flushes:      c.flushes.Load(),
		Discards:     c.discards.Load(),
		WriteZeroes:  c.zeroes.Load(),
		Errors:       c.errors.Load(),
		BytesRead:    c.bytesRead.Load(),
		BytesWritten: c.bytesWritten.Load(),
	}
}

// newServer makes a server for the connection fd, which it owns from the call
// of start on. The connection may be one that was initialised long ago.
func newServer(fd int, dev blockdev.Device, file string, blockSize int) *server {
	return &server{fd: fd, dev: dev, file: file, blockSize: blockSize, done: make(chan struct{})}
}

// start begins to answer requests and returns. The server ends, closing done,
// when the kernel has dropped the connection, which it does when nothing uses
// the file any more.
func (s *server) start() error {
	j, err := s.takeJob()
	if err != nil {
		return err
	}
	if s.uring == nil {
		s.flight = newFlight(s)
	}
	s.workers.Add(1)
	go s.work(j)
	return nil
}

// takeJob takes a job, and sees to it that its memory is given back some day.
func (s *server) takeJob() (*job, error) {
	j, made, err := s.jobs.take()
	if made {
		s.watch()
	}
	return j, err
}

// grow starts another worker unless there are enough, or there is no memory: those
// that exist have to do then. Only a worker calls it, so the number of workers cannot
// come back from zero.
func (s *server) grow() {
	if j, err := s.takeJob(); err == nil {
		s.workers.Add(1)
		go s.work(j)
	}
}

// enoughWaiting is about how many workers wait for the next request at most. The kernel
// wakes the one that has waited longest; many of them would take turns, each on a
// processor that has forgotten it.
const enoughWaiting = 2

// work takes requests and answers them, one after the other, until the
// connection ends. Whenever it has one to do itself and leaves nobody waiting for the
// next it starts another worker, so there are about as many as the kernel keeps
// busy. It leaves when there are enough without it; when there has been nothing to do
// for a while, all but one end.
func (s *server) work(j *job) {
	defer becomeFlusher()()
	defer s.leave()
	defer func() { s.jobs.put(j) }()

	var y yielder
	for s.waiting.Load() < enoughWaiting {
		y.yield()
		s.waiting.Add(1)
		n, err := unix.Read(s.fd, j.in())
		left := s.waiting.Add(-1)
		switch err {
		case nil:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT:
			// ENOENT: the request was given up while it was handed over.
			continue
		default:
			// ENODEV: the file system is gone. Nothing else is expected, and
			// nothing else could be helped.
			return
		}
		if j.isNudge(n) {
			if left > 0 {
				return // Others wait.
			}
			j = s.jobs.settle(j)
			continue
		}
		errno, ok := j.decode(n, &j.request)
		if !ok {
			continue
		}
		// What is alone is done sooner by who has it.
		if s.counts.inFlight.Add(1) > 1 && errno == 0 && s.flight != nil {
			if next := s.flight.begin(j); next != nil {
				j = next
				continue
			}
		}
		if left == 0 && s.uring == nil {
			s.grow()
		}
		s.handle(j.message, &j.request, errno)
		s.counts.inFlight.Add(-1)
		if s.uring != nil && j.request.op == linuxabi.FuseInit {
			s.uring.start(s)
		}
	}
}

// becomeFlusher is for a goroutine that writes back what others have dirtied: it must
// not wait for that to happen when it allocates memory. The flag belongs to the thread,
// so the goroutine keeps the thread to itself until it calls undo; if the whole process
// has the flag, nothing need be done. Without the capability for this
// (CAP_SYS_RESOURCE) the export works, but when memory is short it may wait for itself.
func becomeFlusher() (undo func()) {
	if flag, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || flag == 1 {
		return func() {}
	}
	runtime.LockOSThread()
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) != nil {
		runtime.UnlockOSThread()
		return func() {}
	}
	return func() {
		// If this fails, the thread ends with the goroutine.
		if unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) == nil {
			runtime.UnlockOSThread()
		}
	}
}

// leave is the end of a worker. The last one leaves nothing behind.
func (s *server) leave() {
	if s.workers.Add(-1) > 0 {
		return
	}
	s.stopTrimming()
	if s.flight != nil {
		s.flight.end()
	}
	s.jobs.release()
	_ = unix.Close(s.fd)
	if s.ragged.buf != nil {
		_ = iomem.Unmap(s.ragged.buf)
	}
	close(s.done)
}
