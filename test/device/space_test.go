package device

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// both are an ext4 and an XFS as they are made by default.
var both = []kind{ext4(4096), xfs(4096)}

// When free space is gone, writers get an error and the checkpoint is as good as
// ever.
func TestFull(t *testing.T) {
	for _, k := range both {
		t.Run(k.name, func(t *testing.T) {
			r := newRand(t)
			v := k.newMounted(t)
			plant(t, r, v.in("still"), 40*mib)
			syscall.Sync()
			want := readTree(t, v.in("still"))
			v.must("checkpoint", v.mountpoint)

			// First what was there, so that backups need space, then new files
			// until there is no more.
			wreck(t, r, v.in("still"), 0)
			chunk := randomBytes(r, mib)
			err := fill(v.in("fill"), chunk, 2*k.size)
			t.Logf("the writer got: %v", err)
			if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
				t.Fatalf("filling the file system: %v; want ENOSPC or EIO", err)
			}
			s := v.status()
			t.Logf("%d bytes free, %d backed up, %d requests failed", s.Free, s.BackedUp, s.OutOfSpace)
			if s.State != "checkpoint" {
				t.Errorf("state %s", s.State)
			}
			// The file system may have shut itself down, but it goes.
			v.restore(k)
			readTree(t, v.in("still")).mustEqual(t, want, "after the rollback")
			v.finish(k)
		})
	}
}

// fill writes chunk again and again into files that begin with prefix, with a
// sync after each, and returns the first error. It gives up after limit bytes.
func fill(prefix string, chunk []byte, limit int64) error {
	for i := int64(0); i < limit/int64(len(chunk)); i++ {
		f, err := os.Create(fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			return err
		}
		_, err = f.Write(chunk)
		err = errors.Join(err, f.Sync(), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// A discard of what was there at the checkpoint costs nothing, and one of what
// was written since gives its space back.
func TestDiscards(t *testing.T) {
	for _, k := range both {
		t.Run(k.name, func(t *testing.T) {
			const size, metadata = 8 * mib, 2 * mib
			r := newRand(t)
			v := k.newMounted(t)
			old := randomBytes(r, size)
			write := func(name string, p []byte) {
				t.Helper()
				if err := os.WriteFile(v.in(name), p, 0o600); err != nil {
					t.Fatal(err)
				}
				tool(t, "sync", "--file-system", v.mountpoint)
			}
			remove := func(name string) {
				t.Helper()
				if err := os.Remove(v.in(name)); err != nil {
					t.Fatal(err)
				}
				tool(t, "sync", "--file-system", v.mountpoint)
				tool(t, "fstrim", v.mountpoint)
			}
			write("old", old)
			v.must("checkpoint", v.mountpoint)
			free := v.status().Free

			// In this order, as XFS would reuse the space of the old file for the
			// new one, which then needs backups.
			write("new", randomBytes(r, size))
			written := v.status().Free
			if written > free-size/2 {
				t.Errorf("8 MiB written: free went from %d to %d bytes", free, written)
			}
			remove("new")
			// XFS frees the blocks of a deleted file when it has time.
			eventually(t, fmt.Sprintf("what was written since the checkpoint is free again when discarded: %d bytes are free, it was %d", written, free), func() bool {
				tool(t, "fstrim", v.mountpoint)
				return v.status().Free >= free-metadata
			})

			free = v.status().Free
			remove("old")
			if now := v.status().Free; now < free-metadata {
				t.Errorf("8 MiB of before the checkpoint discarded: free went from %d to %d bytes", free, now)
			}

			v.restore(k)
			if got, err := os.ReadFile(v.in("old")); err != nil || string(got) != string(old) {
				t.Errorf("the file of before: %d bytes, %v, equal: %v", len(got), err, string(got) == string(old))
			}
			v.finish(k)
		})
	}
}

// Ten checkpoints in one mount, each with data of its own, also after a FITRIM
// that leaves ext4 with nothing to trim; then a rollback of the last.
func TestManyCheckpoints(t *testing.T) {
	for _, k := range both {
		t.Run(k.name, func(t *testing.T) {
			r := newRand(t)
			v := k.newMounted(t)
			trimmed := strings.TrimSpace(tool(t, "fstrim", "--verbose", v.mountpoint))
			again := strings.TrimSpace(tool(t, "fstrim", "--verbose", v.mountpoint))
			t.Logf("%s; %s", trimmed, again)
			if k.isExt4() && !strings.Contains(again, "(0 bytes)") {
				t.Errorf("the second FITRIM: %s; this test is about ext4 sending nothing", again)
			}
			plant(t, r, v.in("still"), 3*mib)
			var want tree
			var first int64
			for i := range 10 {
				want = readTree(t, v.in("still"))
				v.must("checkpoint", v.mountpoint)
				s := v.status()
				if i == 0 {
					first = s.Free
				} else if s.Free < first-60*mib {
					t.Errorf("checkpoint %d: %d bytes are free, at the first one there were %d", i, s.Free, first)
				}
				wreck(t, r, v.in("still"), 3*mib)
				if i == 9 {
					break
				}
				changed := readTree(t, v.in("still"))
				v.must("commit", v.mountpoint)
				tool(t, "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
				readTree(t, v.in("still")).mustEqual(t, changed, fmt.Sprintf("after commit %d", i))
				if err := os.RemoveAll(v.in("still", "new")); err != nil {
					t.Fatal(err)
				}
				plant(t, r, v.in("still", fmt.Sprint("more", i)), mib)
			}
			v.restore(k)
			readTree(t, v.in("still")).mustEqual(t, want, "after the rollback of the last checkpoint")
			v.finish(k)
		})
	}
}

// Block 0 holds the log while a checkpoint is open. What the file system writes
// there meanwhile is there after a commit, and is not after a rollback.
func TestBlock0(t *testing.T) {
	kinds := append([]kind{ext4(1024), ext4(2048)}, both...)
	for _, k := range briefly(kinds) {
		t.Run(k.name, func(t *testing.T) {
			v := newHost(t).newImage("image", k.size)
			k.make(t, v.path)
			v.attach()
			// ext4 takes a label while mounted, XFS since a short while ago.
			relabel := func(label string) {
				t.Helper()
				if k.isExt4() {
					tool(t, "tune2fs", "-L", label, v.device)
					return
				}
				v.umount()
				tool(t, "xfs_admin", "-L", label, v.device)
				v.mount()
			}
			mustBe := func(label, when string) {
				t.Helper()
				command := []string{"e2label", v.device}
				if !k.isExt4() {
					command = []string{"blkid", "-p", "-o", "value", "-s", "LABEL", v.device}
				}
				tool(t, "sync")
				if got := strings.TrimSpace(tool(t, command[0], command[1:]...)); got != label {
					t.Errorf("%s: the label is %q, want %q", when, got, label)
				}
			}
			v.mount()
			relabel("first")
			v.must("checkpoint", v.mountpoint)
			mustBe("first", "after the checkpoint")
			relabel("second")
			mustBe("second", "with the checkpoint open")
			v.must("commit", v.mountpoint)
			mustBe("second", "after the commit")
			v.umount()
			v.detach()
			k.check(t, v.path)
			v.attach()
			mustBe("second", "after the commit and another attach")
			v.mount()
			v.must("checkpoint", v.mountpoint)
			relabel("third")
			mustBe("third", "with the second checkpoint open")
			v.restore(k)
			mustBe("second", "after the rollback")

			// Without a file system to ask, what is known to be free counts: nothing
			// at first, later what was free in the last checkpoint.
			v.umount()
			v.exits(exitState, "checkpoint", v.path)
			v.mount()
			v.must("checkpoint", v.mountpoint)
			v.must("commit", v.mountpoint)
			v.umount()
			v.must("checkpoint", v.path)
			v.mount()
			mustBe("second", "with a checkpoint opened while unmounted")
			v.umount()
			v.must("commit", v.path)
			v.detach()
		})
	}
}

// The process that serves is killed while the file system is mounted and busy
// and a checkpoint is open. The file system can be unmounted, nothing is left,
// and the checkpoint is there.
func TestKilled(t *testing.T) {
	for _, k := range both {
		t.Run(k.name, func(t *testing.T) { killed(t, k) })
		t.Run(k.name+" over io_uring", func(t *testing.T) {
			if _, err := os.Stat("/sys/module/fuse/parameters/enable_uring"); err != nil {
				t.Skipf("SKIPPED: this kernel has no FUSE over io_uring: %v", err)
			}
			killed(t, k, "--io-uring")
		})
	}
}

func killed(t *testing.T, k kind, flags ...string) {
	r := newRand(t)
	v := newHost(t).newImage("image", k.size)
	k.make(t, v.path)
	v.attachInBackground(flags...)
	pid := v.peer()
	v.mount()
	plant(t, r, v.in("still"), 5*mib)
	want := readTree(t, v.in("still"))
	l := startLoad(t, v.in("load"))
	from := l.before()
	v.must("checkpoint", v.mountpoint)
	to := l.after()
	opened := v.status()
	if opened.IOUring != (flags != nil) {
		t.Errorf("over io_uring: %t", opened.IOUring)
	}
	wreck(t, r, v.in("still"), 5*mib)
	time.Sleep(200 * time.Millisecond)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a writer sees an error", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.failed) > 0
	})
	t.Logf("writers: %v", l.end())
	v.exits(exitState, "restore", v.path)
	v.exits(exitState, "attach", v.path)
	v.exits(exitState, "detach", v.path)
	v.exits(exitState, "status", v.mountpoint)
	v.umount()
	// The first command that needs the bare image removes what is left, if
	// nobody asked for it before.
	if k.isExt4() {
		v.must("detach", v.path)
	} else {
		v.must("verify", v.path)
	}
	v.ended(-1)
	if list := strings.TrimSpace(v.must("list", "-o", "json")); list != "[]" {
		t.Errorf("list after the end: %s", list)
	}
	v.exits(exitState, "status", v.path)
	v.must("inspect", v.path)
	v.resume(opened.Checkpoint)
	wreck(t, r, v.in("still"), 5*mib)
	v.restore(k)
	readTree(t, v.in("still")).mustEqual(t, want, "after the rollback")
	checkLoad(t, v.in("load"), from, to)
	v.finish(k)
}
