package pool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/pool"
)

// remember opens a pool that the node remembers in the file memory.
func remember(t testing.TB, dir, memory string) *pool.Pool {
	t.Helper()
	p, err := pool.Open(dir, node, memory)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func closePool(t testing.TB, p *pool.Pool) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// expectUnavailable checks that nothing can be had of a pool, and that it says why.
func expectUnavailable(t testing.TB, p *pool.Pool, id, says string) {
	t.Helper()
	ctx := context.Background()
	options := pool.CreateOptions{Name: "another", Size: MiB}
	calls := map[string]func() error{
		"Available": p.Available,
		"Create":    func() error { _, err := p.Create(ctx, options); return err },
		"Clone":     func() error { _, err := p.Clone(ctx, id, options, nil); return err },
		"Get":       func() error { _, err := p.Get(id); return err },
		"Get no id": func() error { _, err := p.Get("x"); return err },
		"List":      func() error { _, err := p.List(); return err },
		"Delete":    func() error { return p.Delete(ctx, id) },
		"Grow":      func() error { _, err := p.Grow(ctx, id, 4*MiB); return err },
		"MarkUsed":  func() error { return p.MarkUsed(ctx, id, "ext4") },
		"Wipe":      func() error { return p.Wipe(ctx, id) },
		"Capacity":  func() error { _, err := p.Capacity(); return err },
		"Problems": func() error {
			list, err := p.Problems()
			return errors.Join(append(list, err)...)
		},
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, pool.ErrUnavailable) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, expected %q", name, err, says)
		}
	}
	if p.CanReflink() {
		t.Error("it is said to share extents")
	}
}

// TestNotMounted: the directory below a disk that is not mounted is no pool, nor is
// another disk, and nothing is done there.
func TestNotMounted(t *testing.T) {
	d := newDisk(t, ext4)
	memory := filepath.Join(t.TempDir(), "plugin", "pool-id")
	dir := filepath.Join(d.dir, "pool")
	p := remember(t, dir, memory)
	v := create(t, p, "pvc", MiB)
	closePool(t, p)
	d.unmount(t)

	p = remember(t, dir, memory)
	expectUnavailable(t, p, v.ID, "remove "+memory)
	if found := tree(t, d.dir); len(found) > 0 {
		t.Errorf("below the disk: %q", found)
	}
	if err := os.Mkdir(dir, 0o700); err != nil { // as one made before the disk was
		t.Fatal(err)
	}
	expectUnavailable(t, p, v.ID, ".pool-id is not there")
	if found := tree(t, dir); len(found) > 0 {
		t.Errorf("below the disk: %q", found)
	}

	d.mount(t)
	if got, err := p.Get(v.ID); err != nil || got.ID != v.ID {
		t.Errorf("mounted: %+v, %v", got, err)
	}
	create(t, p, "other", MiB)

	// While it is open: another file system over it, and away again.
	if err := unix.Mount("none", d.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	expectUnavailable(t, p, v.ID, "restart the node plugin")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	expectUnavailable(t, p, v.ID, "another directory")
	if found := tree(t, dir); len(found) > 0 {
		t.Errorf("on the other file system: %q", found)
	}
	d.unmount(t)
	if list, err := p.List(); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	closePool(t, p)
}

// TestReplaced: a person says that another disk is the pool now by removing a file.
func TestReplaced(t *testing.T) {
	parent := t.TempDir()
	memory := filepath.Join(parent, "pool-id")
	old, dir := filepath.Join(parent, "old"), filepath.Join(parent, "pool")
	p := remember(t, dir, memory)
	v := create(t, p, "pvc", MiB)
	closePool(t, p)
	if err := os.Rename(dir, old); err != nil {
		t.Fatal(err)
	}
	// Another pool, of another node or of before.
	closePool(t, remember(t, dir, filepath.Join(parent, "other-id")))

	p = remember(t, dir, memory)
	expectUnavailable(t, p, v.ID, "another pool")
	if err := os.Remove(memory); err != nil {
		t.Fatal(err)
	}
	if err := p.Available(); err != nil {
		t.Fatal(err)
	}
	create(t, p, "other", MiB)
	closePool(t, p)

	p = remember(t, old, memory)
	expectUnavailable(t, p, v.ID, "another pool")
	closePool(t, p)
	p = remember(t, dir, memory)
	if list, err := p.List(); err != nil || len(list) != 1 || list[0].Name != "other" {
		t.Errorf("%+v, %v", list, err)
	}
	closePool(t, p)
}

// TestAdopted: a pool of before there were ids gets one, and one that only the node
// has forgotten keeps its own.
func TestAdopted(t *testing.T) {
	parent := t.TempDir()
	memory, dir := filepath.Join(parent, "pool-id"), filepath.Join(parent, "pool")
	p := openPool(t, dir)
	v := create(t, p, "pvc", MiB)
	closePool(t, p)
	var ids [2]string
	for i := range ids {
		p := remember(t, dir, memory)
		if _, err := p.Get(v.ID); err != nil {
			t.Error(err)
		}
		if problems, err := p.Problems(); err != nil || problems != nil {
			t.Errorf("%v, %v", problems, err)
		}
		closePool(t, p)
		ids[i] = string(readFile(t, memory))
		if marker := string(readFile(t, filepath.Join(dir, ".pool-id"))); marker != ids[i] {
			t.Errorf("the pool is %q, remembered is %q", marker, ids[i])
		}
		if err := os.Remove(memory); err != nil {
			t.Fatal(err)
		}
	}
	if ids[0] != ids[1] || len(ids[0]) != 33 {
		t.Errorf("ids: %q", ids)
	}
	found := slices.DeleteFunc(tree(t, dir), func(path string) bool { return strings.HasPrefix(path, v.ID) })
	if !slices.Equal(found, []string{".new", ".pool-id", ".trash"}) {
		t.Errorf("in the directory: %q", found)
	}
}

// TestUnreadableID: what is no id is neither believed nor replaced.
func TestUnreadableID(t *testing.T) {
	for _, content := range []string{"", "0123\n", strings.Repeat("x", 32) + "\n"} {
		parent := t.TempDir()
		memory, dir := filepath.Join(parent, "pool-id"), filepath.Join(parent, "pool")
		marker := filepath.Join(dir, ".pool-id")
		closePool(t, remember(t, dir, memory))
		id := readFile(t, memory)
		for _, damaged := range []string{memory, marker} {
			if err := os.WriteFile(damaged, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			p := remember(t, dir, memory)
			expectUnavailable(t, p, targetID, damaged+" has no id of a pool in it")
			closePool(t, p)
			if got := readFile(t, damaged); string(got) != content {
				t.Errorf("%s was %q and is %q", damaged, content, got)
			}
			if err := os.WriteFile(damaged, id, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p := remember(t, dir, memory)
		if err := p.Available(); err != nil {
			t.Error(err)
		}
		closePool(t, p)
	}
}

// TestRemembersAfterCrash: whatever was written when the power failed at the first
// use, the next one works.
func TestRemembersAfterCrash(t *testing.T) {
	parent := t.TempDir()
	memory, dir := filepath.Join(parent, "plugin", "pool-id"), filepath.Join(parent, "pool")
	for name, left := range map[string]string{
		"marker half written": filepath.Join(dir, ".new", ".pool-id"),
		"memory half written": memory + ".new",
	} {
		if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left, []byte("01"), 0o600); err != nil {
			t.Fatal(err)
		}
		p := remember(t, dir, memory)
		if problems, err := p.Problems(); err != nil || problems != nil {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
		closePool(t, p)
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it is still there: %v", name, err)
		}
		for _, path := range []string{memory, dir} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}
