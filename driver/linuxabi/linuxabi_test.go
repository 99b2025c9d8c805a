package linuxabi

import "testing"

// size is a size or an offset that the kernel has for something, bytes.
type size struct {
	name      string
	got, want uintptr
}

func checkSizes(t *testing.T, sizes []size) {
	t.Helper()
	for _, s := range sizes {
		if s.got != s.want {
			t.Errorf("%s: %d bytes, want %d", s.name, s.got, s.want)
		}
	}
}
