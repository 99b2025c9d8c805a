package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/test/apiserver"
)

// root is the checkout.
var root string

func TestMain(m *testing.M) {
	var err error
	if root, err = filepath.Abs("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = filepath.Join(root, "bin/test-docs")
	apiserver.Main(m)
}

// programs is where build puts the programs of the repository: below bin, where
// they are found built the next time.
var programs string

var built = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", programs+"/", "./cmd/bowline", "./cmd/kubectl-bowline")
	cmd.Dir = root
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, said)
	}
	return nil
})

// build returns a directory with the programs of the repository.
func build(t *testing.T) string {
	t.Helper()
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return programs
}

// kubectl returns the kubectl of the cluster for development, "" if it is not built.
var kubectl = sync.OnceValue(func() string {
	cmd := exec.Command("go", "run", "./hack/cluster", "programs", "--cached")
	cmd.Dir = root
	said, err := cmd.Output()
	if err != nil {
		return ""
	}
	return filepath.Join(strings.TrimSpace(string(said)), "kubectl")
})
