package filesystem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// xfsLogJump is by how many cycles AdvanceLog advances a log. With one cycle all of
// the log has been written, 64 MiB mostly: this is more than a file system writes there
// while a checkpoint is open, and a 2,000th of the numbers that there are.
const xfsLogJump = 1 << 20

// Where fields of the XFS superblock and of the first record of a log are.
const (
	xfsLogStart     = 48  // u64, block of the file system, 0 for an external log
	xfsAGBlocks     = 84  // u32
	xfsAGBlocksLog2 = 124 // u8
	xfsLogMagic     = 0   // u32
	xfsLogCycle     = 4   // u32
	xfsLogMagicWant = 0xfeedbabe
)

// AdvanceLog makes the log of the XFS on a block device go on with numbers that are far
// above those that it has had. The file system is not mounted, and was unmounted properly,
// so that nothing is in its log. It returns ErrBusy if it is in use.
//
// XFS notes in each block of metadata with which number of its log it was changed last,
// and after a crash leaves alone what seems to be newer than its log. When a device has
// got back the content of an earlier time, but for the blocks that were free then, such
// blocks have numbers of a time that has not been. Should one be allocated again, and
// the machine stop, XFS would find that instead of what its log has for the block.
// xfs_repair advances the log for the same reason.
//
// If it is interrupted it has to be done again before the file system is mounted.
func AdvanceLog(ctx context.Context, device string) error {
	used, err := InUse(device)
	if err == nil && used {
		err = ErrBusy
	}
	cycle := int64(0)
	if err == nil {
		cycle, err = xfsCycle(device)
	}
	if err == nil && cycle > math.MaxInt32-xfsLogJump {
		err = errors.New("there are no higher numbers; xfs_repair can tell whether it needs them")
	}
	want := cycle + xfsLogJump
	if err == nil {
		err = run(ctx, "xfs_db", "-x", "-c", "logformat -c "+strconv.FormatInt(want, 10), device)
	}
	if err == nil {
		// The tool's exit code does not tell whether it was done.
		if cycle, err = xfsCycle(device); err == nil && cycle != want {
			err = fmt.Errorf("the log is in cycle %d, want %d", cycle, want)
		}
	}
	if err != nil {
		return fmt.Errorf("advance the log of the XFS on %s: %w", device, err)
	}
	return nil
}

// xfsCycle returns the cycle that the log of the XFS on a device is in.
func xfsCycle(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// What the kernel's XFS has written is not seen through the cache of the device, nor
	// does XFS see what is in there.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil && !errors.Is(err, unix.ENOTTY) {
		return 0, fmt.Errorf("emptying its cache: %w", err)
	}
	var head [512]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, err
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	start, perGroup := u64(head[xfsLogStart:]), head[xfsAGBlocksLog2]
	if string(head[xfsMagic:xfsMagic+4]) != "XFSB" || start == 0 || perGroup >= 32 {
		return 0, errors.New("no XFS with a log of its own")
	}
	block := start>>perGroup*uint64(u32(head[xfsAGBlocks:])) + start&(1<<perGroup-1)
	size := uint64(u32(head[xfsBlockSize:]))
	if size == 0 || block > math.MaxInt64/size {
		return 0, errors.New("no XFS with a log of its own")
	}
	if _, err := f.ReadAt(head[:], int64(block*size)); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	// A sector of the log begins with its cycle, that of the beginning of a record with
	// a magic number before it.
	cycle := u32(head[xfsLogMagic:])
	if cycle == xfsLogMagicWant {
		cycle = u32(head[xfsLogCycle:])
	}
	return int64(cycle), nil
}
