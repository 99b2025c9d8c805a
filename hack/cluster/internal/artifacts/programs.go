package artifacts

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// A Module is a Go module in hack/cluster/components, which pins in its go.mod
// and go.sum what is built from it.
type Module struct {
	Name     string
	commands []command
	// versionOf is the module whose version is linked into the programs, as
	// its own build would; versionIn are the variables.
	versionOf string
	versionIn []string
}

// A command is one call of go build.
type command struct {
	packages []string // the last elements of their paths are the programs' names
	tags     string
	cgo      bool              // linked statically nevertheless: they run on the nodes' libraries
	rename   map[string]string // programs that are to have another name
}

// The modules of components.
var (
	Kubernetes = Module{
		Name: "kubernetes",
		commands: []command{{
			packages: []string{
				"go.etcd.io/etcd/server/v3",
				"k8s.io/kubernetes/cmd/kube-apiserver",
				"k8s.io/kubernetes/cmd/kube-controller-manager",
				"k8s.io/kubernetes/cmd/kube-proxy",
				"k8s.io/kubernetes/cmd/kube-scheduler",
				"k8s.io/kubernetes/cmd/kubectl",
				"k8s.io/kubernetes/cmd/kubelet",
			},
			rename: map[string]string{"server": "etcd"},
		}},
		versionOf: "k8s.io/kubernetes",
		versionIn: []string{"k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"},
	}
	Runtime = Module{
		Name: "runtime",
		commands: []command{{
			packages: []string{
				"github.com/containerd/containerd/v2/cmd/containerd",
				"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
				"github.com/containerd/containerd/v2/cmd/ctr",
				"github.com/containernetworking/plugins/plugins/ipam/host-local",
				"github.com/containernetworking/plugins/plugins/main/loopback",
				"github.com/containernetworking/plugins/plugins/main/ptp",
			},
			tags: "no_btrfs,no_devmapper,no_zfs",
		}, {
			packages: []string{"github.com/opencontainers/runc"},
			tags:     "seccomp,netgo,osusergo",
			cgo:      true,
		}},
	}
	Helm = Module{
		Name:     "helm",
		commands: []command{{packages: []string{"helm.sh/helm/v3/cmd/helm"}}},
	}
)

// Programs returns a directory with the programs of the module.
func (c *Cache) Programs(ctx context.Context, m Module) (string, error) {
	key, err := c.digestOfPrograms(m)
	if err != nil {
		return "", err
	}
	source := c.sourceOf(m)
	return c.artifact("programs", m.Name, key, func(dir string) error {
		linker, err := m.linkerFlags(ctx, source)
		if err != nil {
			return err
		}
		for _, cmd := range m.commands {
			if err := c.goBuild(ctx, source, dir, m.Name, linker, cmd); err != nil {
				return err
			}
		}
		return nil
	})
}

// Built returns what Programs does, and an error if they are not built.
func (c *Cache) Built(m Module) (string, error) {
	key, err := c.digestOfPrograms(m)
	if err != nil {
		return "", err
	}
	dir := c.path("programs", m.Name, key)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("the programs of %s are not built: %w", m.Name, err)
	}
	return dir, nil
}

func (c *Cache) sourceOf(m Module) string {
	return filepath.Join(c.Checkout, "hack/cluster/components", m.Name)
}

func (c *Cache) digestOfPrograms(m Module) (digest, error) {
	source := c.sourceOf(m)
	return digestOf([]string{runtime.Version(), runtime.GOARCH, fmt.Sprint(m)},
		filepath.Join(source, "go.mod"), filepath.Join(source, "go.sum"))
}

func (m Module) linkerFlags(ctx context.Context, source string) (string, error) {
	flags := "-s -w"
	if m.versionOf == "" {
		return flags, nil
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", m.versionOf)
	list.Dir = source
	list.Stderr = os.Stderr
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version of %s: %w", m.versionOf, err)
	}
	for _, variable := range m.versionIn {
		flags += " -X " + variable + "=" + strings.TrimSpace(string(version))
	}
	return flags, nil
}

func (c *Cache) goBuild(ctx context.Context, source, dir, module, linker string, b command) error {
	var names []string
	for _, p := range b.packages {
		name := filepath.Base(strings.TrimSuffix(p, "/v3"))
		if other := b.rename[name]; other != "" {
			name = other
		}
		names = append(names, name)
	}
	c.progress("%s: building %s", module, strings.Join(names, ", "))
	cgo := "CGO_ENABLED=0"
	if b.cgo {
		cgo = "CGO_ENABLED=1"
		linker += ` -extldflags "-static"`
	}
	args := append([]string{"-n", "10", "go", "build", "-v", "-trimpath", "-tags", b.tags, "-ldflags", linker, "-o", dir + "/"}, b.packages...)
	cmd := exec.CommandContext(ctx, "nice", args...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=")
	if err := c.count(cmd, module); err != nil {
		return err
	}
	for from, to := range b.rename {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return nil
}

// count runs go build -v and says now and then how many packages it compiled.
func (c *Cache) count(cmd *exec.Cmd, module string) error {
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var packages atomic.Int64
	began := time.Now()
	ticker := time.NewTicker(20 * time.Second)
	defer ticker.Stop()
	finished := make(chan string)
	go func() {
		var kept []string
		for lines := bufio.NewScanner(output); lines.Scan(); {
			packages.Add(1)
			// Names of packages are no news; what the compiler says is.
			if strings.ContainsAny(lines.Text(), " \t") {
				kept = append(kept, lines.Text())
			}
		}
		_, _ = io.Copy(io.Discard, output) // a line too long for the scanner
		finished <- strings.Join(kept, "\n")
	}()
	for {
		select {
		case <-ticker.C:
			c.progress("%s: %d packages compiled after %v", module, packages.Load(), time.Since(began).Round(time.Second))
		case output := <-finished:
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("go build: %w\n%s", err, tail(output, 40))
			}
			return nil
		}
	}
}
