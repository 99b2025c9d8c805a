package fuse

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/iouring"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// uringDepth is how many entries each processor has that is online, and so how many
// requests that were sent on it are worked on at once. The kernel queues the rest.
// The others, which it wants to have entries too, have one.
const uringDepth = 32

// uringBatch is how many results are dealt with before what follows from them is handed
// in. If all that are there were, the disk would have nothing to do meanwhile, and then
// all at once; for each one alone, system calls cost more than that.
const uringBatch = 2

// uring brings the requests of a connection over io_uring. One thread, that of loop,
// takes them and hands in the replies, a few of both with each system call. Where there
// is nothing to do but to read or write a file it lets the ring do that
// (blockdev.Shortcut). What may wait it gives to workers.
//
// The kernel has a queue of entries for each processor, on which the requests that
// are sent there have to wait; one ring serves them all, for a loop device sends from
// one thread at a time.
//
// It lasts until the connection ends: then the kernel gives every entry back.
type uring struct {
	srv     *server
	short   blockdev.Shortcutter // the device, or nil
	ring    *iouring.Ring
	mem     []byte  // of the entries
	woken   *uint64 // in mem: where the counter of wake is read into
	entries []entry
	alive   int          // entries that the connection has, here or in the kernel
	ready   chan error   // whether the kernel has taken the entries
	queue   chan *entry  // for workers
	given   int          // entries that workers have, or that wait for one
	workers atomic.Int32 // that exist, or are about to leave
	left    sync.WaitGroup

	// Workers put into done what they have finished. They wake the loop by the
	// eventfd wake if it may be waiting in the kernel.
	wake     int
	trim     atomic.Bool // the loop is to give memory back
	sleeping atomic.Bool
	done     struct {
		sync.Mutex
		entries []*entry
	}
	taken []*entry // what was in done; of the loop

	busy    int  // requests taken whose replies have not been handed in
	replies int  // of these, those whose replies are in the ring
	watched bool // server.watch was called, and trim has not been set since
}

// entry is memory that is lent to the kernel for one request at a time.
type entry struct {
	queue   uint16 // number of the processor
	header  *linuxabi.FuseUringHeader
	payload payload
	request request

	shortcut blockdev.Shortcut // while the ring does the request

	// The reply.
	length int // of the payload
	errno  unix.Errno
}

// UringSQE.UserData of a request to the ring: userWake for awaitWake, userIO and the
// number of the entry for a shortcut, and the number alone for a command.
const (
	userWake = 1<<64 - 1
	userIO   = 1 << 32 // the number of an entry is in the bits below
)

// entryHeader is at the beginning of the memory of all entries, for each one.
type entryHeader struct {
	header linuxabi.FuseUringHeader
	iov    [2]unix.Iovec // of header and payload
}

// newUring makes everything for a connection over io_uring but that. It fails with
// export.ErrUnsupported where there can be none.
func newUring() (_ *uring, err error) {
	if err := enableUring(enableUringPath); err != nil {
		return nil, err
	}
	online, possible, err := processors()
	if err != nil {
		return nil, err
	}
	var queues []uint16 // of the entries
	for cpu := range possible {
		depth := 1
		if online[cpu] {
			depth = uringDepth
		}
		for range depth {
			queues = append(queues, uint16(cpu))
		}
	}
	u := &uring{wake: -1, ready: make(chan error, 1), queue: make(chan *entry, len(queues))}
	u.ring, err = iouring.New(128, 2*len(queues)+128)
	if err != nil {
		if errors.Is(err, iouring.ErrUnsupported) {
			err = fmt.Errorf("%w: %w", err, export.ErrUnsupported)
		}
		return nil, err
	}
	if u.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		u.free()
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := u.makeEntries(queues); err != nil {
		u.free()
		return nil, fmt.Errorf("memory for %d entries: %w", len(queues), err)
	}
	return u, nil
}

func (u *uring) makeEntries(queues []uint16) (err error) {
	page := os.Getpagesize()
	headers := (len(queues)*int(unsafe.Sizeof(entryHeader{})) + 8 + page - 1) &^ (page - 1)
	// Not in huge pages: each request, however small, would take one of them up.
	u.mem, err = unix.Mmap(-1, 0, headers+len(queues)*maxIO, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	shared := unsafe.Slice((*entryHeader)(unsafe.Pointer(&u.mem[0])), len(queues))
	u.woken = (*uint64)(unsafe.Pointer(&u.mem[headers-8]))
	u.entries = make([]entry, len(queues))
	for i := range u.entries {
		begin := headers + i*maxIO
		e := &u.entries[i]
		e.queue, e.header, e.payload = queues[i], &shared[i].header, u.mem[begin:begin+maxIO]
		iov := &shared[i].iov
		iov[0].Base = (*byte)(unsafe.Pointer(e.header))
		iov[0].SetLen(int(unsafe.Sizeof(*e.header)))
		iov[1].Base = unsafe.SliceData(e.payload)
		iov[1].SetLen(len(e.payload))
	}
	return nil
}

func (u *uring) free() {
	_ = u.ring.Close()
	if u.wake >= 0 {
		_ = unix.Close(u.wake)
	}
	if u.mem != nil {
		_ = unix.Munmap(u.mem)
	}
}

// start begins to lend entries to the connection of s and to work on what comes in
// them. ready tells how the beginning went.
func (u *uring) start(s *server) {
	u.srv = s
	u.short, _ = s.dev.(blockdev.Shortcutter)
	s.workers.Add(1)
	go u.loop()
}

// begun waits until s has agreed with the kernel on where requests come from.
func (s *server) begun() error {
	if s.uring == nil {
		return nil
	}
	select {
	case err := <-s.uring.ready:
		return err
	case <-s.done:
	}
	select {
	case err := <-s.uring.ready: // it has begun, and ended
		return err
	default:
		s.uring.free()
		return errors.New("FUSE over io_uring: the connection ended before it began")
	}
}

// loop works until the connection has ended. Its goroutine keeps the thread to itself,
// and that ends with it.
func (u *uring) loop() {
	defer u.srv.leave()
	defer u.free()
	defer u.srv.stopTrimming()
	defer u.left.Wait()
	defer close(u.queue)
	runtime.LockOSThread()
	becomeFlusher() // for good: the thread ends
	err := u.lend()
	u.ready <- err
	for err == nil && u.alive > 0 {
		if err = u.turn(); err != nil {
			// The kernel has refused what it cannot refuse. If this went on, those
			// who use the device would wait for ever.
			panic(err)
		}
	}
}

// lend gives all entries to the kernel for the first time.
func (u *uring) lend() error {
	if err := u.ring.Enable(); err != nil {
		return err
	}
	if err := u.awaitWake(); err != nil {
		return err
	}
	for i := range u.entries {
		e, err := u.command(i, linuxabi.FuseUringRegister, linuxabi.FuseUringCommand{Queue: u.entries[i].queue})
		if err != nil {
			return err
		}
		header := (*entryHeader)(unsafe.Pointer(u.entries[i].header))
		e.Addr, e.Len = uint64(uintptr(unsafe.Pointer(&header.iov))), 2
		u.alive++
	}
	if err := u.ring.Submit(); err != nil {
		return err
	}
	// What the kernel does not want comes back at once.
	for {
		r, ok := u.ring.Result()
		if !ok {
			return nil
		}
		if r.Res < 0 {
			return fmt.Errorf("lending memory to the kernel for FUSE over io_uring: %w", unix.Errno(-r.Res))
		}
		if err := u.take(r); err != nil {
			return err
		}
	}
}

// turn waits for something to happen and deals with all that has, until there is
// nothing left.
func (u *uring) turn() error {
	u.sleeping.Store(true) // before looking: who comes later wakes
	if u.trim.Swap(false) {
		u.forget()
	}
	if err := u.replyDone(); err != nil {
		return err
	}
	if err := u.handIn(u.ring.Wait); err != nil {
		return err
	}
	u.sleeping.Store(false)
	for n := 1; ; n++ {
		r, ok := u.ring.Result()
		if !ok {
			return nil
		}
		if err := u.take(r); err != nil {
			return err
		}
		if n%uringBatch != 0 {
			continue
		}
		if err := u.replyDone(); err != nil {
			return err
		}
		if err := u.handIn(u.ring.Submit); err != nil {
			return err
		}
	}
}

// handIn hands in what is in the ring, by Submit or Wait. The kernel reads the payloads
// of replies in that call, and has perhaps not come to the last ones.
func (u *uring) handIn(call func() error) error {
	if err := call(); err != nil {
		return err
	}
	if u.ring.Pending() == 0 {
		u.busy -= u.replies
		u.replies = 0
	}
	return nil
}

// replyDone replies to what workers have done.
func (u *uring) replyDone() error {
	u.done.Lock()
	u.taken, u.done.entries = u.done.entries, u.taken[:0]
	u.done.Unlock()
	u.given -= len(u.taken)
	for _, e := range u.taken {
		if err := u.reply(e); err != nil {
			return err
		}
	}
	return nil
}

// take deals with a result of the ring.
func (u *uring) take(r linuxabi.UringCQE) error {
	if r.UserData == userWake {
		return u.awaitWake()
	}
	if r.UserData >= userIO {
		return u.endShortcut(&u.entries[r.UserData-userIO], r.Res)
	}
	if r.Res < 0 {
		u.alive-- // ENOTCONN and the like: the connection has ended
		return nil
	}
	e := &u.entries[r.UserData]
	u.srv.counts.inFlight.Add(1)
	u.busy++
	if !u.watched {
		u.watched = true
		u.srv.watch()
	}
	e.length = 0
	if e.errno = e.decode(); e.errno != 0 {
		return u.reply(e)
	}
	switch e.request.op {
	case linuxabi.FuseRead, linuxabi.FuseWrite:
		if done, err := u.beginShortcut(e); done || err != nil {
			return err
		}
		u.handOver(e)
		return nil
	case linuxabi.FuseFsync, linuxabi.FuseFallocate:
		u.handOver(e)
		return nil
	}
	e.length, e.errno, _ = u.srv.do(e.payload, &e.request)
	return u.reply(e)
}

// decode reads the request that has come.
func (e *entry) decode() unix.Errno {
	n := int(e.header.Payload)
	if n > len(e.payload) {
		return unix.EIO
	}
	h := (*linuxabi.FuseInHeader)(unsafe.Pointer(&e.header.InOut))
	return e.request.decode(h, e.header.Op[:], e.payload[:n], len(e.payload))
}

// reply hands in the reply to the request in e, with the next Submit or Wait, and with
// it lends e again.
func (u *uring) reply(e *entry) error {
	u.srv.counts.inFlight.Add(-1)
	u.replies++
	h := (*linuxabi.FuseOutHeader)(unsafe.Pointer(&e.header.InOut))
	*h = linuxabi.FuseOutHeader{Len: uint32(outHeaderSize + e.length), Error: -int32(e.errno), Unique: e.request.unique}
	e.header.Payload = uint32(e.length)
	_, err := u.command(u.index(e), linuxabi.FuseUringCommitAndFetch, linuxabi.FuseUringCommand{
		Queue:    e.queue,
		CommitID: e.header.CommitID,
	})
	return err
}

func (u *uring) index(e *entry) int {
	return int((uintptr(unsafe.Pointer(e)) - uintptr(unsafe.Pointer(&u.entries[0]))) / unsafe.Sizeof(*e))
}

// command puts a command for the entry number i into the ring.
func (u *uring) command(i int, op uint64, c linuxabi.FuseUringCommand) (*linuxabi.UringSQE, error) {
	e, err := u.ring.Next()
	if err != nil {
		return nil, err
	}
	e.Opcode, e.FD, e.Off, e.UserData = linuxabi.UringCmd, int32(u.srv.fd), op, uint64(i)
	*(*linuxabi.FuseUringCommand)(unsafe.Pointer(&e.Cmd)) = c
	return e, nil
}
