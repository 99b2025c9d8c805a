package blockdev

import (
	"sync"
	"unsafe"
)

// pageSize is the strictest memory alignment that direct I/O asks for, in
// bytes.
const pageSize = 4096

// Buffer returns n zeroed bytes that begin at a multiple of 4096 in memory. I/O
// from and to such a buffer, and at multiples of 4096 in it, is never copied
// for the sake of alignment.
func Buffer(n int) []byte {
	// The allocator puts most sizes that are whole pages where they are wanted.
	rounded := (n + pageSize - 1) &^ (pageSize - 1)
	if b := make([]byte, rounded); aligned(b, pageSize) {
		return b[:n:n]
	}
	b := make([]byte, rounded+pageSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageSize - 1)
	return b[skip : skip+n : skip+n]
}

// aligned tells whether p begins at a multiple of n, a power of two.
func aligned(p []byte, n int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(n-1) == 0
}

// bounceSize is the length in bytes of the buffers through which requests with
// misaligned memory go, piece by piece.
const bounceSize = 128 << 10

type bounceBuffer struct {
	data []byte
}

var bounceBuffers = sync.Pool{New: func() any { return &bounceBuffer{Buffer(bounceSize)} }}

// zeros is what zeros are written from where the kernel has no better way.
var zeros = sync.OnceValue(func() []byte { return Buffer(1 << 20) })
