package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A fileID tells files of the whole host apart.
type fileID struct {
	dev, ino uint64
}

// A loop is a loop device and the file it was attached to. The devices belong
// to the whole host, so a device is a machine's by what it is attached to.
type loop struct {
	device string
	file   fileID
}

// loops lists the loop devices that are attached to files in the machine's
// directory, or in file systems that only processes of the machine have
// mounted (a FUSE file system, say). The latter are found only while the
// machine runs.
func (s *Spec) loops() ([]loop, error) {
	all, err := attachedLoops()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	mounted, err := s.ownMounts()
	if err != nil {
		return nil, err
	}
	files := map[fileID]bool{}
	err = filepath.WalkDir(s.Dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the machine is alive
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(name, &st) == nil {
			files[fileID{st.Dev, st.Ino}] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var own []loop
	for _, l := range all {
		if mounted[l.file.dev] || files[l.file] {
			own = append(own, l)
		}
	}
	return own, nil
}

// ownMounts returns the device numbers of the file systems that processes of
// the machine see and the calling process does not.
func (s *Spec) ownMounts() (map[uint64]bool, error) {
	pids, err := s.Cgroup.Processes()
	if err != nil {
		return nil, err
	}
	own := map[uint64]bool{}
	for _, pid := range pids {
		devices, err := mountedDevices(strconv.Itoa(pid))
		if err != nil {
			continue // it ended meanwhile
		}
		maps.Copy(own, devices)
	}
	host, err := mountedDevices("self")
	if err != nil {
		return nil, err
	}
	for dev := range host {
		delete(own, dev)
	}
	return own, nil
}

func attachedLoops() ([]loop, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []loop
	for _, name := range names {
		device := filepath.Join("/dev", strings.Split(name, "/")[3])
		file, err := backing(device)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, loop{device, file})
	}
	return all, nil
}

// backing returns which file a loop device is attached to; ENXIO if to none.
func backing(device string) (fileID, error) {
	f, err := os.Open(device)
	if err != nil {
		return fileID{}, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fileID{}, &os.PathError{Op: "reading the loop status", Path: device, Err: err}
	}
	return fileID{kernelDev(info.Device), info.Inode}, nil
}

// kernelDev turns a device number as the loop driver tells it (the kernel's
// huge_encode_dev) into one as in a Stat_t. They are the same up to 12 bits of
// major and 20 of minor, which is all that the kernel uses.
func kernelDev(dev uint64) uint64 {
	major := uint32(dev>>8) & 0xfff
	minor := uint32(dev&0xff) | uint32(dev>>12)&0xfff00
	return unix.Mkdev(major, minor)
}

// detach frees the device if it is attached to the same file still. Its
// last user may be just about to let go of it.
func (l loop) detach() error {
	detached := func() (bool, error) {
		f, err := os.OpenFile(l.device, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer f.Close()
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if errors.Is(err, unix.ENXIO) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if (fileID{kernelDev(info.Device), info.Inode}) != l.file {
			return true, nil
		}
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return false, err
		}
		return false, nil // it is free when this descriptor is closed
	}
	err := waitUntil(20*time.Second, detached, "it is in use still")
	if err != nil {
		return fmt.Errorf("detaching the loop device %s: %w", l.device, err)
	}
	return nil
}

// mountedDevices are the device numbers of the file systems that a process
// sees mounted.
func mountedDevices(pid string) (map[uint64]bool, error) {
	f, err := os.Open(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	devices := map[uint64]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		ma, err1 := strconv.ParseUint(major, 10, 32)
		mi, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 == nil && err2 == nil {
			devices[unix.Mkdev(uint32(ma), uint32(mi))] = true
		}
	}
	return devices, lines.Err()
}
