package artifacts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestArtifact(t *testing.T) {
	var said strings.Builder
	c := &Cache{Dir: t.TempDir(), Progress: &said}
	key, err := digestOf([]string{"version 1"})
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("no")
	if _, err := c.artifact("kind", "name", key, func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), failure)
	}); !errors.Is(err, failure) {
		t.Fatalf("a failed build returns %v", err)
	}
	if left := glob(t, c.Dir, "*/*"); len(left) != 0 {
		t.Errorf("a failed build left %v", left)
	}
	builds := 0
	fill := func(dir string) error {
		builds++
		return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
	}
	var dirs []string
	for range 2 {
		dir, err := c.artifact("kind", "name", key, fill)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	if builds != 1 || dirs[0] != dirs[1] {
		t.Errorf("built %d times, in %v", builds, dirs)
	}
	if files := glob(t, dirs[0], "*"); len(files) != 1 {
		t.Errorf("the artifact contains %v", files)
	}
	key2, err := digestOf([]string{"version 2"})
	if err != nil {
		t.Fatal(err)
	}
	if dir, err := c.artifact("kind", "name", key2, fill); err != nil || dir == dirs[0] || builds != 2 {
		t.Errorf("another version is in %s, %v, built %d times", dir, err, builds)
	}
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	see := func(what string, words ...string) {
		t.Helper()
		d, err := digestOf(words, dir)
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[d.String()]; other != "" {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[d.String()] = what
	}
	write("a", "1")
	see("one file")
	see("two words", "x", "y")
	see("the same in one word", "xy")
	write("a", "2")
	see("another content")
	write("b", "")
	see("another file")
	if _, err := digestOf(nil, filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there has a digest")
	}
}

func TestLock(t *testing.T) {
	c := &Cache{Dir: filepath.Join(t.TempDir(), "made"), Progress: &strings.Builder{}}
	for range 2 {
		unlock, err := c.Lock()
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		n        int
		in, want string
	}{
		{2, "a\nb\nc\n", "...\nb\nc"},
		{3, "a\nb\nc\n", "a\nb\nc"},
		{2, "", ""},
	} {
		if got := tail(c.in, c.n); got != c.want {
			t.Errorf("the last %d lines of %q: %q", c.n, c.in, got)
		}
	}
}
