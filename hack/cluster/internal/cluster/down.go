package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	c.progress("nothing is left of the cluster")
	return nil
}

// remove does what Down does. It goes by what is there, not by what the state
// says should be, since a crash may have come before the state was written.
func (c *Cluster) remove() error {
	dirs, err := filepath.Glob(c.machineDir("*"))
	if err != nil {
		return err
	}
	slices.Sort(dirs) // the control plane is first: nothing is to be rescheduled
	failed := make([]error, len(dirs))
	var killing sync.WaitGroup
	for i, dir := range dirs {
		m, err := machine.Load(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was never started
		}
		if err != nil {
			return err
		}
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
