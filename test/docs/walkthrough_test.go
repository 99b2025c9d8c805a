//go:build cluster

package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The first checkpoint goes as its page says, in the cluster that KUBECONFIG names,
// which has Bowline. `make demo` leaves one behind.
func TestFirstCheckpoint(t *testing.T) {
	config, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Skipf("needs KUBECONFIG, of a cluster with Bowline: %v", err)
	}
	dir, name := t.TempDir(), fmt.Sprintf("docs-%d", time.Now().UnixNano())
	if err := os.WriteFile(filepath.Join(dir, "kubeconfig"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kubectl(), filepath.Join(dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "PATH="+dir+":"+build(t)+":"+os.Getenv("PATH"), "KUBECONFIG="+filepath.Join(dir, "kubeconfig"))
	shell := func(ctx context.Context, script string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-eux")
		cmd.Dir, cmd.Env, cmd.Stdin = dir, env, strings.NewReader(script)
		var log strings.Builder
		cmd.Stderr = &log
		said, err := cmd.Output()
		t.Logf("%s%s", &log, said)
		return string(said), err
	}
	begin := "kubectl create namespace " + name + "\nkubectl config set-context --current --namespace=" + name
	if _, err := shell(t.Context(), begin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := shell(context.Background(), "kubectl delete namespace "+name); err != nil {
			t.Errorf("removing what the test made: %v", err)
		}
	})
	for _, p := range pages(t) {
		if p.path != "docs/first-checkpoint.md" {
			continue
		}
		for _, b := range p.blocks {
			switch {
			case b.file() != "":
				if err := os.WriteFile(filepath.Join(dir, b.file()), []byte(b.text), 0o600); err != nil {
					t.Fatal(err)
				}
			case b.lang == "sh":
				said, err := shell(t.Context(), b.text)
				if err != nil {
					t.Fatalf("%s:%d: %v", p.path, b.line, err)
				}
				for line := range strings.SplitSeq(b.text, "\n") {
					if _, promised, ok := strings.Cut(line, "# says: "); ok && !strings.Contains("\n"+said, "\n"+promised+"\n") {
						t.Errorf("%s:%d: %s: it does not", p.path, b.line, line)
					}
				}
			}
		}
	}
}
