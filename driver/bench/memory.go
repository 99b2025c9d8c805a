package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Goals for the memory of a volume of 1 TiB, in bytes: what is resident and not
// backed by files. The program itself and what it needs for any number of volumes are
// there once.
const (
	goalMemoryIdle    = 4 * mib   // of a volume, if nothing is done with it
	goalMemoryExtents = 100 * mib // of the process of one volume
)

// memory measures the process that serves an idle sparse volume of 1 TiB, and
// then the same after work that has touched all of its buffers.
func (b *bench) memory(ctx context.Context) (err error) {
	image := filepath.Join(b.images, "memory.img")
	if err := sparseImage(image, 1<<40); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	b.progress("memory, %d times", b.Rounds)
	for range b.Rounds {
		if err := b.measureMemory(ctx, image); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	return nil
}

func (b *bench) measureMemory(ctx context.Context, image string) (err error) {
	m, err := b.attach(ctx, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.detach()) }()
	add := func(key, work string, goal float64, field string) error {
		return b.addMemory(m, key, work, goal, field)
	}
	// What attaching needed is given back by then, as far as it ever is.
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	if err := add("memory-idle", "memory, idle volume of 1 TiB", 0, "VmRSS"); err != nil {
		return err
	}
	if err := add("memory-idle-anonymous", "of that not backed by files", 0, "RssAnon"); err != nil {
		return err
	}
	w := work{rw: "read", blockSize: 1 * mib, depth: 64}
	if _, err := fio(ctx, m.device, w, region{0, 1 << 30}, b.run/2, false); err != nil {
		return err
	}
	return add("memory-after", "memory, after reads of 1 MiB at depth 64", 0, "VmRSS")
}

// addMemory adds a field of the status of the process that serves m as a figure.
func (b *bench) addMemory(m *mapped, key, work string, goal float64, field string) error {
	n, err := residentMemory(m.cmd.Process.Pid, field)
	if err == nil {
		b.results.row(row{key: key, work: work, unit: amount, goal: goal}).add(float64(n))
	}
	return err
}

// residentMemory reads a field of a process's status, in bytes.
func residentMemory(pid int, field string) (int64, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s says nothing of %s", path, field)
}
