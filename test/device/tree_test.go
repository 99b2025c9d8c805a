package device

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// newRand returns a source of chance whose seed is told when the test fails.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		x := r.Uint64()
		for j := i; j < min(i+8, n); j++ {
			b[j] = byte(x)
			x >>= 8
		}
	}
	return b
}

// plant makes a tree of about size bytes below dir, with everything that a tree
// can have: files from nothing to a few hundred KiB, holes, links, attributes.
func plant(t *testing.T, r *rand.Rand, dir string, size int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; size > 0; i++ {
		at := filepath.Join(dir, fmt.Sprintf("d%d", i%7), fmt.Sprintf("e%d", i%3))
		must(os.MkdirAll(at, 0o755))
		name := filepath.Join(at, fmt.Sprintf("file-%d", i))
		n := r.IntN(1 << (4 + r.IntN(15)))
		must(os.WriteFile(name, randomBytes(r, n), fs.FileMode(0o600+r.IntN(0o100))))
		size -= n + 1024
		// Of an earlier call with the same directory.
		os.Remove(name + ".symlink")
		os.Remove(name + ".link")
		switch i % 10 {
		case 0:
			must(os.Symlink(name, name+".symlink"))
		case 1:
			must(os.Link(name, name+".link"))
		case 2: // a hole at the end, and bytes after a hole
			must(os.Truncate(name, int64(n+r.IntN(mib))))
		case 3:
			must(syscall.Setxattr(name, "user.test", randomBytes(r, 40), 0))
		}
	}
}

// wreck changes everything below dir by everything that a program can do to
// files, and writes about size bytes of new ones.
func wreck(t *testing.T, r *rand.Rand, dir string, size int) {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		n := int(info.Size())
		switch i % 7 {
		case 0:
			err = os.Remove(name)
		case 1:
			err = os.Rename(name, files[r.IntN(i+1)])
		case 2:
			err = os.Truncate(name, int64(n/2))
		case 3:
			err = writeAt(name, int64(n), randomBytes(r, 1+r.IntN(100_000)))
		case 4:
			err = os.WriteFile(name, []byte("wrecked"), 0o600)
		default:
			err = writeAt(name, 0, randomBytes(r, n+1))
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	plant(t, r, filepath.Join(dir, "new"), size)
	if err := os.RemoveAll(filepath.Join(dir, "d1")); err != nil {
		t.Fatal(err)
	}
}

// writeAt writes into a file that exists, in place.
func writeAt(name string, off int64, p []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(p, off)
	return err
}

// tree says what is below a directory: a line for each path with everything that
// must be the same after a rollback.
type tree map[string]string

func readTree(t *testing.T, dir string) tree {
	t.Helper()
	found := tree{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		content := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b))
		case info.Mode().Type() == fs.ModeSymlink:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		attribute := make([]byte, 100)
		n, err := syscall.Getxattr(path, "user.test", attribute)
		if err != nil {
			n = 0
		}
		found[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%s, inode %d, %d links, written %s, attribute %x, %s",
			info.Mode(), st.Ino, st.Nlink, info.ModTime().UTC(), attribute[:n], content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// mustEqual fails the test if a tree is not what it was.
func (got tree) mustEqual(t *testing.T, want tree, when string) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	all := maps.Clone(want)
	maps.Copy(all, got)
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if got[path] != want[path] {
			lines = append(lines, fmt.Sprintf("%s\n  is  %q\n  was %q", path, got[path], want[path]))
		}
	}
	t.Fatalf("%s: %d of %d paths differ:\n%s", when, len(lines), len(want), strings.Join(lines[:min(len(lines), 10)], "\n"))
}
