package bow

// neighbourhoods are the lengths of what is backed up together, bytes, where it is
// worth it: powers of two, not less than a block. The device is divided into
// neighbourhoods of each length.
var neighbourhoods = [...]int64{1 << 20, 256 << 10, 64 << 10}

// busyShare says when: this part of a neighbourhood has a backup.
const busyShare = 16

// Backing up one block costs a read, a write, a write of the log and a flush, and
// backing up sixteen costs hardly more. Who has written to a neighbourhood will do so
// again. So then all of it is backed up, and what is written there later is as fast as
// without a checkpoint.
//
// That costs space that may never be needed. It is done only as long as all that is in
// use would fit into what is free: then backups cannot run out of space, except for
// what the file system takes, and it is looked at anew each time.

// withNeighbours returns the range to lock for overwriting [start, end): this, or it
// and what is worth being backed up with it.
func (e *Engine) withNeighbours(start, end int64) (int64, int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	types := e.mu.types
	if x := types.Get(start); x.End >= end && x.Value != Unchanged || start == 0 || !e.roomForAllLocked(end-start) {
		return start, end
	}
	for _, size := range neighbourhoods {
		n := size / e.blockSize
		// Block 0 is nobody's neighbour.
		from, to := max(start&^(n-1), 1), min((end+n-1)&^(n-1), types.Size())
		var kept int64
		for x := range types.Extents(from, to) {
			if x.Value == Changed {
				kept += x.Len()
			}
		}
		if kept >= max((to-from)/busyShare, 1) {
			return from, to
		}
	}
	return start, end
}

// roomForAllLocked tells whether everything in use could be backed up and still there
// is room for what a request for so many blocks needs besides.
func (e *Engine) roomForAllLocked(blocks int64) bool {
	return e.availableLocked() >= e.mu.types.Total(Unchanged.Class())+blocks+3
}
