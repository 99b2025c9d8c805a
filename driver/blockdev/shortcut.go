package blockdev

import "time"

// Shortcut is a read or a write that its caller does himself on a descriptor, many at
// once perhaps, instead of waiting for the methods of a Device.
type Shortcut struct {
	Write  bool
	Offset int64 // bytes, of the Device and of the descriptor alike
	Length int64 // bytes, not 0

	FD int // of what BeginShortcut has set it to

	// For those who are passed on the way down.
	Began time.Time
	Held  any
}

// Shortcutter is a Device with some of whose requests there is nothing to do but the
// same request to a file or a block device.
//
// Such a request may be done as a Shortcut: BeginShortcut, then the read or write of
// all of it on FD, with memory that begins at a page, then EndShortcut. If it has
// failed, or has been done in part only, it is done again as ReadAt or WriteAt after
// that, so that all errors have one origin.
type Shortcutter interface {
	Device

	// BeginShortcut tells whether s may be done so now, and sets s.FD. It waits for
	// nothing that takes long.
	BeginShortcut(s *Shortcut) bool

	// EndShortcut is called once for each BeginShortcut that returned true, by any
	// goroutine.
	EndShortcut(s *Shortcut)
}

// BeginShortcut implements Shortcutter: for direct I/O, for the kernel does nothing
// else while somebody goes on.
func (f *File) BeginShortcut(s *Shortcut) bool {
	if f.align.memory == buffered.memory || s.Write && f.readOnly || CheckRange(s.Offset, s.Length, f.Size(), f.align.offset) != nil {
		return false
	}
	s.FD = f.fd
	return true
}

// EndShortcut implements Shortcutter.
func (f *File) EndShortcut(*Shortcut) {}
