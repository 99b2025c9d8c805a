package filesystem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// Sync writes everything of the file system at mountpoint to its device, while its
// users go on. Right before Freeze it shortens the time that they are blocked
// from that of all that is in memory to a few milliseconds.
func Sync(mountpoint string) error {
	f, err := openMount(mountpoint)
	if err != nil {
		return fmt.Errorf("sync %s: %w", mountpoint, err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", mountpoint, err)
	}
	return nil
}

// Freeze blocks whoever writes to the file system at mountpoint, until Thaw, and
// writes everything to its device, so that what is there is consistent. It
// returns ErrFrozen if it is frozen already, by whomever.
//
// A frozen file system cannot be unmounted properly and its writers cannot be
// killed: whoever freezes must see to it that it is thawed, whatever happens.
func Freeze(mountpoint string) error {
	if err := freezeIoctl(mountpoint, linuxabi.FSFreeze); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = ErrFrozen
		}
		return fmt.Errorf("freeze %s: %w", mountpoint, err)
	}
	return nil
}

// Thaw ends Freeze. It returns ErrNotFrozen if the file system is not frozen.
func Thaw(mountpoint string) error {
	if err := freezeIoctl(mountpoint, linuxabi.FSThaw); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = ErrNotFrozen
		}
		return fmt.Errorf("thaw %s: %w", mountpoint, err)
	}
	return nil
}

func freezeIoctl(mountpoint string, request uint) error {
	f, err := openMount(mountpoint)
	if err != nil {
		return err
	}
	defer f.Close()
	return notSupported(unix.IoctlSetInt(int(f.Fd()), request, 0))
}

// notSupported turns what the kernel says of an ioctl that a file system does
// not have into ErrNotSupported.
func notSupported(err error) error {
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return ErrNotSupported
	}
	return err
}
