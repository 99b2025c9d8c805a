package device

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// host is a machine with bowline on it, of which each test has its own as far as
// that is possible: a directory for sockets, and one for everything else.
type host struct {
	t      *testing.T
	dir    string
	runDir string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if cannotRun != "" {
		t.Skip("SKIPPED: " + cannotRun)
	}
	dir := t.TempDir()
	h := &host{t: t, dir: dir, runDir: filepath.Join(dir, "run")}
	t.Cleanup(func() {
		logs, _ := filepath.Glob(filepath.Join(h.runDir, "*.log"))
		for _, log := range logs {
			said, _ := os.ReadFile(log)
			checkForRaces(t, string(said))
		}
	})
	return h
}

func checkForRaces(t *testing.T, said string) {
	t.Helper()
	if strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic:") {
		t.Errorf("the program said:\n%s", said)
	}
}

// device runs `bowline device ARGS`.
func (h *host) device(args ...string) result {
	h.t.Helper()
	return execute(h.t, program, append([]string{"device", "--run-dir", h.runDir}, args...)...)
}

// must runs `bowline device ARGS`, which must succeed, and returns its output.
func (h *host) must(args ...string) string {
	h.t.Helper()
	return h.exits(0, args...).stdout
}

// exits runs `bowline device ARGS`, which must end with an exit code, and if that
// is not 0 with a message in one line.
func (h *host) exits(code int, args ...string) result {
	h.t.Helper()
	r := h.device(args...)
	if r.code != code {
		h.t.Fatalf("want exit code %d: %s", code, r)
	}
	if message := strings.TrimSpace(r.stderr); code != 0 && (!strings.HasPrefix(message, "bowline: ") || strings.Contains(message, "\n")) {
		h.t.Fatalf("want one line that begins with %q: %s", "bowline: ", r)
	}
	return r
}

// volume is an image or a block device that is or will be attached.
type volume struct {
	*host
	path       string // image or backing device
	mountpoint string

	device  string    // mapped device, "" if not attached
	process *exec.Cmd // that serves it, nil if it does so in the background
	said    *output   // standard error of process
	mounted bool
}

// newImage makes a volume on a sparse image of size bytes.
func (h *host) newImage(name string, size int64) *volume {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		h.t.Fatal(err)
	}
	return h.newVolume(path)
}

// newVolume makes a volume on what is at path. When the test ends it is
// unmounted and detached, whatever happened to it.
func (h *host) newVolume(path string) *volume {
	h.t.Helper()
	v := &volume{host: h, path: path, mountpoint: filepath.Join(h.dir, filepath.Base(path)+".mnt")}
	if err := os.Mkdir(v.mountpoint, 0o700); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(v.cleanUp)
	return v
}

// attach runs `bowline device attach` in the foreground, so that its process is
// known.
func (v *volume) attach(flags ...string) {
	v.t.Helper()
	args := append([]string{"device", "--run-dir", v.runDir, "attach", v.path}, flags...)
	v.process = exec.Command(program, args...)
	v.said = &output{}
	v.process.Stderr = v.said
	stdout, err := v.process.StdoutPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := v.process.Start(); err != nil {
		v.t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		werr := v.process.Wait()
		v.process = nil
		v.t.Fatalf("attach %s: %v\n%s", v.path, werr, v.said)
	}
	v.device = strings.TrimSpace(line)
}

// attachInBackground runs `bowline device attach --daemon`.
func (v *volume) attachInBackground(flags ...string) {
	v.t.Helper()
	v.device = strings.TrimSpace(v.must(append([]string{"attach", "--daemon", v.path}, flags...)...))
	v.process = nil
}

// detach runs `bowline device detach`, after which the process must end well.
func (v *volume) detach() string {
	v.t.Helper()
	said := v.must("detach", v.path)
	v.ended(0)
	return said
}

// ended waits for the end of the serving process, which must have the given exit
// code, -1 if it was killed, and leave no loop device.
func (v *volume) ended(code int) {
	v.t.Helper()
	device := v.device
	v.device = ""
	if v.process != nil {
		v.process.Wait()
		if got := v.process.ProcessState.ExitCode(); got != code {
			v.t.Errorf("the process that served %s: exit code %d, want %d\n%s", device, got, code, v.said)
		}
		checkForRaces(v.t, v.said.String())
		v.process = nil
	}
	eventually(v.t, device+" has no file below it", func() bool { return !isExport(device) })
}

// isExport tells whether a device is a mapped one.
func isExport(device string) bool {
	below, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	return err == nil && strings.HasPrefix(string(below), "/bowline:")
}

func (v *volume) mount(options ...string) {
	v.t.Helper()
	args := []string{v.device, v.mountpoint}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	tool(v.t, "mount", args...)
	v.mounted = true
}

func (v *volume) umount() {
	v.t.Helper()
	tool(v.t, "umount", v.mountpoint)
	v.mounted = false
}

// in returns the path of something in the mounted file system.
func (v *volume) in(elem ...string) string {
	return filepath.Join(append([]string{v.mountpoint}, elem...)...)
}

// status is what `bowline device status --output json` tells.
type status struct {
	Name, Path, Device, MountedAt, State string

	Size, BlockSize, Free int64
	IOUring               bool

	DeviceErrors    uint64
	LastDeviceError string
	DeviceErrorAt   time.Time

	Checkpoint                                  string
	Opened                                      time.Time
	AgeSeconds                                  float64
	BackedUp, Changed, BackupUsed, MovedBackups int64
	LogSequence, LogWrites, OutOfSpace          int64
	LogUnsettled                                bool
}

func (v *volume) status() status {
	v.t.Helper()
	var s status
	decode(v.t, v.must("status", v.path, "--output", "json"), &s)
	return s
}

// decode reads JSON that must have no other fields than x.
func decode(t *testing.T, text string, x any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(x); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

// cleanUp takes away what a test has left, and complains of nothing that a
// failed test may leave.
func (v *volume) cleanUp() {
	if v.mounted {
		if r := execute(v.t, "umount", v.mountpoint); r.code != 0 {
			v.t.Error(r)
		}
	}
	if v.device == "" {
		return
	}
	if r := v.host.device("detach", v.path); r.code != 0 {
		v.t.Error(r)
		if v.process != nil {
			v.process.Process.Kill()
		}
	}
	if v.process != nil {
		v.process.Wait()
		checkForRaces(v.t, v.said.String())
	}
	if v.t.Failed() {
		v.t.Logf("the process that served %s said: %s", v.path, v.said)
	}
}

// signal sends a signal to the process in the foreground.
func (v *volume) signal(s syscall.Signal) {
	v.t.Helper()
	if err := v.process.Process.Signal(s); err != nil {
		v.t.Fatal(err)
	}
}

// output collects what a process says while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	if o == nil {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// peer returns the id of the process that serves the volume.
func (v *volume) peer() int {
	v.t.Helper()
	sockets, err := filepath.Glob(filepath.Join(v.runDir, "*.sock"))
	if err != nil || len(sockets) != 1 {
		v.t.Fatalf("sockets: %v %v; want one", sockets, err)
	}
	c, err := net.Dial("unix", sockets[0])
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		v.t.Fatal(err)
	}
	var cred *syscall.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if cerr != nil || err != nil {
		v.t.Fatal(cerr, err)
	}
	return int(cred.Pid)
}
