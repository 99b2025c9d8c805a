package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bowline-csi/bowline/hack/cluster/internal/artifacts"
	"github.com/bowline-csi/bowline/hack/cluster/internal/kube"
	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// readyLimit is how long the parts of a cluster may take to become ready, on a
// slow machine with other work.
const readyLimit = 3 * time.Minute

// parts are what a cluster is made of, in the cache.
type parts struct {
	kubernetes, runtime string // directories of programs
	root                string // root file system of the machines
	pause, base         artifacts.Image
}

// Up starts a cluster with that many nodes and returns when they are ready. If
// one with as many runs already, it starts what is killed; a cluster that a
// crash left is removed first.
func (c *Cluster) Up(ctx context.Context, nodes int) error {
	if nodes < 1 || nodes > kube.MaxNodes {
		return fmt.Errorf("a cluster has 1 to %d nodes, not %d", kube.MaxNodes, nodes)
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if s, err := c.load(); err == nil && c.controlPlaneRuns() {
		if s.Nodes != nodes {
			return fmt.Errorf("a cluster with %d nodes runs; 'down' removes it", s.Nodes)
		}
		// It may be dying just now, and be gone in a moment.
		if err := c.startMissing(ctx, s); !errors.Is(err, ErrNotRunning) {
			return err
		}
	}
	if err := c.preflight(ctx, nodes); err != nil {
		return err
	}
	if err := c.remove(); err != nil {
		return fmt.Errorf("removing what an earlier cluster left: %w", err)
	}
	p, err := c.parts(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.create(ctx, nodes, p); err != nil {
		// Its logs are wanted now; 'down' or the next 'up' removes it.
		return fmt.Errorf("%w\nsee 'logs' for what the services said", err)
	}
	c.progress("%d node(s) ready after %v", nodes, time.Since(began).Round(100*time.Millisecond))
	c.progress("export KUBECONFIG=%s", c.Kubeconfig())
	return nil
}

func (c *Cluster) controlPlaneRuns() bool {
	m, err := machine.Load(c.machineDir(controlPlane))
	return err == nil && m.Running()
}

// startMissing starts the nodes of a running cluster that do not run, and
// returns when all is ready.
func (c *Cluster) startMissing(ctx context.Context, s state) error {
	if err := c.waitAPI(ctx, s); err != nil {
		return err
	}
	for i := 1; i <= s.Nodes; i++ {
		m, err := machine.Load(c.machineDir(kube.NodeName(i)))
		if err != nil {
			return err
		}
		if m.Running() {
			continue
		}
		if err := c.startNode(ctx, s, m, i); err != nil {
			return err
		}
	}
	if err := c.waitReady(ctx, s); err != nil {
		return err
	}
	c.progress("the cluster runs")
	c.progress("export KUBECONFIG=%s", c.Kubeconfig())
	return nil
}

// parts builds what is not in the cache.
func (c *Cluster) parts(ctx context.Context) (p parts, err error) {
	unlock, err := c.cache.Lock()
	if err != nil {
		return p, err
	}
	defer unlock()
	// Images wait for the network, programs for the processors.
	build, ctx := errgroup.WithContext(ctx)
	build.Go(func() (err error) {
		if p.base, err = c.cache.Base(ctx); err != nil {
			return err
		}
		if p.root, err = c.cache.NodeRoot(ctx); err != nil {
			return err
		}
		p.pause, err = c.cache.Pause(ctx, kube.PauseImage)
		return err
	})
	build.Go(func() (err error) {
		if p.runtime, err = c.cache.Programs(ctx, artifacts.Runtime); err != nil {
			return err
		}
		p.kubernetes, err = c.cache.Programs(ctx, artifacts.Kubernetes)
		return err
	})
	err = build.Wait()
	return p, err
}

// create makes the cluster's directory and starts its machines.
func (c *Cluster) create(ctx context.Context, nodes int, p parts) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("taking a port for the API server: %w", err)
	}
	defer listener.Close()
	s := state{Checkout: c.cache.Checkout, Nodes: nodes, Port: listener.Addr().(*net.TCPAddr).Port}
	if err := c.save(s); err != nil {
		return err
	}
	keys, err := kube.NewKeys()
	if err != nil {
		return err
	}
	if err := c.writeAdmin(keys, s.Port); err != nil {
		return err
	}

	c.progress("starting the control plane")
	plane := c.newMachine(controlPlane, p, kube.ControlPlaneServices())
	plane.Forward = fmt.Sprintf("127.0.0.1:%d", kube.APIPort)
	if err := keys.WriteControlPlane(configDir(plane)); err != nil {
		return fmt.Errorf("configuring the control plane: %w", err)
	}
	command, err := initCommand(plane)
	if err != nil {
		return err
	}
	err = plane.Start(ctx, command, listener, func() error { return connectControlPlane(ctx, plane, nodes) })
	if err != nil {
		return err
	}

	c.progress("starting %d node(s)", nodes)
	var starting errgroup.Group
	for i := 1; i <= nodes; i++ {
		m := c.newMachine(kube.NodeName(i), p, kube.NodeServices(i))
		pods := m.Cgroup.Child(machine.PodsCgroup)
		if err := keys.WriteNode(configDir(m), i, filepath.Join(kube.ProgramDir, "runtime"), pods); err != nil {
			return fmt.Errorf("configuring %s: %w", m.Name, err)
		}
		starting.Go(func() error {
			if err := c.boot(ctx, m, i, nodes); err != nil {
				return err
			}
			for _, image := range []artifacts.Image{p.pause, p.base} {
				if err := importImage(ctx, m, image.File); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	return c.waitReady(ctx, s)
}

// newMachine describes a machine of the cluster.
func (c *Cluster) newMachine(name string, p parts, services []machine.Service) *machine.Spec {
	dir := c.machineDir(name)
	m := &machine.Spec{
		Name:   name,
		Dir:    dir,
		RootFS: p.root,
		Cgroup: c.cgroup().Child(name),
		Path:   fmt.Sprintf("%s/kubernetes:%[1]s/runtime:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", kube.ProgramDir),
		Binds: []machine.Bind{
			{Source: p.kubernetes, Target: kube.ProgramDir + "/kubernetes", ReadOnly: true},
			{Source: p.runtime, Target: kube.ProgramDir + "/runtime", ReadOnly: true},
			{Source: filepath.Join(dir, "config"), Target: kube.ConfigDir, ReadOnly: true},
		},
		Services: services,
	}
	// Drivers load modules of the kernel, or look whether they can.
	if _, err := os.Stat("/lib/modules"); err == nil {
		m.Binds = append(m.Binds, machine.Bind{Source: "/lib/modules", Target: "/lib/modules", ReadOnly: true})
	}
	return m
}

func configDir(m *machine.Spec) string { return filepath.Join(m.Dir, "config") }

// cgroup is the group of the whole cluster.
func (c *Cluster) cgroup() machine.Cgroup { return machine.Cgroup("/" + c.id) }

// initCommand is the command line of a machine's first process: this program
// again.
func initCommand(m *machine.Spec) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, InitCommand, m.Dir}, nil
}

// InitCommand is the argument with which this program becomes the first
// process of the machine whose directory follows.
const InitCommand = "machine-init"

// boot starts the i-th node's machine.
func (c *Cluster) boot(ctx context.Context, m *machine.Spec, i, nodes int) error {
	plane, err := machine.Load(c.machineDir(controlPlane))
	if err != nil {
		return err
	}
	command, err := initCommand(m)
	if err != nil {
		return err
	}
	return m.Start(ctx, command, nil, func() error { return connectNode(ctx, m, plane, i, nodes) })
}

// writeAdmin writes what users of the cluster need.
func (c *Cluster) writeAdmin(keys *kube.Keys, port int) error {
	pair, err := keys.CA.Sign(admin)
	if err != nil {
		return err
	}
	if err := pair.Write(c.dir, "admin"); err != nil {
		return err
	}
	return keys.WriteKubeconfig(c.Kubeconfig(), serverURL(port), admin)
}

// waitAPI returns when the API server is ready; ErrNotRunning if its machine is
// dead.
func (c *Cluster) waitAPI(ctx context.Context, s state) error {
	api, err := c.api(s.Port)
	if err != nil {
		return err
	}
	err = wait(ctx, readyLimit, func(ctx context.Context) error {
		if !c.controlPlaneRuns() {
			return ErrNotRunning
		}
		return api.ready(ctx)
	})
	if err != nil {
		return fmt.Errorf("waiting for the API server: %w", err)
	}
	return nil
}

// waitReady returns when pods can be created and all nodes are ready for them.
func (c *Cluster) waitReady(ctx context.Context, s state) error {
	if err := c.waitAPI(ctx, s); err != nil {
		return err
	}
	api, err := c.api(s.Port)
	if err != nil {
		return err
	}
	var failed []error
	for i := 1; i <= s.Nodes; i++ {
		failed = append(failed, c.waitNode(ctx, api, kube.NodeName(i)))
	}
	if err := wait(ctx, readyLimit, api.defaultAccount); err != nil {
		failed = append(failed, fmt.Errorf("waiting for the default service account: %w", err))
	}
	return errors.Join(failed...)
}

// waitNode returns when the node is ready.
func (c *Cluster) waitNode(ctx context.Context, api *api, name string) error {
	m, err := machine.Load(c.machineDir(name))
	if err != nil {
		return err
	}
	if err := wait(ctx, readyLimit, func(ctx context.Context) error { return api.nodeReady(ctx, m) }); err != nil {
		return fmt.Errorf("waiting for a node: %w", err)
	}
	return nil
}
