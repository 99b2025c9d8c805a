package filesystem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// xfsLogJump is by how many cycles a log is advanced. With one cycle all of
// the log has been written, 64 MiB mostly: this is more than a file system writes there
// while a checkpoint is open, and a 2,000th of the numbers that there are.
const xfsLogJump = 1 << 20

// Where fields of the XFS superblock and of the first record of a log are.
const (
	xfsLogStart     = 48  // u64, block of the file system, 0 for an external log
	xfsAGBlocks     = 84  // u32
	xfsLogBlocks    = 96  // u32
	xfsAGBlocksLog2 = 124 // u8
	xfsLogMagic     = 0   // u32
	xfsLogCycle     = 4   // u32
	xfsLogMagicWant = 0xfeedbabe
)

// AdvanceLog makes the log of the XFS on a block device go on with cycle, which
// NextCycle has told, that is to say, with numbers that are far above those that it has
// had. The file system is not mounted, and was unmounted properly, so that nothing is in
// its log. It returns ErrBusy if it is in use.
//
// XFS notes in each block of metadata with which number of its log it was changed last,
// and after a crash leaves alone what seems to be newer than its log. When a device has
// got back the content of an earlier time, but for the blocks that were free then, such
// blocks have numbers of a time that has not been. Should one be allocated again, and
// the machine stop, XFS would find that instead of what its log has for the block.
// xfs_repair advances the log for the same reason.
//
// If it is interrupted, or fails and Untouched does not hold, it has to be done again,
// with the same cycle and again set, before the file system is mounted.
func AdvanceLog(ctx context.Context, device string, cycle int64, again bool) error {
	err := notInUse(device)
	if err == nil && again {
		// The tool does not make out a log that was half written, but one that was
		// never used.
		err = eraseXFSLog(device)
	}
	if err == nil {
		err = run(ctx, "xfs_db", "-x", "-c", "logformat -c "+strconv.FormatInt(cycle, 10), device)
	}
	if err == nil {
		// The tool's exit code does not tell whether it was done, and all of it.
		var first, last int64
		first, last, err = xfsCycles(device)
		if err == nil && (first != cycle || last != cycle-1) {
			err = fmt.Errorf("the log is in cycles %d and %d, want %d and %d", first, last, cycle, cycle-1)
		}
	}
	if err != nil {
		return fmt.Errorf("advance the log of the XFS on %s: %w", device, err)
	}
	return nil
}

// notInUse returns ErrBusy if a block device is in use.
func notInUse(device string) error {
	used, err := InUse(device)
	if err == nil && used {
		err = ErrBusy
	}
	return err
}

// NextCycle returns the cycle with which AdvanceLog is to let the log of the XFS on a
// block device go on. It returns ErrBusy if that is in use.
func NextCycle(device string) (int64, error) {
	cycle, err := int64(0), notInUse(device)
	if err == nil {
		cycle, _, err = xfsCycles(device)
	}
	if err == nil && cycle > math.MaxInt32-xfsLogJump {
		err = errors.New("there are no higher numbers")
	}
	if err != nil {
		return 0, fmt.Errorf("the log of the XFS on %s: %w", device, err)
	}
	return cycle + xfsLogJump, nil
}

// Untouched tells whether an AdvanceLog that has failed, for want of a tool that knows
// the file system for instance, has left the log as it was when NextCycle told cycle.
func Untouched(device string, cycle int64) bool {
	now, _, err := xfsCycles(device)
	return err == nil && now == cycle-xfsLogJump
}

// eraseXFSLog makes the log of a clean XFS look like one that was never used.
func eraseXFSLog(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	start, _, err := xfsLog(f)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), start)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// xfsLog returns where the log of the XFS on f is, bytes.
func xfsLog(f *os.File) (start, length int64, err error) {
	// What the kernel's XFS has written is not seen through the cache of the device, nor
	// does XFS see what is in there.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return 0, 0, fmt.Errorf("emptying its cache: %w", err)
	}
	var head [512]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, 0, err
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	at, perGroup := u64(head[xfsLogStart:]), head[xfsAGBlocksLog2]
	size, blocks := uint64(u32(head[xfsBlockSize:])), uint64(u32(head[xfsLogBlocks:]))
	if string(head[xfsMagic:xfsMagic+4]) != "XFSB" || at == 0 || perGroup >= 32 || size < 512 || size > 64<<10 || blocks == 0 {
		return 0, 0, errors.New("no XFS with a log of its own")
	}
	block := at>>perGroup*uint64(u32(head[xfsAGBlocks:])) + at&(1<<perGroup-1)
	if block > math.MaxInt64/size-blocks {
		return 0, 0, errors.New("no XFS with a log of its own")
	}
	return int64(block * size), int64(blocks * size), nil
}

// xfsCycles returns the cycles that the first and the last sector of the log of the XFS
// on a device were written in.
func xfsCycles(device string) (first, last int64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	start, length, err := xfsLog(f)
	if err != nil {
		return 0, 0, err
	}
	// A sector of the log begins with its cycle, that of the beginning of a record with
	// a magic number before it.
	cycle := func(off int64) int64 {
		var sector [512]byte
		if _, readErr := f.ReadAt(sector[:], off); readErr != nil {
			err = readErr
		}
		c := binary.BigEndian.Uint32(sector[xfsLogMagic:])
		if c == xfsLogMagicWant {
			c = binary.BigEndian.Uint32(sector[xfsLogCycle:])
		}
		return int64(c)
	}
	first, last = cycle(start), cycle(start+length-512)
	return first, last, err
}
