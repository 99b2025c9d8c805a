package linuxabi

import (
	"testing"
	"unsafe"
)

// TestFSSizes holds the structures to the sizes that are part of the requests'
// numbers (bits 16 to 29).
func TestFSSizes(t *testing.T) {
	for _, test := range []struct {
		name    string
		request uint32
		size    uintptr
	}{
		{"FSTrim", FSTrim, unsafe.Sizeof(FSTrimRange{})},
		{"FSGetMap", FSGetMap, unsafe.Sizeof(FSMapHead{})},
	} {
		if want := uintptr(test.request >> 16 & 0x3fff); test.size != want {
			t.Errorf("%s: the structure has %d bytes, the request %d", test.name, test.size, want)
		}
	}
	if size := unsafe.Sizeof(FSMap{}); size != 64 {
		t.Errorf("FSMap has %d bytes, not 64", size)
	}
}
