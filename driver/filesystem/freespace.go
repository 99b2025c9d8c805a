package filesystem

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// fsMapPage is one query of the space map with room for its answer. It is large
// (1 MiB) because ext4 looks at all of its block groups for every query, which
// takes 30 ms on 2 TiB.
type fsMapPage struct {
	head    linuxabi.FSMapHead
	records [16384]linuxabi.FSMap
}

// FreeSpace calls fn for each free extent of the file system at mountpoint, in
// ascending order, with its place on the file system's block device in bytes. An
// external log or realtime device is left out. It stops at an error of fn and
// returns it. It returns ErrNotSupported if the file system cannot tell.
//
// All free space is told, trimmed before or not, groups that ext4 has never
// initialised included. Blocks that the file system keeps for itself or has set
// aside for a file are not. On a frozen file system the answer is exact; on one
// that is being written to, an extent may be in use by the time fn sees it.
func FreeSpace(ctx context.Context, mountpoint string, fn func(off, length int64) error) error {
	f, err := openMount(mountpoint)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", mountpoint, err)
	}
	defer f.Close()
	page := new(fsMapPage)
	if err := page.walkFree(ctx, f, len(page.records), fn); err != nil {
		return fmt.Errorf("free space of %s: %w", mountpoint, err)
	}
	return nil
}

// walkFree calls fn for the free extents of the file system that f is on, with
// queries for pageLen records each.
func (p *fsMapPage) walkFree(ctx context.Context, f *os.File, pageLen int, fn func(off, length int64) error) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	device := uint32(st.Dev) // the kernel's 32-bit encoding is the low half
	p.head = linuxabi.FSMapHead{
		Count: uint32(pageLen),
		Low:   linuxabi.FSMap{Device: device},
		High: linuxabi.FSMap{
			Device:   math.MaxUint32,
			Flags:    math.MaxUint32,
			Physical: math.MaxUint64,
			Owner:    math.MaxUint64,
			Offset:   math.MaxUint64,
		},
	}
	end := uint64(0) // of the last extent given to fn
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := ioctl(f, linuxabi.FSGetMap, unsafe.Pointer(p)); err != nil {
			return notSupported(err)
		}
		if p.head.OutFlags&linuxabi.FSMapDeviceIsDevT == 0 {
			return fmt.Errorf("%w: the space map does not name devices by number", ErrNotSupported)
		}
		records := p.records[:min(int(p.head.Entries), pageLen)]
		for _, r := range records {
			if r.Device != device || r.Flags&linuxabi.FSMapSpecialOwner == 0 || r.Owner != linuxabi.FSMapOwnFree {
				continue
			}
			if r.Physical < end || r.Length == 0 || r.Length > math.MaxInt64-r.Physical || r.Physical > math.MaxInt64 {
				return fmt.Errorf("the kernel's space map is out of order at byte %d (+%d)", r.Physical, r.Length)
			}
			if err := fn(int64(r.Physical), int64(r.Length)); err != nil {
				return err
			}
			end = r.Physical + r.Length
		}
		if len(records) == 0 || records[len(records)-1].Flags&linuxabi.FSMapLast != 0 {
			return nil
		}
		last := records[len(records)-1]
		if last == p.head.Low {
			return errors.New("the kernel's space map does not go on")
		}
		p.head.Low = last
	}
}
