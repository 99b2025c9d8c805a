package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// packages are Debian's names of what builds and runs a cluster.
var packages = []string{
	"gcc", "libc6-dev", "libseccomp-dev", "pkg-config", // runc
	"mmdebstrap", "debian-archive-keyring", "buildah", // images
	"iproute2", "util-linux", "mount", // machines
}

const gib = 1 << 30

// Free space that is asked for before anything is begun, measured and rounded
// up: a cold build fills Go's caches and ours; a cluster holds the unpacked
// images, once a node.
const (
	needCold    = 8 * gib
	needCluster = 1 * gib
	needNode    = 2 * gib
)

// preflight refuses where a cluster cannot run, and installs what is missing.
func (c *Cluster) preflight(ctx context.Context, nodes int) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster makes namespaces, mounts and cgroups; run this as root")
	}
	if err := checkNamespaces(ctx); err != nil {
		return err
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("\toverlay\n")) {
		return errors.New("the kernel has no overlay file system, which containers are made of; 'modprobe overlay' may help")
	}
	if strings.ContainsAny(c.dir+c.cache.Dir, `,:\`) {
		return fmt.Errorf("the directories %s and %s must not contain any of , : \\ ; set %s and %s", c.dir, c.cache.Dir, StateVariable, CacheVariable)
	}
	cold := uint64(0)
	if _, err := os.Stat(filepath.Join(c.cache.Dir, "rootfs")); err != nil {
		cold = needCold
	}
	if err := checkSpace(c.cache.Dir, cold, CacheVariable); err != nil {
		return err
	}
	if err := checkSpace(filepath.Dir(c.dir), uint64(needCluster+nodes*needNode), StateVariable); err != nil {
		return err
	}
	install := exec.CommandContext(ctx, filepath.Join(c.cache.Checkout, "hack/install-packages.sh"), packages...)
	install.Stdout, install.Stderr = c.out, c.out
	if err := install.Run(); err != nil {
		return fmt.Errorf("installing what a cluster needs: %w", err)
	}
	return nil
}

// checkNamespaces tries them: there are many ways to forbid them.
func checkNamespaces(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("this machine does not allow network, mount and process namespaces (%w); in a container, it must be a privileged one", err)
	}
	return nil
}

// checkSpace makes dir and sees whether its file system has that many bytes
// free.
func checkSpace(dir string, need uint64, variable string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("looking for free space in %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < need {
		return fmt.Errorf("%s has %.1f GiB free, %.1f are needed; make space or set %s to another directory",
			dir, float64(free)/gib, float64(need)/gib, variable)
	}
	return nil
}
