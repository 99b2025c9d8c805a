package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/pool"
)

const (
	node = "node-1"
	MiB  = 1 << 20
)

func openPool(t testing.TB, dir string) *pool.Pool {
	t.Helper()
	p, err := pool.Open(dir, node, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newPool opens a pool in dir/pool until the end of the test. Then nothing may be
// wrong with it.
func newPool(t testing.TB, dir string) *pool.Pool {
	t.Helper()
	p := openPool(t, filepath.Join(dir, "pool"))
	t.Cleanup(func() {
		checkPool(t, p, filepath.Join(dir, "pool"))
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// checkPool checks that each volume is whole, and that there is nothing else.
func checkPool(t testing.TB, p *pool.Pool, dir string) {
	t.Helper()
	problems, err := p.Problems()
	if err != nil || problems != nil {
		t.Errorf("problems: %v, %v", problems, err)
	}
	list, err := p.List()
	if err != nil {
		t.Error(err)
	}
	expect := []string{".new", ".trash"}
	for _, v := range list {
		expect = append(expect, v.ID, v.ID+"/image", v.ID+"/volume.json")
		if v.Path != filepath.Join(dir, v.ID, "image") {
			t.Errorf("%s is at %s", v.ID, v.Path)
		}
		size, allocated := fileSize(t, v.Path)
		if size != v.Size || size%pool.Alignment != 0 {
			t.Errorf("%s: the image has %d bytes and the volume %d", v.ID, size, v.Size)
		}
		if !v.Thin && allocated < size || allocated > size+size/256+MiB/4 {
			t.Errorf("%s: %d bytes are allocated for %d", v.ID, allocated, size)
		}
	}
	if found := tree(t, dir); !reflect.DeepEqual(found, expect) {
		t.Errorf("in the directory: %q, expected %q", found, expect)
	}
}

// tree returns the relative paths of everything below dir.
func tree(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != dir {
			path, err = filepath.Rel(dir, path)
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func fileSize(t testing.TB, path string) (size, allocated int64) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Size, st.Blocks * 512
}

func create(t testing.TB, p *pool.Pool, name string, size int64) pool.Volume {
	t.Helper()
	v, err := p.Create(context.Background(), pool.CreateOptions{Name: name, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func expectError(t testing.TB, what string, err, expect error) {
	t.Helper()
	if !errors.Is(err, expect) {
		t.Errorf("%s: %v, expected %q", what, err, expect)
	}
}

func writeAt(t testing.TB, path string, content []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestLife is the life of a volume from one end to the other, with the pool opened
// anew in between.
func TestLife(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "a", "pool")
	p := openPool(t, dir)
	reopen := func() {
		t.Helper()
		checkPool(t, p, dir)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = openPool(t, dir)
	}
	id := pool.ID("pvc-1", node)
	v, err := p.Create(ctx, pool.CreateOptions{Name: "pvc-1", Size: 4 * MiB})
	if err != nil {
		t.Fatal(err)
	}
	expect := pool.Volume{
		ID: id, Path: filepath.Join(dir, id, "image"), Name: "pvc-1", Size: 4 * MiB, Created: v.Created,
	}
	check := func() {
		t.Helper()
		reopen()
		if got, err := p.Get(id); err != nil || got != expect {
			t.Fatalf("%+v, %v; expected %+v", got, err, expect)
		}
		if list, err := p.List(); err != nil || len(list) != 1 || list[0] != expect {
			t.Fatalf("%+v, %v; expected %+v", list, err, expect)
		}
	}
	check()
	if again := create(t, p, "pvc-1", 4*MiB); again != v {
		t.Errorf("made again: %+v", again)
	}

	writeAt(t, v.Path, []byte("rubbish"), MiB)
	if err := p.Wipe(ctx, id); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, v.Path), make([]byte, 4*MiB)) {
		t.Error("it has been wiped, but has content")
	}

	for range 2 {
		if err := p.MarkUsed(ctx, id, "ext4"); err != nil {
			t.Fatal(err)
		}
	}
	expect.Used, expect.FSType = true, "ext4"
	check()
	writeAt(t, v.Path, []byte("precious"), MiB)
	expectError(t, "wiping a volume in use", p.Wipe(ctx, id), pool.ErrInvalid)

	grown, err := p.Grow(ctx, id, 9*MiB+1)
	expect.Size = 9*MiB + 4096
	if err != nil || grown != expect {
		t.Fatalf("grown: %+v, %v", grown, err)
	}
	check()
	for _, size := range []int64{1, 9 * MiB, 9*MiB + 4096} {
		if v, err := p.Grow(ctx, id, size); err != nil || v != expect {
			t.Errorf("grown to %d: %+v, %v", size, v, err)
		}
	}
	content := make([]byte, expect.Size)
	copy(content[MiB:], "precious")
	if !bytes.Equal(readFile(t, v.Path), content) {
		t.Error("the content has changed")
	}

	for range 2 {
		if err := p.Delete(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	_, err = p.Get(id)
	expectError(t, "a deleted volume", err, pool.ErrNotFound)
	reopen()
	if list, err := p.List(); err != nil || list != nil {
		t.Errorf("%v, %v", list, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNames: any name makes a volume of its own, inside the pool.
func TestNames(t *testing.T) {
	p := newPool(t, t.TempDir())
	hashed := "v-" + strings.Repeat("0123456789abcdef", 3)[:40]
	names := []string{
		"pvc-1", "pvc-2", "pvc.3", "PVC-1", ".", "..", "../x", "../../etc/passwd", "a/b", "/", "a..b", "a.",
		".new", ".trash", "image", strings.Repeat("x", 100), strings.Repeat("x", 101), strings.Repeat("x", 300),
		"Größe", "日本", "a b", "-a", "a\x00b", "\n", hashed, pool.ID("pvc-1", node), "x.00000000",
		pool.ID("pvc-1", "node-2"),
	}
	ids := make(map[string]bool)
	for _, name := range names {
		v := create(t, p, name, MiB)
		if v.Name != name || v.ID != pool.ID(name, node) || v.ID != filepath.Base(v.ID) || len(v.ID) > 109 {
			t.Errorf("%q became %+v", name, v)
		}
		ids[v.ID] = true
		if again := create(t, p, name, MiB); again != v {
			t.Errorf("%q was made anew", name)
		}
	}
	if len(ids) != len(names) {
		t.Errorf("%d ids for %d names: %v", len(ids), len(names), ids)
	}
	// The hash of the node is that of sha256sum.
	if id := pool.ID("pvc-1", node); id != "pvc-1.35971be6" {
		t.Errorf("a harmless name became %s", id)
	}
	if strings.HasPrefix(pool.ID(hashed, node), hashed) {
		t.Error("a name that looks like a hash could be the hash of another")
	}
	for _, name := range []string{"", "\xff", "a\xf0\x28b"} {
		_, err := p.Create(context.Background(), pool.CreateOptions{Name: name, Size: MiB})
		expectError(t, fmt.Sprintf("name %q", name), err, pool.ErrInvalid)
	}
}

// TestIDs: what is no id of this pool names nothing.
func TestIDs(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	p := newPool(t, dir)
	v := create(t, p, "pvc-1", MiB)
	if err := os.WriteFile(filepath.Join(dir, "outside"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	suffix := strings.TrimPrefix(v.ID, "pvc-1")
	for id, expect := range map[string]error{
		"":                       pool.ErrNotFound,
		".":                      pool.ErrNotFound,
		"..":                     pool.ErrNotFound,
		"pvc-1":                  pool.ErrNotFound,
		"../outside":             pool.ErrNotFound,
		"../pool/" + v.ID:        pool.ErrNotFound,
		"./" + v.ID:              pool.ErrNotFound,
		v.ID + "/":               pool.ErrNotFound,
		v.ID + "/image":          pool.ErrNotFound,
		v.ID + "\n":              pool.ErrNotFound,
		"x\n" + v.ID:             pool.ErrNotFound,
		".new":                   pool.ErrNotFound,
		".trash" + suffix:        pool.ErrNotFound,
		"PVC-1" + suffix:         pool.ErrNotFound,
		"pvc-2" + suffix:         pool.ErrNotFound,
		pool.ID("pvc-1", "node"): pool.ErrForeign,
		pool.ID("other", "node"): pool.ErrForeign,
	} {
		_, err := p.Get(id)
		expectError(t, fmt.Sprintf("Get(%q)", id), err, expect)
		_, err = p.Grow(ctx, id, 2*MiB)
		expectError(t, fmt.Sprintf("Grow(%q)", id), err, expect)
		_, err = p.Clone(ctx, id, pool.CreateOptions{Name: "clone", Size: MiB}, nil)
		expectError(t, fmt.Sprintf("Clone(%q)", id), err, expect)
		expectError(t, fmt.Sprintf("MarkUsed(%q)", id), p.MarkUsed(ctx, id, "ext4"), expect)
		expectError(t, fmt.Sprintf("Wipe(%q)", id), p.Wipe(ctx, id), expect)
		if expect == pool.ErrNotFound {
			expect = nil
		}
		expectError(t, fmt.Sprintf("Delete(%q)", id), p.Delete(ctx, id), expect)
	}
	if got := create(t, p, "pvc-1", MiB); got != v {
		t.Errorf("the volume has changed: %+v", got)
	}
	if found := tree(t, dir)[0]; found != "outside" {
		t.Errorf("outside the pool: %q", found)
	}
}

func TestSizes(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir())
	for i, test := range []struct {
		size, expect int64
		err          error
	}{
		{0, 0, pool.ErrInvalid},
		{-1, 0, pool.ErrInvalid},
		{-1 << 63, 0, pool.ErrInvalid},
		{1, MiB, nil},
		{MiB, MiB, nil},
		{MiB + 1, MiB + 4096, nil},
		{MiB + 4096, MiB + 4096, nil},
		{1 << 60, 0, pool.ErrFull},
		{1<<63 - 1, 0, pool.ErrFull},
		{1<<63 - 4097, 0, pool.ErrFull},
	} {
		for _, thin := range []bool{false, true} {
			o := pool.CreateOptions{Name: fmt.Sprintf("pvc-%d-%v", i, thin), Size: test.size, Thin: thin}
			v, err := p.Create(ctx, o)
			expectError(t, fmt.Sprintf("%d bytes", test.size), err, test.err)
			if v.Size != test.expect {
				t.Errorf("%d bytes became %d", test.size, v.Size)
			}
			if err == nil && thin {
				if _, allocated := fileSize(t, v.Path); allocated != 0 {
					t.Errorf("a thin volume has %d bytes", allocated)
				}
			}
		}
	}
	v := create(t, p, "pvc", MiB)
	for size, expect := range map[int64]error{0: pool.ErrInvalid, -1: pool.ErrInvalid, 1 << 60: pool.ErrFull, 1<<63 - 1: pool.ErrFull} {
		_, err := p.Grow(ctx, v.ID, size)
		expectError(t, fmt.Sprintf("growing to %d bytes", size), err, expect)
	}
}

func TestExists(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir())
	v := create(t, p, "pvc", MiB)
	other := create(t, p, "other", MiB)
	if _, err := p.Clone(ctx, v.ID, pool.CreateOptions{Name: "clone", Size: MiB}, nil); err != nil {
		t.Fatal(err)
	}
	for _, o := range []pool.CreateOptions{
		{Name: "pvc", Size: 2 * MiB},
		{Name: "pvc", Size: MiB, Thin: true},
		{Name: "clone", Size: MiB},
	} {
		_, err := p.Create(ctx, o)
		expectError(t, fmt.Sprintf("%+v", o), err, pool.ErrExists)
	}
	for name, source := range map[string]string{"pvc": other.ID, "clone": other.ID} {
		_, err := p.Clone(ctx, source, pool.CreateOptions{Name: name, Size: MiB}, nil)
		expectError(t, fmt.Sprintf("%s of %s", name, source), err, pool.ErrExists)
	}
}

// TestConcurrentCreate: many who want the same volume get the same.
func TestConcurrentCreate(t *testing.T) {
	p := newPool(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			size := int64(1+i%2) * MiB
			v, err := p.Create(context.Background(), pool.CreateOptions{Name: "pvc", Size: size})
			if err == nil && v.Size != size || err != nil && !errors.Is(err, pool.ErrExists) {
				t.Errorf("%+v, %v", v, err)
			}
		})
		wg.Go(func() { create(t, p, fmt.Sprintf("pvc-%d", i), MiB) })
	}
	wg.Wait()
	if list, err := p.List(); err != nil || len(list) != 25 {
		t.Errorf("%d volumes, %v", len(list), err)
	}
}

// TestAttached: an image that somebody uses stays.
func TestAttached(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir())
	v := create(t, p, "pvc", MiB)
	f, err := blockdev.Open(v.Path, blockdev.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	expectError(t, "deleting", p.Delete(ctx, v.ID), pool.ErrInUse)
	expectError(t, "wiping", p.Wipe(ctx, v.ID), pool.ErrInUse)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(ctx, v.ID); err != nil {
		t.Error(err)
	}
}

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	p := openPool(t, dir)
	_, err := pool.Open(dir, node, "")
	expectError(t, "opened twice", err, pool.ErrInUse)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openPool(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
}
