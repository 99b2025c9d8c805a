package bow

// neighbourhoods are the lengths of what is backed up together, bytes, where it is
// worth it: powers of two, not less than a block. The device is divided into
// neighbourhoods of each length.
var neighbourhoods = [...]int64{1 << 20, 256 << 10, 64 << 10}

// busyShare says when one is backed up that is not the shortest: this part of it has a
// backup.
const busyShare = 16

// Backing up one block costs a read, a write, a write of the log and a flush, and
// backing up sixteen costs hardly more. Who writes somewhere will likely write next to
// it too. So what is around it is backed up as well, and more of it if more was
// overwritten there. What is written there later is as fast as without a checkpoint.
//
// That costs space that may never be needed, and without space there is no checkpoint.
// So it is done only as long as three quarters would be left: of what was free at the
// checkpoint, or of what it takes to back up everything that is still in use.

// withNeighbours returns the range to lock for overwriting [start, end): this, or it
// and what is worth being backed up with it.
func (e *Engine) withNeighbours(start, end int64) (int64, int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	types := e.mu.types
	if x := types.Get(start); x.End >= end && x.Value != Unchanged || start == 0 {
		return start, end
	}
	for i, size := range e.neighbourhoods {
		n := size / e.blockSize
		// Block 0 is nobody's neighbour.
		from, to := max(start&^(n-1), 1), min((end+n-1)&^(n-1), types.Size())
		var kept, rest int64
		for x := range types.Extents(from, to) {
			switch x.Value {
			case Changed:
				kept += x.Len()
			case Unchanged:
				rest += x.Len()
			}
		}
		if (kept >= (to-from)/busyShare || i == len(e.neighbourhoods)-1) && e.plentyLocked(rest, end-start) {
			return from, to
		}
	}
	return start, end
}

// plentyLocked tells whether so many blocks can be backed up for a request of the given
// length, though not all of that is necessary.
func (e *Engine) plentyLocked(blocks, request int64) bool {
	// It may have to move as many copies, the shadows and the live block 0.
	left := e.availableLocked() - blocks - request - 3
	return left >= min(e.mu.types.Total(Unchanged.Class()), e.mu.room)/4*3
}
