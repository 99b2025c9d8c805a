package filesystem

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Make makes a file system of type Ext4 or XFS on a device or in an image file.
// Further arguments are given to mkfs as they are. It returns ErrNotEmpty, and
// changes nothing, unless Probe says that there is nothing; an XFS that an
// earlier mkfs did not finish counts as nothing.
//
// Nothing is discarded: there is nothing to discard, and on a preallocated image
// it would give back the space that was reserved.
//
// The inode tables of an ext4 are written now rather than by the kernel after the
// mount. That writer takes its time and writes blocks that are in use, so each of
// its writes after a checkpoint would have to be backed up. Now it takes as
// much space as it would later, and hardly any time on devices that can
// write zeros without transferring them, as loop devices can.
//
// If ctx ends, what the tool had written is overwritten with zeros again, so that
// the next try finds an empty device.
func Make(ctx context.Context, device, fsType string, args ...string) error {
	if err := makeFilesystem(ctx, device, fsType, args); err != nil {
		return fmt.Errorf("make %s on %s: %w", fsType, device, err)
	}
	return nil
}

func makeFilesystem(ctx context.Context, device, fsType string, args []string) error {
	found, err := Probe(ctx, device)
	if err != nil {
		return err
	}
	if found.Kind != Empty && !found.unfinished {
		return fmt.Errorf("%w: found %s", ErrNotEmpty, found)
	}
	switch fsType {
	case Ext4:
		// -F: do not ask whether a whole disk is meant. It does not make mkfs
		// write to a mounted device. -m0: keep nothing back for root.
		args = append([]string{"-F", "-q", "-m0"}, extendedOptions(args)...)
	case XFS:
		args = append([]string{"-q", "-K"}, args...)
		if found.unfinished {
			args = append(args, "-f")
		}
	default:
		return fmt.Errorf("file systems of type %q: %w", fsType, ErrNotSupported)
	}
	err = run(ctx, "mkfs."+fsType, append(args, device)...)
	if err != nil && ctx.Err() != nil {
		if wipeErr := wipeEdges(device); wipeErr != nil {
			return fmt.Errorf("%w; and the beginnings of it could not be removed: %w", err, wipeErr)
		}
	}
	return err
}

// extendedOptions adds our extended options of mkfs.ext4 to those in args, which
// win. Of several -E mkfs.ext4 would obey only the last.
func extendedOptions(args []string) []string {
	const ours = "nodiscard,lazy_itable_init=0"
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "-E" && i+1 < len(args) {
			args[i+1] = ours + "," + args[i+1]
			return args
		}
	}
	return append([]string{"-E", ours}, args...)
}

// wipeEdges makes the ends of a device zero that a killed mkfs has written to.
// Both were zero before.
func wipeEdges(device string) error {
	// O_EXCL: never on a block device that somebody has mounted.
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	zeros := make([]byte, min(size, edgeBytes))
	if _, err := f.WriteAt(zeros, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(zeros, size-int64(len(zeros))); err != nil {
		return err
	}
	return f.Sync()
}
