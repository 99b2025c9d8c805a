package fuse

import (
	"encoding/binary"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// handOver gives the request in e to a worker. It never waits, for the queue has room
// for all entries.
func (u *uring) handOver(e *entry) {
	u.given++
	u.queue <- e
	if n := u.workers.Load(); n < maxWorkers && int(n) < u.given {
		u.workers.Add(1)
		u.srv.workers.Add(1)
		u.left.Go(u.work)
	}
}

// work does what is in the queue until that is closed, or nothing has come for a
// while.
func (u *uring) work() {
	defer u.srv.leave()
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil { // as in server.work
		runtime.UnlockOSThread()
	}
	patience := time.NewTimer(idleTime)
	defer patience.Stop()
	for {
		select {
		case e, ok := <-u.queue:
			if !ok {
				return
			}
			e.length, e.errno, _ = u.srv.do(e.payload, &e.request)
			u.finish(e)
			patience.Reset(idleTime)
		case <-patience.C:
			u.workers.Add(-1)
			if len(u.queue) == 0 {
				return
			}
			// It has come in this moment, when there seemed to be a worker for it.
			u.workers.Add(1)
			patience.Reset(idleTime)
		}
	}
}

// finish gives e, with the reply, back to the loop.
func (u *uring) finish(e *entry) {
	u.done.Lock()
	u.done.entries = append(u.done.entries, e)
	u.done.Unlock()
	if u.sleeping.Swap(false) {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(u.wake, one[:])
	}
}

// awaitWake asks the ring for a result when wake is written to.
func (u *uring) awaitWake() error {
	e, err := u.ring.Next()
	if err != nil {
		return err
	}
	e.Opcode, e.FD, e.UserData = linuxabi.UringRead, int32(u.wake), userWake
	e.Addr, e.Len = uint64(uintptr(unsafe.Pointer(u.woken))), 8
	return nil
}
