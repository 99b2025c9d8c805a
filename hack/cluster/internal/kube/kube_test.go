package kube

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// Every file that a service or a configuration names is there.
func TestConfigurationIsComplete(t *testing.T) {
	keys, err := NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("ControlPlane", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "config")
		if err := keys.WriteControlPlane(dir); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, dir, ControlPlaneServices())
	})
	t.Run("Node", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "config")
		if err := keys.WriteNode(dir, 2, "/opt/cluster/runtime", "/group/pods"); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, dir, NodeServices(2))
		if _, err := os.Stat(filepath.Join(dir, "ca.key")); err == nil {
			t.Error("a node has the key of the authority")
		}
		b, err := os.ReadFile(filepath.Join(dir, "cni/pods.conflist"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), PodRange(2)) {
			t.Errorf("the pods of node 2 are not in %s:\n%s", PodRange(2), b)
		}
	})
}

var configFile = regexp.MustCompile(regexp.QuoteMeta(ConfigDir) + `/([A-Za-z0-9./-]+)`)

// checkFiles looks for the files that services and the files in dir name.
func checkFiles(t *testing.T, dir string, services []machine.Service) {
	t.Helper()
	var texts []string
	for _, s := range services {
		texts = append(texts, s.Args...)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil {
			texts = append(texts, string(b))
		}
	}
	named := 0
	for _, match := range configFile.FindAllStringSubmatch(strings.Join(texts, "\n"), -1) {
		named++
		if _, err := os.Stat(filepath.Join(dir, match[1])); err != nil {
			t.Errorf("%s is named but not there", match[0])
		}
	}
	if named == 0 {
		t.Error("no file is named at all")
	}
}

func TestAddressesDiffer(t *testing.T) {
	seen := map[string]bool{ControlPlaneAddress: true}
	for i := 1; i <= MaxNodes; i++ {
		for _, a := range []string{NodeName(i), NodeAddress(i), PodRange(i)} {
			if seen[a] {
				t.Errorf("%s is there twice", a)
			}
			seen[a] = true
		}
	}
}
