package filesystem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An extent is a range of a device in bytes.
type extent struct{ off, length int64 }

// merge sorts extents and joins those that touch.
func merge(extents []extent) []extent {
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	var merged []extent
	for _, e := range extents {
		if n := len(merged); n > 0 && merged[n-1].off+merged[n-1].length == e.off {
			merged[n-1].length += e.length
			continue
		}
		merged = append(merged, e)
	}
	return merged
}

// freeByKernel returns what FreeSpace says, merged.
func freeByKernel(t *testing.T, mountpoint string) []extent {
	t.Helper()
	var got []extent
	err := FreeSpace(context.Background(), mountpoint, func(off, length int64) error {
		got = append(got, extent{off, length})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return merge(got)
}

// freeByTool returns what the tools of the file system say about the free space
// of one that is not mounted.
func freeByTool(t *testing.T, l layout, device string) []extent {
	t.Helper()
	if l.fsType == XFS {
		return freeInXFS(t, l, device)
	}
	var free []extent
	for line := range strings.Lines(tool(t, "dumpe2fs", device)) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "Free blocks: ")
		if !ok || list == "" || !strings.HasPrefix(line, " ") {
			continue // the line without indentation is the total
		}
		for _, item := range strings.Split(list, ", ") {
			first, last, ok := strings.Cut(item, "-")
			if !ok {
				last = first
			}
			a, b := number(t, first), number(t, last)
			free = append(free, extent{a * int64(l.block), (b - a + 1) * int64(l.block)})
		}
	}
	return merge(free)
}

// freeInXFS reads the trees of free extents. The blocks that each allocation group
// keeps for these trees themselves are not in them.
func freeInXFS(t *testing.T, l layout, device string) []extent {
	t.Helper()
	show := func(commands ...string) string {
		args := []string{"-r"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		return tool(t, "xfs_db", append(args, device)...)
	}
	field := func(text, name string) int64 {
		return number(t, regexp.MustCompile(`(?m)^` + name + ` = (\d+)$`).FindStringSubmatch(text)[1])
	}
	super := show("sb 0", "print")
	record := regexp.MustCompile(`\d+:\[(\d+),(\d+)\]`)
	var free []extent
	for group := range field(super, "agcount") {
		agf := fmt.Sprint("agf ", group)
		if field(show(agf, "print"), "bnolevel") != 1 {
			t.Fatal("the tree is too high for this test: fewer extents please")
		}
		for _, m := range record.FindAllStringSubmatch(show(agf, "addr bnoroot", "print recs"), -1) {
			block := group*field(super, "agblocks") + number(t, m[1])
			free = append(free, extent{block * int64(l.block), number(t, m[2]) * int64(l.block)})
		}
	}
	return merge(free)
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fragment fills a file system with files of many sizes and deletes some of them.
// It returns the content of the rest.
func fragment(t *testing.T, mountpoint string) map[string][]byte {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	files := map[string][]byte{}
	for i := range 600 {
		content := make([]byte, random.Uint64()%100_000)
		_, _ = random.Read(content)
		name := filepath.Join(mountpoint, fmt.Sprintf("dir%d", i%7), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
		files[name] = content
	}
	tool(t, "sync", "-f", mountpoint) // what has no place yet leaves no hole
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if random.Uint64()%3 > 0 {
			continue
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		delete(files, name)
	}
	return files
}

// verify compares the files below a mount point with what was written to them
// below another.
func verify(t *testing.T, from, to string, files map[string][]byte) {
	t.Helper()
	for name, want := range files {
		name = filepath.Join(to, strings.TrimPrefix(name, from))
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s has changed (%v)", name, err)
		}
	}
}

// scribble overwrites extents with garbage: short ones and both ends of the
// others wholly, the middle here and there.
func scribble(t *testing.T, path string, extents []extent) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const edge, step = 64 << 10, 1 << 20
	garbage := make([]byte, edge)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(garbage)
	write := func(off, length int64) {
		if _, err := f.WriteAt(garbage[:length], off); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range extents {
		n := min(e.length, edge)
		write(e.off, n)
		write(e.off+e.length-n, n)
		for at := int64(step); at+4096 <= e.length; at += step {
			write(e.off+at, 4096)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestFreeSpace compares with the tools of the file systems, then overwrites all
// that is said to be free: nothing may come to harm.
func TestFreeSpace(t *testing.T) {
	onEach(t, layouts, func(t *testing.T, l layout, device, _ string) {
		mnt := mountAt(t, device, l.fsType)
		files := fragment(t, mnt)
		unmount(t, mnt)
		want := freeByTool(t, l, device)
		if err := Mount(context.Background(), device, mnt, l.fsType, nil); err != nil {
			t.Fatal(err)
		}
		got := freeByKernel(t, mnt)
		if !slices.Equal(got, want) {
			t.Errorf("%d extents differ from the %d that the file system's tool found:\n%v\n%v", len(got), len(want), got, want)
		}
		if len(got) < 50 || got[0].off == 0 {
			t.Errorf("implausible: %d free extents, the first at %d", len(got), got[0].off)
		}
		unmount(t, mnt)
		scribble(t, device, got)
		check(t, device, l.fsType)
		if err := Mount(context.Background(), device, mnt, l.fsType, nil); err != nil {
			t.Fatal(err)
		}
		verify(t, mnt, mnt, files)
	})
}

// TestFreeSpaceFrozen takes a copy of a device while its file system is frozen in
// the middle of things. What was free then may be overwritten in the copy.
func TestFreeSpaceFrozen(t *testing.T) {
	onEach(t, layouts, func(t *testing.T, l layout, device, image string) {
		mnt := mountAt(t, device, l.fsType)
		files := fragment(t, mnt)
		open, err := os.Create(filepath.Join(mnt, "deleted but open"))
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		if _, err := open.Write(make([]byte, 3<<20)); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(open.Name()); err != nil {
			t.Fatal(err)
		}

		if err := Freeze(mnt); err != nil {
			t.Fatal(err)
		}
		free := freeByKernel(t, mnt)
		copied := filepath.Join(t.TempDir(), "copy")
		tool(t, "cp", "--sparse=always", image, copied)
		if err := Thaw(mnt); err != nil {
			t.Fatal(err)
		}

		scribble(t, copied, free)
		copyDevice := attachLoop(t, copied, l.sector)
		options := []string(nil)
		if l.fsType == XFS {
			options = append(options, "nouuid") // the original is mounted
		}
		verify(t, mnt, mountAt(t, copyDevice, l.fsType, options...), files)
	})
}

// TestFreeSpacePages asks for a few records at a time.
func TestFreeSpacePages(t *testing.T) {
	onEach(t, layouts, func(t *testing.T, l layout, device, _ string) {
		mnt := mountAt(t, device, l.fsType)
		fragment(t, mnt)
		if err := Freeze(mnt); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := Thaw(mnt); err != nil {
				t.Error(err)
			}
		}()
		want := freeByKernel(t, mnt)
		f, err := openMount(mnt)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, pageLen := range []int{1, 2, 7, 100} {
			var got []extent
			err := new(fsMapPage).walkFree(context.Background(), f, pageLen, func(off, length int64) error {
				got = append(got, extent{off, length})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got = merge(got); !slices.Equal(got, want) {
				t.Errorf("pages of %d: %d extents differ from the %d of large pages:\n%v\n%v", pageLen, len(got), len(want), got, want)
			}
		}
	})
}

// TestFreeSpaceOfOtherDevices: an XFS with a log or a realtime device of its own
// tells about its main device only.
func TestFreeSpaceOfOtherDevices(t *testing.T) {
	for _, test := range []struct{ name, mkfs, mount string }{
		{"log", "-l", "logdev="},
		{"realtime", "-r", "rtdev="},
	} {
		t.Run(test.name, func(t *testing.T) {
			main := newLoop(t, 400<<20, 512)
			other := newLoop(t, 1<<30, 512)
			tool(t, "mkfs.xfs", "-q", test.mkfs, test.mount+other, main)
			mnt := t.TempDir()
			err := Mount(context.Background(), main, mnt, XFS, []string{test.mount + other})
			if err != nil && strings.Contains(strings.ToLower(err.Error()), unix.ENOSYS.Error()) {
				t.Skip("SKIPPED: the kernel was built without this part of XFS")
			}
			if err != nil {
				t.Fatal(err)
			}
			free := freeByKernel(t, mnt)
			unmount(t, mnt)
			if want := freeByTool(t, layout{fsType: XFS, block: 4096}, main); !slices.Equal(free, want) {
				t.Errorf("got %v, want %v", free, want)
			}
		})
	}
}

func TestFreeSpaceStops(t *testing.T) {
	device := newLoop(t, 64<<20, 512)
	if err := Make(context.Background(), device, Ext4); err != nil {
		t.Fatal(err)
	}
	mnt := mountAt(t, device, Ext4)
	enough := errors.New("enough")
	calls := 0
	if err := FreeSpace(context.Background(), mnt, func(_, _ int64) error { calls++; return enough }); !errors.Is(err, enough) || calls != 1 {
		t.Errorf("an error of the callback: got %v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := FreeSpace(ctx, mnt, func(_, _ int64) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: got %v", err)
	}
}
