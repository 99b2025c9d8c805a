package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountRoot makes the machine's root file system the root of the calling
// process, which must be in a mount namespace of its own. Afterwards nothing
// of the host's file systems is visible but the binds and the devices.
func (s *Spec) mountRoot() error {
	root := s.path("root")
	// What is mounted from now on must not appear on the host.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", s.RootFS, s.path("upper"), s.path("work"))
	if err := mount("overlay", root, "overlay", 0, layers); err != nil {
		return err
	}
	for _, m := range []struct {
		kind, target, options string
		flags                 uintptr
	}{
		{"proc", "proc", "", 0},
		{"sysfs", "sys", "", 0},
		{"devtmpfs", "dev", "", 0},
		{"devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5", 0},
		{"mqueue", "dev/mqueue", "", 0},
		{"tmpfs", "dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(m.kind, target, m.kind, m.flags, m.options); err != nil {
			return err
		}
	}
	if err := mount("/sys/fs/cgroup", filepath.Join(root, "sys/fs/cgroup"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	binds := append([]Bind{
		{Source: s.path("lib"), Target: "/var/lib"},
		{Source: s.path("log"), Target: "/var/log"},
	}, s.Binds...)
	for _, b := range binds {
		if err := bind(b.Source, filepath.Join(root, b.Target), b.ReadOnly); err != nil {
			return err
		}
	}
	if err := guardSysctls(root); err != nil {
		return err
	}
	return pivot(root)
}

// pivot makes root the root file system and lets go of the old one.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// Both on the same directory: the old root comes to lie on the new one,
	// from where it is taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd does it on a real node. Without, the container runtime
	// refuses mounts with Bidirectional propagation.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// kubeletSysctls are what the kubelet sets at its start, with its values.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// guardSysctls keeps the machine from changing the kernel's settings for the
// whole host: /proc/sys is read-only but for the network's part, which each
// network namespace has for itself. The kubelet insists on some values; it
// finds them in files that lie over the real ones.
//
// The boot id is another one at each start, as after a real boot: that is how
// the kubelet knows that it was down.
func guardSysctls(root string) error {
	sys := filepath.Join(root, "proc/sys")
	if err := bind(sys, sys, true); err != nil {
		return err
	}
	if err := bind(filepath.Join(sys, "net"), filepath.Join(sys, "net"), false); err != nil {
		return err
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid") // a new one at each read
	if err != nil {
		return err
	}
	values := map[string]string{"kernel/random/boot_id": string(id)}
	for name, value := range kubeletSysctls {
		values[name] = value + "\n"
	}
	for name, value := range values {
		target := filepath.Join(sys, name)
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file := filepath.Join(root, "run/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return err
		}
		if err := mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// bind shows the directory source at target, which is made.
func bind(source, target string, readOnly bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// The flags of a bind count only when it is mounted again.
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return mount("", target, "", flags, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return &os.PathError{Op: "mount " + kind, Path: target, Err: err}
	}
	return nil
}
