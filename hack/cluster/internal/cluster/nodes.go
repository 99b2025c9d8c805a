package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/bowline-csi/bowline/hack/cluster/internal/artifacts"
	"github.com/bowline-csi/bowline/hack/cluster/internal/kube"
	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// node returns the number and the machine of a node.
func (c *Cluster) node(name string) (int, *machine.Spec, error) {
	s, err := c.load()
	if err != nil {
		return 0, nil, err
	}
	for i := 1; i <= s.Nodes; i++ {
		if kube.NodeName(i) == name {
			m, err := machine.Load(c.machineDir(name))
			return i, m, err
		}
	}
	return 0, nil, fmt.Errorf("there is no node %q; there are %v", name, names(s.Nodes)[1:])
}

// StartNode starts a node that was killed and returns when it is ready.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	i, m, err := c.node(name)
	if err != nil {
		return err
	}
	if m.Running() {
		return fmt.Errorf("%s runs already", name)
	}
	s, err := c.load()
	if err != nil {
		return err
	}
	return c.startNode(ctx, s, m, i)
}

// startNode starts the i-th node, which does not run, and returns when it is
// ready.
func (c *Cluster) startNode(ctx context.Context, s state, m *machine.Spec, i int) error {
	if !c.controlPlaneRuns() {
		return ErrNotRunning
	}
	c.progress("starting %s", m.Name)
	if err := c.boot(ctx, m, i, s.Nodes); err != nil {
		return err
	}
	if err := c.waitAPI(ctx, s); err != nil {
		return err
	}
	api, err := c.api(s.Port)
	if err != nil {
		return err
	}
	return c.waitNode(ctx, api, m.Name)
}

// Exec returns a command that runs in a machine of the cluster, with the
// machine's file systems, network and processes.
func (c *Cluster) Exec(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	m, err := c.machine(name)
	if err != nil {
		return nil, err
	}
	if !m.Running() {
		return nil, fmt.Errorf("%s does not run", name)
	}
	return m.Command(ctx, args...), nil
}

// Status writes what runs, and fails if something does not.
func (c *Cluster) Status(ctx context.Context, out io.Writer) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	api, err := c.api(s.Port)
	if err != nil {
		return err
	}
	var failed []string
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tPROCESS\tKUBERNETES")
	for i, name := range names(s.Nodes) {
		process, err := "killed", errors.New("does not run")
		m, loadErr := machine.Load(c.machineDir(name))
		if loadErr == nil && m.Running() {
			process = fmt.Sprint(m.PID())
			if i == 0 {
				err = api.ready(ctx)
			} else {
				err = api.nodeReady(ctx, m)
			}
		}
		condition := "ready"
		if err != nil {
			condition = err.Error()
			failed = append(failed, name)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", name, process, condition)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "KUBECONFIG=%s\n", c.Kubeconfig())
	if len(failed) > 0 {
		return fmt.Errorf("not ready: %s", strings.Join(failed, ", "))
	}
	return nil
}

// LogFiles lists the logs of a machine's services, or of all machines' if name
// is empty; service may be empty for all.
func (c *Cluster) LogFiles(name, service string) ([]string, error) {
	if name == "" {
		name = "*"
	}
	pattern := filepath.Join(c.machineDir(name), "log/services/*.log")
	if service != "" {
		pattern = filepath.Join(c.machineDir(name), "log/services", service+".log")
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	if service == "" {
		inits, err := filepath.Glob(filepath.Join(c.machineDir(name), "init.log"))
		if err != nil {
			return nil, err
		}
		files = append(files, inits...)
	}
	if len(files) == 0 {
		if _, err := c.load(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("there are no logs %s", pattern)
	}
	return files, nil
}

// LoadImage imports the archive file, of Docker's or the OCI's format, on all
// nodes that run.
func (c *Cluster) LoadImage(ctx context.Context, file string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	for i := 1; i <= s.Nodes; i++ {
		m, err := machine.Load(c.machineDir(kube.NodeName(i)))
		if err != nil {
			return err
		}
		if !m.Running() {
			c.progress("%s does not run and gets no image", m.Name)
			continue
		}
		if err := importImage(ctx, m, file); err != nil {
			return err
		}
	}
	return nil
}

// LoadPostgres imports the project's image of PostgreSQL on all nodes, and
// returns its name.
func (c *Cluster) LoadPostgres(ctx context.Context) (string, error) {
	unlock, err := c.cache.Lock()
	if err != nil {
		return "", err
	}
	image, err := c.cache.Postgres(ctx)
	unlock()
	if err != nil {
		return "", err
	}
	return image.Name, c.LoadImage(ctx, image.File)
}

// BuildImage builds the image name from a Dockerfile and its context directory
// and imports it on all nodes. The Dockerfile may build on
// debian:bookworm-slim; arguments are NAME=VALUE for its ARGs.
func (c *Cluster) BuildImage(ctx context.Context, name, dockerfile, directory string, arguments []string) error {
	if _, err := c.load(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.dir, "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, err := c.buildImage(ctx, name, dockerfile, directory, arguments, dir)
	if err != nil {
		return err
	}
	return c.LoadImage(ctx, image.File)
}

func (c *Cluster) buildImage(ctx context.Context, name, dockerfile, directory string, arguments []string, dir string) (artifacts.Image, error) {
	unlock, err := c.cache.Lock()
	if err != nil {
		return artifacts.Image{}, err
	}
	defer unlock()
	return c.cache.Build(ctx, name, dockerfile, directory, arguments, dir)
}

// importImage gives an image to a node's container runtime, which may just be
// starting.
func importImage(ctx context.Context, m *machine.Spec, file string) error {
	err := wait(ctx, readyLimit, func(ctx context.Context) error {
		return m.Command(ctx, "ctr", "version").Run()
	})
	if err != nil {
		return fmt.Errorf("waiting for the container runtime of %s: %w", m.Name, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := m.Command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "--local", "-")
	cmd.Stdin = f
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("importing an image on %s: %w\n%s", m.Name, err, output)
	}
	return nil
}
