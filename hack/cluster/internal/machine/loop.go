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

// A loop is a loop device that is attached to a file. The devices belong to the
// whole host; whose one is must be found out.
type loop struct {
	name     string // loop0, for instance
	dev      uint64 // its own device number
	sequence string // another one for each file that it was attached to
}

// loops lists the loop devices that are the machine's: mounted by one of its
// processes, or attached to a file in the machine's directory or in a file
// system that only its processes have mounted (a FUSE file system, say). What
// is mounted can be seen only while the machine runs.
//
// A device whose file system died before, and that nobody has mounted, could be
// anybody's and is left alone.
func (s *Spec) loops() ([]loop, error) {
	all, err := attachedLoops()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	mounted, err := s.ownMounts()
	if err != nil {
		return nil, err
	}
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	var own []loop
	for _, l := range all {
		if !mounted[l.dev] {
			file, ok := l.backing()
			if !ok || !mounted[file.dev] && !files[file] {
				continue
			}
		}
		own = append(own, l)
	}
	return own, nil
}

// files are the regular files in the machine's directory.
func (s *Spec) files() (map[fileID]bool, error) {
	files := map[fileID]bool{}
	err := filepath.WalkDir(s.Dir, func(name string, d fs.DirEntry, err error) error {
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
	return files, err
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
		l := loop{name: strings.Split(name, "/")[3]}
		number, err := os.ReadFile(l.attribute("dev"))
		if err != nil {
			continue // removed meanwhile
		}
		dev, ok := parseDev(strings.TrimSpace(string(number)))
		if !ok {
			return nil, fmt.Errorf("%s is not understood: %q", l.attribute("dev"), number)
		}
		l.dev, l.sequence = dev, l.readSequence()
		all = append(all, l)
	}
	return all, nil
}

func (l loop) device() string               { return filepath.Join("/dev", l.name) }
func (l loop) attribute(name string) string { return filepath.Join("/sys/block", l.name, name) }

// readSequence is empty before Linux 5.15.
func (l loop) readSequence() string {
	b, err := os.ReadFile(l.attribute("diskseq"))
	if err != nil {
		return ""
	}
	return string(b)
}

// backingLimit is for a file system to tell which file it is that a device is
// attached to. A live one does it at once.
const backingLimit = 2 * time.Second

// backing returns which file the device is attached to, if that can be found
// out: the kernel asks the file system, and with FUSE that is a process, which
// may be dead or stuck.
func (l loop) backing() (fileID, bool) {
	f, err := os.Open(l.device())
	if err != nil {
		return fileID{}, false
	}
	answer := make(chan *unix.LoopInfo64, 1)
	go func() {
		defer f.Close()
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if err != nil {
			info = nil
		}
		answer <- info
	}()
	select {
	case info := <-answer:
		if info == nil {
			return fileID{}, false
		}
		return fileID{kernelDev(info.Device), info.Inode}, true
	case <-time.After(backingLimit):
		return fileID{}, false
	}
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
		_, err := os.Stat(l.attribute("loop/backing_file"))
		if err != nil || l.readSequence() != l.sequence {
			return true, nil
		}
		f, err := os.OpenFile(l.device(), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer f.Close()
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return false, err
		}
		return false, nil // it is free when this descriptor is closed
	}
	if err := waitUntil(20*time.Second, detached, "it is in use still"); err != nil {
		return fmt.Errorf("detaching the loop device %s: %w", l.device(), err)
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
		if dev, ok := parseDev(fields[2]); ok {
			devices[dev] = true
		}
	}
	return devices, lines.Err()
}

// parseDev reads a device number that is written MAJOR:MINOR.
func parseDev(s string) (uint64, bool) {
	major, minor, _ := strings.Cut(s, ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(ma), uint32(mi)), err1 == nil && err2 == nil
}
