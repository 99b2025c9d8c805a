package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const runs = "A test runs the next block with an image that has an open checkpoint."

// The blocks that say so are run word for word, and do what they say.
func TestRecovery(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
	env := append(os.Environ(), "PATH="+build(t)+":"+os.Getenv("PATH"))
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.comment != runs {
				continue
			}
			n++
			t.Run(fmt.Sprintf("%s:%d", filepath.Base(p.path), b.line), func(t *testing.T) {
				dir := t.TempDir()
				shell := func(script string) string {
					t.Helper()
					cmd := exec.Command("sh", "-eu")
					cmd.Dir = dir
					cmd.Env = append(env, "image="+filepath.Join(dir, "image"))
					cmd.Stdin = strings.NewReader(script)
					// A daemon that a script leaves when it stops half-way has its output.
					cmd.WaitDelay = 5 * time.Second
					said, err := cmd.CombinedOutput()
					t.Logf("%s", said)
					if err != nil {
						t.Fatal(err)
					}
					return string(said)
				}
				t.Cleanup(func() {
					if t.Failed() {
						shell("umount mnt check; bowline device detach $image; true")
					}
				})
				shell(`
truncate -s 64M $image
device=$(bowline device attach --daemon $image)
mkfs.ext4 -q $device
mkdir check
mount $device check
echo before > check/file
bowline device checkpoint check
echo after > check/file
umount check
bowline device detach $image
`)
				shell(b.text)
				content := shell(`
mount $(bowline device attach --daemon $image) check
cat check/file
umount check
bowline device detach $image > /dev/null
`)
				want := "after"
				if strings.Contains(b.text, "restore $image ") {
					want = "before"
				}
				if !strings.HasPrefix(content, want+"\n") && !strings.Contains(content, "\n"+want+"\n") {
					t.Errorf("the file says %q, want %q", content, want)
				}
			})
		}
	}
	if n == 0 {
		t.Error("no block is marked to be run")
	}
}
