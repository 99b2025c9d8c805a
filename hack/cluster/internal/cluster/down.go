package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// Down ends the cluster and removes everything of it from this machine but the
// cache. Without a cluster it does nothing.
func (c *Cluster) Down() error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		c.progress("no cluster runs")
	}
	if err := c.remove(); err != nil {
		return err
	}
	if err := os.Remove(c.lockFile()); err != nil {
		return fmt.Errorf("removing the lock: %w", err)
	}
	c.progress("nothing is left of the cluster")
	return nil
}

// remove does what Down does. It goes by the directories that are there and
// reads no state: a crash may have come before that was written, or when it was
// half written.
func (c *Cluster) remove() error {
	dirs, err := filepath.Glob(c.machineDir("*"))
	if err != nil {
		return err
	}
	failed := make([]error, len(dirs))
	var killing sync.WaitGroup
	for i, dir := range dirs {
		name := filepath.Base(dir)
		m := &machine.Spec{Name: name, Dir: dir, Cgroup: c.cgroup().Child(name)}
		killing.Go(func() { failed[i] = m.Kill() })
	}
	killing.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if err := c.cgroup().Remove(); err != nil {
		return err
	}
	return c.removeDir()
}

// KillNode cuts the power of a node: its processes die at once, its disk
// stays.
func (c *Cluster) KillNode(name string) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, m, err := c.node(name)
	if err != nil {
		return err
	}
	if !m.Running() {
		return fmt.Errorf("%s does not run", name)
	}
	return m.Kill()
}
