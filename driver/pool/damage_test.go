package pool_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/pool"
)

// snapshot returns type, size and content of everything below dir but what the pool
// works in.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, path := range tree(t, dir) {
		st, err := os.Lstat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprint(st.Mode(), " ")
		if st.Mode().IsRegular() {
			what += string(readFile(t, filepath.Join(dir, path)))
		}
		all[path] = what
	}
	return all
}

// TestDamaged: what is not understood is reported, not touched, and does not hinder.
func TestDamaged(t *testing.T) {
	ctx := context.Background()
	id := pool.ID("pvc", node)
	record := filepath.Join(id, "volume.json")
	image := filepath.Join(id, "image")
	write := func(path, content string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600) }
	}
	remove := func(path string) func(string) error {
		return func(dir string) error { return os.RemoveAll(filepath.Join(dir, path)) }
	}
	then := func(all ...func(string) error) func(string) error {
		return func(dir string) error {
			for _, f := range all {
				if err := f(dir); err != nil {
					return err
				}
			}
			return nil
		}
	}
	link := func(path, to string) func(string) error {
		return func(dir string) error { return os.Symlink(filepath.Join(dir, to), filepath.Join(dir, path)) }
	}
	for _, test := range []struct {
		name   string
		damage func(dir string) error
		says   string
	}{
		{"RecordEmpty", write(record, ""), "unexpected end"},
		{"RecordTorn", write(record, `{"version": 1, "na`), "unexpected end"},
		{"RecordGarbage", write(record, "\x00\xff\x00"), "invalid character"},
		{"RecordOfOtherType", write(record, `[1]`), "cannot unmarshal"},
		{"RecordNull", write(record, `null`), "version 0"},
		{"RecordNewer", write(record, `{"version": 2, "name": "pvc", "size": 1048576}`), "has version 2; this program knows 1"},
		{"RecordOfAnother", write(record, `{"version": 1, "name": "other", "size": 1048576}`), `of another volume, "other"`},
		{"SizeMissing", write(record, `{"version": 1, "name": "pvc"}`), "1048576 bytes instead of 0"},
		{"SizeNegative", write(record, `{"version": 1, "name": "pvc", "size": -4096}`), "instead of -4096"},
		{"SizeHuge", write(record, `{"version": 1, "name": "pvc", "size": 99999999999999999999}`), "cannot unmarshal"},
		{"RecordMissing", remove(record), "there is no volume.json"},
		{"ImageMissing", remove(image), "there is no image"},
		{"ImageShort", write(image, "short"), "has 5 bytes instead of 1048576"},
		{"ImageIsDirectory", then(remove(image), func(dir string) error { return os.Mkdir(filepath.Join(dir, image), 0o700) }), "not a regular file"},
		{"ImageIsFIFO", then(remove(image), func(dir string) error { return unix.Mkfifo(filepath.Join(dir, image), 0o600) }), "not a regular file"},
		{"ImageIsLink", then(remove(image), link(image, "../outside")), "not a regular file"},
		{"Empty", then(remove(record), remove(image)), "there is no volume.json"},
		{"NotADirectory", then(remove(id), write(id, "")), "not a directory"},
		{"LinkToDirectory", then(remove(id), link(id, "..")), "not a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := t.TempDir()
			outside := filepath.Join(parent, "outside")
			if err := os.WriteFile(outside, make([]byte, 2*MiB), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(parent, "pool")
			p := openPool(t, dir)
			create(t, p, "pvc", MiB)
			create(t, p, "sound", MiB)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, parent)
			p = openPool(t, dir)
			defer p.Close()

			problems, err := p.Problems()
			if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Error(), test.says) ||
				!strings.Contains(problems[0].Error(), id) {
				t.Errorf("problems: %q, %v", problems, err)
			}
			if list, err := p.List(); err != nil || len(list) != 1 || list[0].Name != "sound" {
				t.Errorf("%+v, %v", list, err)
			}
			_, err = p.Get(id)
			expectError(t, "Get", err, pool.ErrDamaged)
			_, err = p.Create(ctx, pool.CreateOptions{Name: "pvc", Size: MiB})
			expectError(t, "Create", err, pool.ErrDamaged)
			_, err = p.Clone(ctx, id, pool.CreateOptions{Name: "clone", Size: MiB}, nil)
			expectError(t, "Clone", err, pool.ErrDamaged)
			_, err = p.Grow(ctx, id, 2*MiB)
			expectError(t, "Grow", err, pool.ErrDamaged)
			expectError(t, "MarkUsed", p.MarkUsed(ctx, id, "ext4"), pool.ErrDamaged)
			expectError(t, "Wipe", p.Wipe(ctx, id), pool.ErrDamaged)
			capacity(t, p)
			if after := snapshot(t, parent); !maps.Equal(after, before) {
				t.Error("something has been touched")
			}

			if err := p.Delete(ctx, id); err != nil {
				t.Fatal(err)
			}
			checkPool(t, p, dir)
			if len(readFile(t, outside)) != 2*MiB {
				t.Error("something outside has been touched")
			}
		})
	}
}

// TestOthers: volumes of another node and things that are none are left alone.
func TestOthers(t *testing.T) {
	dir := t.TempDir()
	p, err := pool.Open(dir, "node-2", "")
	if err != nil {
		t.Fatal(err)
	}
	foreign := create(t, p, "pvc", MiB)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes.txt", "Größe", "lost+found"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, dir)
	p = openPool(t, dir)
	defer p.Close()
	if list, err := p.List(); err != nil || list != nil {
		t.Errorf("%v, %v", list, err)
	}
	problems, err := p.Problems()
	if err != nil || len(problems) != 3 || !strings.Contains(errors.Join(problems...).Error(), "notes.txt: not a volume's") {
		t.Errorf("%q, %v", problems, err)
	}
	if !errors.Is(errors.Join(problems...), pool.ErrForeign) {
		t.Errorf("%q does not tell of %s", problems, foreign.ID)
	}
	expectError(t, "Delete", p.Delete(context.Background(), foreign.ID), pool.ErrForeign)
	if after := snapshot(t, dir); !maps.Equal(after, before) {
		t.Error("something has been touched")
	}
}

// TestStubborn: what cannot be removed is reported, and does not hinder.
func TestStubborn(t *testing.T) {
	ctx := context.Background()
	d := newDisk(t, ext4)
	dir := filepath.Join(d.dir, "pool")
	p := openPool(t, dir)
	v := create(t, p, "pvc", MiB)
	left := filepath.Join(dir, ".trash", v.ID)
	if err := os.Rename(filepath.Dir(v.Path), left); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, "chattr", "+i", filepath.Join(left, "volume.json"))
	p = openPool(t, dir)
	if problems, err := p.Problems(); err != nil || len(problems) != 1 || !errors.Is(problems[0], unix.EPERM) {
		t.Errorf("%q, %v", problems, err)
	}
	create(t, p, "pvc", MiB)
	expectError(t, "Delete", p.Delete(ctx, v.ID), unix.EPERM)
	if _, err := p.Get(v.ID); err != nil {
		t.Errorf("deleting has failed, and yet: %v", err)
	}
	run(t, "chattr", "-i", filepath.Join(left, "volume.json"))
	if err := p.Delete(ctx, v.ID); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	newPool(t, d.dir)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, expect := range map[string]error{
		file:          unix.ENOTDIR,
		file + "/x":   unix.ENOTDIR,
		"/proc/1/new": unix.ENOENT,
	} {
		_, err := pool.Open(path, node, "")
		expectError(t, path, err, expect)
	}
	_, err := pool.Open(dir, "", "")
	expectError(t, "a node without a name", err, pool.ErrInvalid)
}

// TestLookingOn: volumes come and go without those who look at them seeing anything
// but volumes.
func TestLookingOn(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir())
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := p.Get(targetID); err != nil && !errors.Is(err, pool.ErrNotFound) {
					t.Error(err)
				}
				list, err := p.List()
				if err != nil || len(list) > 1 {
					t.Errorf("%v, %v", list, err)
				}
				for _, v := range list {
					if v.Size != MiB && v.Size != 2*MiB {
						t.Errorf("%+v", v)
					}
				}
				if problems, err := p.Problems(); err != nil || problems != nil {
					t.Errorf("%v, %v", problems, err)
				}
			}
		})
	}
	for range 30 {
		v := create(t, p, "target", MiB)
		if _, err := p.Grow(ctx, v.ID, 2*MiB); err != nil {
			t.Error(err)
		}
		if err := p.Delete(ctx, v.ID); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}
