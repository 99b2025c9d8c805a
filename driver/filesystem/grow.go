package filesystem

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/mount-utils"
)

// Grow makes the mounted file system on device as large as the device is now,
// while it is in use. If there is nothing to grow it does nothing.
func Grow(ctx context.Context, device, mountpoint string) error {
	grown, err := mount.NewResizeFs(bind(ctx)).Resize(device, mountpoint)
	switch {
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && strings.Contains(err.Error(), "Permission denied to resize"):
		err = fmt.Errorf("the kernel lets only processes with the capability CAP_SYS_RESOURCE grow a mounted ext4: %w", err)
	case err == nil && !grown:
		err = errors.New("no file system found")
	}
	if err != nil {
		return fmt.Errorf("grow the file system on %s at %s: %w", device, mountpoint, err)
	}
	return nil
}
