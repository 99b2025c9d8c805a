package fuse

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/bowline-csi/bowline/driver/export"
)

// enableUringPath is the switch of the kernel for FUSE over io_uring.
const enableUringPath = "/sys/module/fuse/parameters/enable_uring"

// enableUring makes sure that the kernel offers FUSE over io_uring to connections that
// begin now. The switch is for the whole machine, but changes nothing for servers that
// do not ask for it.
func enableUring(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no %s, so this kernel is older than Linux 6.14 or built without: %w", path, export.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("looking for FUSE over io_uring: %w", err)
	}
	if strings.TrimSpace(string(b)) == "Y" {
		return nil
	}
	if err := os.WriteFile(path, []byte("Y"), 0); err != nil {
		return fmt.Errorf("it is off, and switching it on fails (%w): %w", err, export.ErrUnsupported)
	}
	return nil
}

// processors tells which processors are online, and how many there can be.
func processors() (online map[int]bool, possible int, err error) {
	list := func(name string) (map[int]bool, error) {
		b, err := os.ReadFile("/sys/devices/system/cpu/" + name)
		if err != nil {
			return nil, err
		}
		return parseCPUList(strings.TrimSpace(string(b)))
	}
	if online, err = list("online"); err != nil {
		return nil, 0, fmt.Errorf("processors that are online: %w", err)
	}
	all, err := list("possible")
	if err != nil {
		return nil, 0, fmt.Errorf("processors that are possible: %w", err)
	}
	return online, len(all), nil
}

// parseCPUList reads a list of processors such as 0-3,8.
func parseCPUList(s string) (map[int]bool, error) {
	const most = 1 << 16 // what fits the number of a queue
	cpus := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("list of processors %q: %w", s, err)
		}
		last, err := strconv.ParseUint(to, 10, 16)
		if err != nil || last < first || last >= most {
			return nil, fmt.Errorf("list of processors %q: %q is no range", s, part)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus[int(cpu)] = true
		}
	}
	return cpus, nil
}
