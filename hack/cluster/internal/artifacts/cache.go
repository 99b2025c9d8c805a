// Package artifacts builds what a cluster is made of, once: programs from Go
// modules and images from Debian's packages. Each artifact is kept in a
// directory of the cache under the digest of everything that it is built from,
// so a change of a version builds a new one and nothing else.
package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Cache builds artifacts into a directory that several checkouts may share.
type Cache struct {
	Dir      string    // of the cache, an absolute path
	Checkout string    // of the project, an absolute path
	Progress io.Writer // a line for each step that takes time
}

// Lock keeps other processes from building at the same time, until unlock is
// called or the process ends.
func (c *Cache) Lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		c.progress("waiting for another build in %s", c.Dir)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", c.Dir, err)
	}
	return func() { f.Close() }, nil
}

func (c *Cache) progress(format string, args ...any) {
	fmt.Fprintf(c.Progress, "cluster: "+format+"\n", args...)
}

func (c *Cache) path(kind, name string, digest digest) string {
	return filepath.Join(c.Dir, kind, name+"-"+digest.String())
}

// artifact returns the directory KIND/NAME-DIGEST, which fill fills if it
// is not there. Fill gets a directory that becomes the artifact when it returns
// without error, and not before.
func (c *Cache) artifact(kind, name string, digest digest, fill func(dir string) error) (string, error) {
	final := c.path(kind, name, digest)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	began := time.Now()
	unfinished := filepath.Join(c.Dir, kind, ".unfinished-"+name)
	if err := removeTree(unfinished); err != nil {
		return "", err
	}
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return "", err
	}
	if err := fill(unfinished); err != nil {
		return "", fmt.Errorf("building %s: %w", name, errors.Join(err, removeTree(unfinished)))
	}
	if err := os.Rename(unfinished, final); err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	c.progress("%s is built (%v)", name, time.Since(began).Round(time.Second))
	return final, nil
}

func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing an unfinished build: %w", err)
	}
	return nil
}

// A digest of what an artifact is built from.
type digest struct{ sum []byte }

func (d digest) String() string { return hex.EncodeToString(d.sum)[:16] }

// digestOf is the digest of some strings and files; a directory stands for all
// files in it.
func digestOf(words []string, files ...string) (digest, error) {
	h := sha256.New()
	for _, w := range words {
		fmt.Fprintf(h, "%q\n", w)
	}
	for _, root := range files {
		err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%q %d\n", rel, len(b))
			h.Write(b)
			return nil
		})
		if err != nil {
			return digest{}, err
		}
	}
	return digest{h.Sum(nil)}, nil
}

// run runs a program, at low priority, in a mount namespace of its own: what
// buildah mounts and does not unmount is gone with it. What it prints is shown
// only if it fails.
func (c *Cache) run(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, tail(output.String(), 40))
	}
	return nil
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = append([]string{"..."}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
