package device

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The walk-through of the README is true word for word.
func TestReadme(t *testing.T) {
	h := newHost(t)
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "<!-- A test runs the next block word for word. -->\n```sh\n")
	script, _, end := strings.Cut(rest, "```\n")
	if !found || !end {
		t.Fatal("the README has no block that a test runs")
	}
	// The reader has the default directory for sockets, and so has this.
	h.runDir = "/run/bowline/device"
	v := &volume{host: h, path: filepath.Join(h.dir, "disk.img"), mountpoint: filepath.Join(h.dir, "mnt")}
	t.Cleanup(func() {
		if t.Failed() {
			execute(t, "umount", v.mountpoint)
			v.host.device("detach", v.path)
		}
	})

	shell := exec.Command("sh", "-eu")
	shell.Dir = h.dir
	shell.Stdin = strings.NewReader(script)
	shell.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	var stderr bytes.Buffer
	shell.Stderr = &stderr
	stdout, err := shell.Output()
	t.Logf("%s", stdout)
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	// What "says:" promises is said, in that order.
	said := string(stdout)
	for _, line := range strings.Split(script, "\n") {
		_, promised, ok := strings.Cut(line, "# says: ")
		if !ok {
			continue
		}
		if _, said, ok = strings.Cut(said, "\n"+promised+"\n"); !ok {
			t.Errorf("%s: it does not", line)
		}
		said = "\n" + said
	}
	ext4(4096).check(t, v.path)
}
