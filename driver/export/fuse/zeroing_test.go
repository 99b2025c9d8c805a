package fuse

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export/exporttest"
)

// TestZeroingWouldBeDiscard shows that the test of zeroing in exporttest can
// fail, and what the probing at attach is for: when it is made undone, which a
// change of the block size does, the file system is damaged.
func TestZeroingWouldBeDiscard(t *testing.T) {
	dev := exporttest.NewDevice(256<<20, 4096)
	e := exportTest(t, dev, 4096)
	if e.DiscardsAmbiguous() {
		t.Skip("discards are zeroings on this kernel")
	}
	intact := exporttest.ZeroOnExt4(t, e, dev, func() {
		fd, err := unix.Open(e.Path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for _, size := range []int{512, 4096} {
			if err := unix.IoctlSetInt(fd, unix.LOOP_SET_BLOCK_SIZE, size); err != nil {
				t.Fatal(err)
			}
		}
	})
	if intact {
		t.Log("this kernel does not need the probing")
	}
}

// TestZeroingAmbiguous runs the same as if the kernel could not tell.
func TestZeroingAmbiguous(t *testing.T) {
	dev := exporttest.NewDevice(256<<20, 4096)
	e := exportTest(t, dev, 4096)
	e.srv.discards.Store(discardsAmbiguous)
	intact := exporttest.ZeroOnExt4(t, e, dev, func() {})
	if !intact {
		t.Error("the file system is damaged")
	}
	if n := dev.Count(exporttest.Discard); n != 0 {
		t.Errorf("%d discards", n)
	}
	if dev.Count(exporttest.WriteZeroes) == 0 {
		t.Error("discards have not become zeroings")
	}
}
