package filesystem

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/utils/exec"
)

// Check looks for errors in the file system of type fsType on a device or in an
// image, without writing, and returns ErrDamaged with the findings if there are
// any. The file system must have been unmounted properly: what still waits in
// its journal looks like damage.
func Check(ctx context.Context, device, fsType string) error {
	var err error
	var damaged int // exit status of the tool for a file system with errors
	switch fsType {
	case "ext2", "ext3", Ext4:
		damaged = 4
		err = run(ctx, "e2fsck", "-f", "-n", device)
	case XFS:
		damaged = 1
		err = run(ctx, "xfs_repair", "-n", device)
	default:
		err = fmt.Errorf("file systems of type %q: %w", fsType, ErrNotSupported)
	}
	if err == nil {
		return nil
	}
	if exit := exec.ExitError(nil); errors.As(err, &exit) && exit.ExitStatus() == damaged {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("check %s on %s: %w", fsType, device, err)
}
