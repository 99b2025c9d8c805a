package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// blockSize is the logical block size of all devices, in bytes.
const blockSize = 4096

// rawLoop puts a loop device with direct I/O on an image, as `losetup
// --direct-io=on --sector-size 4096` does. The device goes when the file that is
// returned is closed, even if that is because the process was killed.
func rawLoop(image string) (*os.File, error) {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("finding a free loop device: %w", err)
		}
		dev, err := configureLoop(n, file)
		if errors.Is(err, unix.EBUSY) {
			continue // somebody else was faster
		}
		return dev, err
	}
}

func configureLoop(n int, file *os.File) (*os.File, error) {
	name := "loop" + strconv.Itoa(n)
	dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: blockSize}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		dev.Close()
		return nil, fmt.Errorf("%s on %s: %w", dev.Name(), file.Name(), err)
	}
	dio, err := os.ReadFile("/sys/block/" + name + "/loop/dio")
	if err == nil && strings.TrimSpace(string(dio)) != "1" {
		err = errors.New("its file system does no direct I/O, so there is nothing to compare with; use another directory")
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("%s on %s: %w", dev.Name(), file.Name(), err)
	}
	return dev, nil
}

// writeImage makes an image of size bytes in which every block has been written,
// so that no figure contains the allocation of blocks.
func writeImage(path string, size int64, stop func() error) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%s: allocating %d bytes: %w", path, size, err)
	}
	buf := make([]byte, 4<<20)
	for i := range buf {
		buf[i] = byte(i*7 + i>>8)
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := stop(); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// Direct I/O would have to drop it, page by page.
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// sparseImage makes an image of size bytes in which no block has been written.
func sparseImage(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}
