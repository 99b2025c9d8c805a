package device

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What cannot be attached is refused, with a message and an exit code.
func TestAttachRefuses(t *testing.T) {
	h := newHost(t)
	file := func(name string, content []byte, size int64) string {
		path := filepath.Join(h.dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	for _, mode := range [][]string{{"attach"}, {"attach", "--daemon"}} {
		for _, c := range []struct {
			path string
			code int
			says string
		}{
			{filepath.Join(h.dir, "nothing"), exitFailed, "no such file"},
			{file("empty", nil, 0), exitFailed, "no bytes"},
			{file("small", []byte("too small\n"), 0), exitFailed, "small"},
			{h.dir, exitFailed, "neither"},
			{"/dev/null", exitFailed, "neither"},
			{file("log", []byte("BOW\x00garbage"), mib), exitDamaged, "not supported"},
		} {
			if r := h.exits(c.code, append(mode, c.path)...); !strings.Contains(r.stderr, c.says) {
				t.Errorf("want to be told of %q: %s", c.says, r)
			}
		}
	}
	h.exits(exitUsage, "attach", "--block-size", "100", file("zeros", nil, mib))
	h.exits(exitUsage, "attach", "--block-size", "x", file("zeros", nil, mib))
	// Whatever is on it, it can be attached: that is for the file system to say.
	v := h.newVolume(file("garbage", randomBytes(newRand(t), mib), 0))
	v.attach()
	v.detach()
}

// Every command tells wrong usage, a target that is not attached, and a device
// without a checkpoint by its exit code.
func TestExitCodes(t *testing.T) {
	v := newHost(t).newImage("image", 64*mib)
	h := v.host
	r := execute(t, program, "nonsense")
	if r.code != exitUsage && r.code != exitFailed {
		t.Error(r)
	}
	for _, command := range []string{"attach", "detach", "checkpoint", "commit", "trim", "status", "inspect", "verify", "restore", "roll-forward"} {
		h.exits(exitUsage, command)
		h.exits(exitUsage, command, v.path, "too much")
		h.exits(exitUsage, command, "--nonsense", v.path)
		if help := h.must(command, "--help"); !strings.Contains(help, "bowline device "+command) {
			t.Errorf("%s --help says:\n%s", command, help)
		}
	}
	h.exits(exitUsage, "list", "too much")
	for _, command := range []string{"status", "list", "inspect"} {
		args := []string{command, "--output", "xml"}
		if command != "list" {
			args = append(args, v.path)
		}
		h.exits(exitUsage, args...)
	}
	for _, command := range []string{"detach", "checkpoint", "commit", "trim", "status"} {
		h.exits(exitState, command, v.path)
		h.exits(exitState, command, "/nothing")
	}
	for _, command := range []string{"inspect", "verify", "restore", "roll-forward"} {
		h.exits(exitNoLog, command, v.path)
		h.exits(exitFailed, command, "/nothing")
	}
	h.exits(exitNoLog, "restore", "--dry-run", v.path)

	v.attach()
	h.exits(exitState, "commit", v.path)
	h.exits(exitState, "trim", v.path)
	h.exits(exitState, "checkpoint", v.path) // nothing is known to be free
	for _, command := range []string{"attach", "inspect", "verify", "restore", "roll-forward"} {
		r := h.exits(exitState, command, v.path)
		if !strings.Contains(r.stderr, "is attached as "+v.device) {
			t.Errorf("want to be told where it is attached: %s", r)
		}
		h.exits(exitState, command, v.device)
	}
	// Another run directory does not help.
	other := &host{t: t, dir: h.dir, runDir: filepath.Join(h.dir, "other")}
	for _, command := range []string{"attach", "inspect", "verify", "restore", "roll-forward"} {
		other.exits(exitState, command, v.path)
	}
	v.detach()
}

// Logs that are damaged are told from sound ones and from none at all; what is
// there now can be kept all the same.
func TestDamage(t *testing.T) {
	k := ext4(4096)
	v := k.newMounted(t)
	content := randomBytes(newRand(t), 8*mib)
	if err := os.WriteFile(v.in("file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Sync()
	v.must("checkpoint", v.mountpoint)
	if err := writeAt(v.in("file"), 0, make([]byte, len(content))); err != nil {
		t.Fatal(err)
	}
	v.umount()
	v.detach()
	v.must("verify", v.path)
	if text := v.must("inspect", "--output", "json", v.path); !json.Valid([]byte(text)) {
		t.Errorf("not JSON: %s", text)
	}

	// One byte of one copy is enough.
	image, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	needle := content[mib : mib+512]
	at := strings.Index(string(image), string(needle))
	if at < 0 {
		t.Fatal("the copy of the old content is not on the device")
	}
	if err := writeAt(v.path, int64(at), []byte("spoilt")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify"}, {"restore", "--dry-run"}, {"restore"}} {
		v.exits(exitDamaged, append(args, v.path)...)
	}
	after, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("a checkpoint that cannot be restored was changed by trying")
	}
	v.must("roll-forward", v.path)
	v.exits(exitNoLog, "inspect", v.path)
	k.check(t, v.path)
	v.attach()
	v.mount()
	if got, err := os.ReadFile(v.in("file")); err != nil || string(got) != string(make([]byte, len(content))) {
		t.Errorf("after rolling forward the file is not what was written last (%v)", err)
	}
	v.finish(k)
}

// Attached volumes are found by image, device, mount point and name, and listed.
func TestTargetsAndList(t *testing.T) {
	k := ext4(4096)
	h := newHost(t)
	if got := h.must("list"); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "PATH") {
		t.Errorf("list without volumes: %q", got)
	}
	a, b := h.newImage("a.img", k.size), h.newImage("b with spaces", k.size)
	for _, v := range []*volume{a, b} {
		k.make(t, v.path)
	}
	a.attach()
	b.attachInBackground()
	a.mount()
	link := filepath.Join(h.dir, "link")
	if err := os.Symlink(a.path, link); err != nil {
		t.Fatal(err)
	}
	s := a.status()
	if s.Path != a.path || s.Device != a.device || s.MountedAt != a.mountpoint {
		t.Errorf("status of a: %+v", s)
	}
	for _, target := range []string{a.path, a.device, a.mountpoint, link, s.Name} {
		var same status
		decode(t, h.must("status", target, "-o", "json"), &same)
		if same.Name != s.Name {
			t.Errorf("%s is taken for %s", target, same.Name)
		}
	}
	var list []status
	decode(t, h.must("list", "--output", "json"), &list)
	if len(list) != 2 || list[0].Path != a.path || list[1].Path != b.path {
		t.Errorf("list: %+v", list)
	}
	table := h.must("list")
	for _, want := range []string{a.path, a.device, a.mountpoint, b.path, b.device} {
		if !strings.Contains(table, want) {
			t.Errorf("%s is not in the list:\n%s", want, table)
		}
	}
	if human := h.must("status", a.path); !strings.Contains(human, a.mountpoint) {
		t.Errorf("status: %s", human)
	}
	h.exits(exitState, "status", h.dir)
	// Each is detached by another kind of target.
	a.umount()
	h.must("detach", a.device)
	a.ended(0)
	h.must("detach", link[:len(link)-len("link")]+"b with spaces")
	b.ended(0)
}

// What is mounted stays attached.
func TestDetachMounted(t *testing.T) {
	k := ext4(4096)
	v := k.newMounted(t)
	v.must("checkpoint", v.mountpoint)
	v.exits(exitState, "checkpoint", v.mountpoint)
	for _, target := range []string{v.path, v.device, v.mountpoint} {
		v.exits(exitState, "detach", target)
	}
	if err := os.WriteFile(v.in("file"), []byte("still here"), 0o600); err != nil {
		t.Error(err)
	}
	v.restore(k)
	if _, err := os.Stat(v.in("file")); !os.IsNotExist(err) {
		t.Errorf("the file of after the checkpoint: %v", err)
	}
	v.finish(k)
}

// An image that others use without bowline is left alone.
func TestImageInUseByOthers(t *testing.T) {
	k := ext4(4096)
	v := newHost(t).newImage("image", k.size)
	k.make(t, v.path)
	refused := func(why string) {
		t.Helper()
		for _, command := range []string{"attach", "inspect", "verify", "restore", "roll-forward"} {
			if r := v.exits(exitState, command, v.path); !strings.Contains(r.stderr, "in use") {
				t.Errorf("%s: want to be told: %s", why, r)
			}
		}
		v.exits(exitState, "attach", "--daemon", v.path)
	}

	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", v.path))
	t.Cleanup(func() { execute(t, "losetup", "--detach", loop) })
	refused("a loop device on the image")
	// The name is not what counts.
	renamed := v.path + ".renamed"
	if err := os.Rename(v.path, renamed); err != nil {
		t.Fatal(err)
	}
	v.exits(exitState, "attach", renamed)
	if err := os.Rename(renamed, v.path); err != nil {
		t.Fatal(err)
	}
	tool(t, "losetup", "--detach", loop)

	tool(t, "mount", "-o", "loop", v.path, v.mountpoint)
	v.mounted = true
	refused("mounted with -o loop")
	v.umount()
	eventually(t, "the image is free", func() bool { return v.host.device("inspect", v.path).code == exitNoLog })
	v.attach()
	v.detach()
}

// A block device is as good as an image.
func TestBlockDevice(t *testing.T) {
	k := xfs(512)
	h := newHost(t)
	image := filepath.Join(h.dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, k.size); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--direct-io=on", image))
	t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
	k.make(t, loop)
	v := h.newVolume(loop)
	tool(t, "mount", loop, v.mountpoint)
	v.mounted = true
	for _, command := range []string{"attach", "inspect", "verify", "restore", "roll-forward"} {
		h.exits(exitState, command, loop) // mounted
	}
	v.umount()

	v.attach()
	v.mount()
	if r := execute(t, "mount", loop, h.dir); r.code == 0 {
		tool(t, "umount", h.dir)
		t.Error("the block device can be mounted while it is attached")
	}
	plant(t, newRand(t), v.in("still"), 5*mib)
	want := readTree(t, v.in("still"))
	v.must("checkpoint", v.mountpoint)
	wreck(t, newRand(t), v.in("still"), 5*mib)
	v.restore(k)
	readTree(t, v.in("still")).mustEqual(t, want, "after the rollback")
	v.finish(k)
	// A loop device on the block device.
	upper := strings.TrimSpace(tool(t, "losetup", "--find", "--show", loop))
	t.Cleanup(func() { execute(t, "losetup", "--detach", upper) })
	h.exits(exitState, "attach", loop)
	tool(t, "losetup", "--detach", upper)
}

// A process in the foreground that is asked to end goes on serving while its
// device is mounted, says so, and ends when it can.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			k := ext4(4096)
			v := k.newMounted(t)
			v.signal(s)
			eventually(t, "it says that it goes on", func() bool { return strings.Contains(v.said.String(), "still serving") })
			if err := os.WriteFile(v.in("file"), []byte("still here"), 0o600); err != nil {
				t.Error(err)
			}
			tool(t, "sync", v.in("file"))
			v.umount()
			v.signal(s)
			v.ended(0)
			k.check(t, v.path)
			v.attach()
			v.mount()
			if b, err := os.ReadFile(v.in("file")); err != nil || string(b) != "still here" {
				t.Errorf("the file has %q, %v", b, err)
			}
			v.finish(k)
		})
	}
}

// A process that was killed before anything was mounted is no obstacle.
func TestKilledIdle(t *testing.T) {
	k := ext4(4096)
	v := newHost(t).newImage("image", k.size)
	k.make(t, v.path)
	v.attach()
	v.signal(syscall.SIGKILL)
	v.process.Wait()
	v.process = nil
	first := v.device
	v.attach()
	if v.device != first {
		eventually(t, first+" is gone", func() bool { return !isExport(first) })
	}
	v.mount()
	time.Sleep(10 * time.Millisecond)
	v.finish(k)
}
