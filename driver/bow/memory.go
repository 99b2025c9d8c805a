package bow

import (
	"encoding/binary"
	"time"

	"github.com/bowline-csi/bowline/driver/bow/rangemap"
)

// What a successor of an engine cannot read off the device is which of the blocks
// that were free have been written since. After a crash of the machine that is lost
// (Stale). When only the process dies it need not be: memory that outlives it, and
// that the engine keeps up to date, tells.
//
// The memory has two bits for each block, in its two halves (bitmap):
//
//	free   set: Free, Spare or Reserved; nobody will miss the content, unless
//	       the log names the block
//	stale  set: Stale
//
// A bit is cleared before the write that makes it wrong, and a process can be
// killed at any moment: whatever the memory says then was true a moment before,
// and no request has made it wrong since.
//
// One byte more is not 0 if a flush has failed and none that the user asked for has
// succeeded since: the user may not have been told, so the successor does.
//
// Before that byte is the checkpoint that ended last for want of space, if one did:
// nobody asked for that, so nobody else knows why it is gone.

// The end of the memory, in bytes.
const (
	endedFlag   = 1 // not 0: the rest is there
	endedID     = 16
	endedAt     = 8 // nanoseconds since 1970
	endedBytes  = endedFlag + endedID + endedAt
	flushBytes  = 1
	formatBytes = 4
	tailBytes   = endedBytes + flushBytes + formatBytes
)

// memoryFormat is at the very end. Memory in which something else is there was left by
// a program of another version, and tells nothing.
const memoryFormat = "BOW2"

// MemorySize is the number of bytes that Remember needs for a device of so many
// blocks.
func MemorySize(blocks int64) int64 { return 2*bitmapSize(blocks) + tailBytes }

// Remember makes the engine keep in mem what its successor needs to know, see
// TakeOver, from now on. mem has to outlive the process. If it is larger than
// MemorySize, there is room for a device that grows; of blocks for which there is no
// room, the successor will not know that they are free.
func (e *Engine) Remember(mem []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(mem) >= tailBytes && !understood(mem) {
		format := mem[len(mem)-formatBytes:]
		if string(format) != "\x00\x00\x00\x00" { // new memory is not to be touched
			clear(mem)
		}
		copy(format, memoryFormat)
	}
	e.mu.types.memory = newMemory(mem)
	e.mu.types.memory.setFlushFailed(e.dev.failedSince(e.told.Load()))
	e.mu.types.memory.setEnded(e.mu.ended)
	e.mu.types.rememberAll()
}

// rememberEnd notes that the last checkpoint has ended for want of space, if it has.
func (e *Engine) rememberEnd() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.memory.setEnded(e.mu.ended)
}

// rememberFailure notes that a flush has failed, after that was counted.
func (e *Engine) rememberFailure() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.types.memory.setFlushFailed(true)
}

// forgetFailure notes that one of the user has succeeded, unless others have failed
// since the number of failures was that given.
func (e *Engine) forgetFailure(failures int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noFailureSince(failures) == nil {
		e.mu.types.memory.setFlushFailed(false)
	}
}

// memory is what a successor is told.
type memory struct {
	free, stale bitmap
	end         []byte // endedBytes, or none
	flush       []byte // one byte, or none
}

func understood(mem []byte) bool {
	return len(mem) >= tailBytes && string(mem[len(mem)-formatBytes:]) == memoryFormat
}

// newMemory divides mem, which is nil or as long as MemorySize says. What it does not
// understand tells nothing.
func newMemory(mem []byte) memory {
	if !understood(mem) {
		return memory{}
	}
	bits := len(mem) - tailBytes
	half := bits / 2
	tail := mem[bits:]
	return memory{free: newBitmap(mem[:half]), stale: newBitmap(mem[half : 2*half]), end: tail[:endedBytes], flush: tail[endedBytes : endedBytes+flushBytes]}
}

// ended returns the checkpoint that ended for want of space, or nothing.
func (m memory) ended() Ended {
	if len(m.end) == 0 || m.end[0] == 0 {
		return Ended{}
	}
	e := Ended{Reason: OutOfSpace}
	at := m.end[endedFlag+copy(e.ID[:], m.end[endedFlag:]):]
	e.At = time.Unix(0, int64(binary.LittleEndian.Uint64(at)))
	return e
}

func (m memory) setEnded(e Ended) {
	if len(m.end) == 0 || e.Reason != OutOfSpace || e.ID == m.ended().ID {
		return
	}
	m.end[0] = 0 // a process that is killed here leaves nothing
	at := m.end[endedFlag+copy(m.end[endedFlag:], e.ID[:]):]
	binary.LittleEndian.PutUint64(at, uint64(e.At.UnixNano()))
	m.end[0] = 1
}

func (m memory) flushFailed() bool { return len(m.flush) > 0 && m.flush[0] != 0 }

func (m memory) setFlushFailed(failed bool) {
	if failed == m.flushFailed() || len(m.flush) == 0 {
		return
	}
	m.flush[0] ^= 1
}

// typeMap is the types of all blocks, for those after us as well.
type typeMap struct {
	*rangemap.Map[Type]
	memory memory
}

// Set gives the blocks [start, end) the type t.
func (m *typeMap) Set(start, end int64, t Type) {
	m.Map.Set(start, end, t)
	m.remember(start, end, t)
}

// Replace gives every block the type that f returns for its type.
func (m *typeMap) Replace(f func(Type) Type) {
	m.Map.Replace(f)
	m.rememberAll()
}

func (m *typeMap) remember(start, end int64, t Type) {
	m.memory.free.set(start, end, t == Free || t == Spare || t == Reserved)
	m.memory.stale.set(start, end, t == Stale)
}

func (m *typeMap) rememberAll() {
	if m.memory.free.size() == 0 {
		return
	}
	for x := range m.Extents(0, m.Size()) {
		m.remember(x.Start, x.End, x.Value)
	}
}

// recall gives the blocks [start, end), of which nothing else is known than that
// they were free once, the types that the predecessor's memory tells.
func (m *typeMap) recall(old memory, start, end int64) {
	for at := start; at < end; {
		free, n := old.free.run(at, end)
		if free {
			m.Set(at, n, Free)
			at = n
			continue
		}
		stale, n := old.stale.run(at, n)
		if stale {
			m.Set(at, n, Stale)
		} else {
			m.Set(at, n, Written)
		}
		at = n
	}
}
