package fuse

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// beginShortcut lets the ring do the read or write in e if the device allows that.
func (u *uring) beginShortcut(e *entry) (done bool, err error) {
	s, r := u.srv, &e.request
	if u.short == nil || !s.mayPass(r) {
		return false, nil
	}
	e.shortcut = r.shortcut()
	if !u.short.BeginShortcut(&e.shortcut) {
		return false, nil
	}
	q, err := u.ring.Next()
	if err != nil {
		return false, err
	}
	q.Opcode = linuxabi.UringRead
	if e.shortcut.Write {
		q.Opcode = linuxabi.UringWrite
	}
	q.FD, q.Off, q.UserData = int32(e.shortcut.FD), uint64(r.off), userIO+uint64(u.index(e))
	q.Addr, q.Len = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(e.payload)))), uint32(r.length)
	return true, nil
}

// endShortcut replies to the request that the ring has done, or has it done again if
// it was not as it should be.
func (u *uring) endShortcut(e *entry, result int32) error {
	u.short.EndShortcut(&e.shortcut)
	if int64(result) != e.request.length {
		u.handOver(e)
		return nil
	}
	e.length = u.srv.passed(e.payload, &e.request)
	return u.reply(e)
}

// handOver gives the request in e to a worker. It never waits, for the queue has room
// for all entries.
func (u *uring) handOver(e *entry) {
	u.given++
	u.queue <- e
	if n := u.workers.Load(); n < maxJobs && int(n) < u.given {
		u.workers.Add(1)
		u.srv.workers.Add(1)
		u.left.Go(u.work)
	}
}

// work does what is in the queue until that is closed, or nothing has come for a
// while.
func (u *uring) work() {
	defer becomeFlusher()()
	defer u.srv.leave()
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
	u.rouse()
}

// rouse makes the loop look at what there is to do besides requests.
func (u *uring) rouse() {
	if u.sleeping.Swap(false) {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(u.wake, one[:])
	}
}

// forget gives the memory of the payloads back to the system, if nothing is in it. The
// kernel writes there only while the loop is in a call of the ring, and all results of
// these have been taken.
func (u *uring) forget() {
	u.watched = false
	if u.busy == 0 {
		first := uintptr(unsafe.Pointer(unsafe.SliceData(u.entries[0].payload))) - uintptr(unsafe.Pointer(&u.mem[0]))
		_ = unix.Madvise(u.mem[first:], unix.MADV_DONTNEED)
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
