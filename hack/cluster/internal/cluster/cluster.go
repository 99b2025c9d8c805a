// Package cluster runs a Kubernetes cluster on this machine: one machine of
// package machine for the control plane and one for each node, joined by a
// network that nothing outside them can see. Of the host's network only one
// port on the loopback address is used, for the API server.
package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/hack/cluster/internal/artifacts"
	"github.com/bowline-csi/bowline/hack/cluster/internal/kube"
	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// Variables of the environment that say where things are kept.
const (
	// CacheVariable names what is built once and stays.
	CacheVariable = "BOWLINE_CLUSTER_CACHE"
	// StateVariable names where running clusters are kept, each in a directory
	// of its own.
	StateVariable = "BOWLINE_CLUSTER_STATE"
)

// controlPlane is the name of the control plane's machine.
const controlPlane = "control-plane"

// ErrNotRunning is returned by what needs a running cluster.
var ErrNotRunning = errors.New("no cluster runs for this checkout; start one with 'up'")

// A Cluster is the one cluster of a checkout and a state directory, running or
// not.
type Cluster struct {
	id    string // part of every name that the host sees
	dir   string // everything about the running cluster; removed by Down
	cache artifacts.Cache
	out   io.Writer
}

// state is kept in the file cluster.json.
type state struct {
	Checkout string
	Nodes    int
	Port     int // of the API server on the host's loopback address
}

// New returns the cluster of the checkout, a directory. What takes long is
// told to out, a line for each step.
func New(checkout string, out io.Writer) (*Cluster, error) {
	checkout, err := filepath.Abs(checkout)
	if err != nil {
		return nil, err
	}
	if checkout, err = filepath.EvalSymlinks(checkout); err != nil {
		return nil, err
	}
	cache, err := directory(CacheVariable, "XDG_CACHE_HOME", ".cache")
	if err != nil {
		return nil, err
	}
	states, err := directory(StateVariable, "XDG_STATE_HOME", ".local/state")
	if err != nil {
		return nil, err
	}
	// Both: tests run a cluster of their own beside the developer's.
	sum := sha256.Sum256([]byte(checkout + "\n" + states))
	// The base name is for people who look into the directory.
	base := regexp.MustCompile(`[^A-Za-z0-9_-]`).ReplaceAllString(filepath.Base(checkout), "-")
	id := "bowline-" + base + "-" + hex.EncodeToString(sum[:4])
	return &Cluster{
		id:    id,
		dir:   filepath.Join(states, id),
		cache: artifacts.Cache{Dir: cache, Checkout: checkout, Progress: out},
		out:   out,
	}, nil
}

// directory is what variable names, or else the place that the XDG base
// directories have for it.
func directory(variable, xdg, home string) (string, error) {
	if dir := os.Getenv(variable); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv(xdg); dir != "" {
		return filepath.Join(dir, "bowline/cluster"), nil
	}
	user, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory (%w); set %s", err, variable)
	}
	return filepath.Join(user, home, "bowline/cluster"), nil
}

// Kubeconfig is the file with which kubectl and helm reach the cluster.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

func (c *Cluster) progress(format string, args ...any) {
	fmt.Fprintf(c.out, "cluster: "+format+"\n", args...)
}

// lock keeps other calls for the same cluster from changing it at the same
// time, until unlock is called or the process ends.
func (c *Cluster) lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(c.lockFile(), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			c.progress("waiting for another command on this cluster")
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking the cluster: %w", err)
		}
		// Whoever had it may have been Down, which removes the file.
		locked, err1 := f.Stat()
		current, err2 := os.Stat(c.lockFile())
		if err1 == nil && err2 == nil && os.SameFile(locked, current) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

// lockFile is beside the cluster's directory, since Up makes that anew.
func (c *Cluster) lockFile() string { return filepath.Join(filepath.Dir(c.dir), "."+c.id+".lock") }

func (c *Cluster) load() (state, error) {
	var s state
	b, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, ErrNotRunning
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("reading the state of the cluster: %w", err)
	}
	return s, nil
}

func (c *Cluster) save(s state) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "cluster.json"), b, 0o644)
}

// machineDir is the directory of the machine of that name.
func (c *Cluster) machineDir(name string) string { return filepath.Join(c.dir, "machines", name) }

// machine returns a machine of the cluster by its name.
func (c *Cluster) machine(name string) (*machine.Spec, error) {
	s, err := c.load()
	if err != nil {
		return nil, err
	}
	for _, known := range names(s.Nodes) {
		if name == known {
			return machine.Load(c.machineDir(name))
		}
	}
	return nil, fmt.Errorf("there is no machine %q; there are %v", name, names(s.Nodes))
}

// names are the names of all machines of a cluster.
func names(nodes int) []string {
	all := []string{controlPlane}
	for i := range nodes {
		all = append(all, kube.NodeName(i+1))
	}
	return all
}

// removeDir removes everything about the cluster.
func (c *Cluster) removeDir() error {
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("removing the state of the cluster: %w", err)
	}
	return nil
}

// Programs returns a directory with programs for the host, kubectl for
// instance.
func (c *Cluster) Programs(ctx context.Context, m artifacts.Module) (string, error) {
	// Nobody has to wait for a build of something else.
	if dir, err := c.cache.Built(m); err == nil {
		return dir, nil
	}
	unlock, err := c.cache.Lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	return c.cache.Programs(ctx, m)
}

// Built returns what Programs does, and an error if they are not built.
func (c *Cluster) Built(_ context.Context, m artifacts.Module) (string, error) {
	return c.cache.Built(m)
}
