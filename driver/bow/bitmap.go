package bow

// bitmap has a bit for each block; those behind its end are not set. It lies in memory
// that need not exist where nobody looks: for each chunk of bits there is one byte that
// tells whether they are all the same, and then they are not looked at.
type bitmap struct {
	chunks []byte // allClear, allSet or mixed
	bits   []byte
}

const (
	allClear = 0 // as in memory that is new
	mixed    = 1
	allSet   = 2
)

// chunkBytes is the length of a chunk in bytes of bits, that of a page.
const chunkBytes = 4096

const chunkBits = chunkBytes * 8

// bitmapSize is the number of bytes of a bitmap for so many blocks.
func bitmapSize(blocks int64) int64 {
	bytes := (blocks + 7) / 8
	return (bytes+chunkBytes-1)/chunkBytes + bytes
}

// newBitmap makes a bitmap of mem, for as many blocks as there is room for.
func newBitmap(mem []byte) bitmap {
	chunks := (len(mem) + chunkBytes) / (chunkBytes + 1)
	return bitmap{chunks: mem[:chunks], bits: mem[chunks:]}
}

// size is the number of bits.
func (b bitmap) size() int64 { return int64(len(b.bits)) * 8 }

// set sets or clears the bits [start, end).
//
// Whoever dies in between leaves each bit as it was or as it is to be: what the bits of
// a chunk say is made the same as what its byte says before that is changed.
func (b bitmap) set(start, end int64, on bool) {
	end = min(end, b.size())
	same, fill := byte(allClear), byte(0)
	if on {
		same, fill = allSet, 0xff
	}
	for start < end {
		c := start / chunkBits
		first, last := c*chunkBits, min((c+1)*chunkBits, b.size())
		stop := min(end, last)
		switch state := b.chunks[c]; {
		case state == same:
		case start == first && stop == last:
			b.chunks[c] = same
		default:
			if state != mixed {
				part := b.bits[first/8 : last/8]
				for i := range part {
					part[i] = ^fill
				}
				b.chunks[c] = mixed
			}
			b.setBits(start, stop, on)
		}
		start = stop
	}
}

// setBits sets or clears the bits [start, end) of a mixed chunk.
func (b bitmap) setBits(start, end int64, on bool) {
	for start < end {
		i, from := start/8, start%8
		n := min(8-from, end-start)
		mask := byte((1<<n - 1) << from)
		if on {
			b.bits[i] |= mask
		} else {
			b.bits[i] &^= mask
		}
		start += n
	}
}

// run returns the bit at start, and where the bits that are like it end, at end at
// the latest.
func (b bitmap) run(start, end int64) (on bool, stop int64) {
	limit := min(end, b.size())
	if start >= limit {
		return false, end
	}
	on = b.get(start)
	same, whole := byte(allClear), byte(0)
	if on {
		same, whole = allSet, 0xff
	}
	for stop = start; stop < limit; {
		chunkEnd := min((stop/chunkBits+1)*chunkBits, limit)
		if state := b.chunks[stop/chunkBits]; state == same {
			stop = chunkEnd
			continue
		} else if state != mixed {
			return on, stop
		}
		for stop < chunkEnd {
			switch {
			case stop%8 == 0 && stop+8 <= chunkEnd && b.bits[stop/8] == whole:
				stop += 8
			case b.bit(stop) != on:
				return on, stop
			default:
				stop++
			}
		}
	}
	if !on {
		stop = end
	}
	return on, stop
}

// get returns bit i, which there is.
func (b bitmap) get(i int64) bool {
	switch b.chunks[i/chunkBits] {
	case allClear:
		return false
	case allSet:
		return true
	}
	return b.bit(i)
}

func (b bitmap) bit(i int64) bool { return b.bits[i/8]&(1<<(i%8)) != 0 }
