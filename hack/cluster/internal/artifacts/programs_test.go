package artifacts

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// What is built is what the modules' go.mod files name as tools, so that
// `go mod tidy` there keeps what is needed and nothing else.
func TestPackagesAreTools(t *testing.T) {
	tool := regexp.MustCompile(`(?m)^(?:tool )?\t?((?:[a-z0-9.-]+)(?:/[A-Za-z0-9._-]+)+)$`)
	for _, m := range []Module{Kubernetes, Runtime, Helm} {
		b, err := os.ReadFile(filepath.Join("../../components", m.Name, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		var tools, packages []string
		for _, match := range tool.FindAllStringSubmatch(string(b), -1) {
			tools = append(tools, match[1])
		}
		for _, c := range m.commands {
			packages = append(packages, c.packages...)
		}
		slices.Sort(tools)
		slices.Sort(packages)
		if !slices.Equal(tools, packages) {
			t.Errorf("%s: go.mod has the tools %q, built are %q", m.Name, tools, packages)
		}
	}
}
