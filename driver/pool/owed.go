package pool

import (
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// owed returns how many bytes volumes that are not thin may still ask of the file
// system: for holes, and for extents that they have in common with others. If n of
// them have an extent in common, n-1 may need another, and n-1 at least are clones.
// If a thin volume has it too, all n may.
func (p *Pool) owed() (int64, error) {
	p.promises.Lock()
	sum := p.promises.bytes
	p.promises.Unlock()
	type volume struct {
		image string
		record
	}
	var volumes []volume
	thinShares := false
	err := p.each(func(id string, r *record, err error) {
		switch {
		case err != nil:
		case r.Thin:
			thinShares = thinShares || r.Shares
		default:
			volumes = append(volumes, volume{filepath.Join(p.volumeDir(id), imageFile), *r})
		}
	})
	if err != nil {
		return 0, err
	}
	for _, v := range volumes {
		var st unix.Stat_t
		if err := retry(func() error { return unix.Stat(v.image, &st) }); err != nil {
			continue // it has been deleted
		}
		sum += max(0, v.Size-st.Blocks*512)
		if v.Shares || thinShares {
			sum += sharedBytes(v.image, v.Size)
		}
	}
	return sum, nil
}

// sharedBytes returns how much of the image other files have in common with it; all
// if that cannot be found out.
func sharedBytes(image string, size int64) (sum int64) {
	f, err := os.Open(image)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		return size
	}
	defer f.Close()
	var m struct {
		linuxabi.ExtentMap
		extents [256]linuxabi.FileExtent
	}
	for at := uint64(0); at < uint64(size); {
		m.ExtentMap = linuxabi.ExtentMap{Start: at, Length: uint64(size) - at, Count: uint32(len(m.extents))}
		err := retry(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), linuxabi.FSExtentMap, uintptr(unsafe.Pointer(&m)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if err != nil {
			return size
		}
		if m.Mapped == 0 {
			break
		}
		for _, e := range m.extents[:m.Mapped] {
			if e.Flags&linuxabi.ExtentShared != 0 {
				sum += int64(e.Length)
			}
			at = e.Logical + e.Length
		}
	}
	return min(sum, size)
}
