package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/faultdev"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"golang.org/x/sys/unix"
)

// diskArg makes the test binary a disk that fails as it is told: a block device of
// the kernel. It is a process of its own, so that the test may hang, or die, without
// leaving anything that waits for itself.
const diskArg = "disk" // and the image, and the name of the export

// fault is what goes wrong with a disk. It is JSON on the standard input of its
// process.
type fault struct {
	Kinds       []faultdev.Kind
	Errno       unix.Errno
	Off, Length int64 // bytes; Length 0: everywhere
}

// everything are all kinds of operations.
var everything = []faultdev.Kind{faultdev.Read, faultdev.Write, faultdev.Discard, faultdev.Zero, faultdev.Flush}

// rule is the fault for package faultdev.
func (f fault) rule() *faultdev.Rule {
	when := []faultdev.Predicate{faultdev.OnKind(f.Kinds...)}
	if f.Length > 0 {
		when = append(when, faultdev.InRange(f.Off, f.Length))
	}
	return faultdev.Fail(f.Errno, when...)
}

// diskReply is what the process answers, once for itself and then to each list of
// faults.
type diskReply struct {
	Device string // the block device
	Hits   int    // operations that failed because of the list before
}

// runDisk is the process. It ends when its standard input does.
func runDisk(image, name string) (err error) {
	ctx := context.Background()
	file, err := blockdev.Open(image, blockdev.Exclusive)
	if err != nil {
		return err
	}
	dev := faultdev.New(file)
	defer func() { err = errors.Join(err, dev.Close()) }()
	e, err := fuse.New(ctx, dev, fuse.Options{Name: name})
	if err != nil {
		return err
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	reply := diskReply{Device: e.Path()}
	var rules []*faultdev.Rule
	for {
		if err := out.Encode(reply); err != nil {
			return err
		}
		var faults []fault
		if err := in.Decode(&faults); errors.Is(err, io.EOF) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return e.Close(ctx)
		} else if err != nil {
			return err
		}
		reply.Hits = 0
		for _, r := range rules {
			dev.Remove(r)
			reply.Hits += r.Hits()
		}
		rules = nil
		for _, f := range faults {
			rules = append(rules, f.rule())
			dev.Add(rules[len(rules)-1])
		}
	}
}

// disk is a disk that fails as it is told.
type disk struct {
	t      *testing.T
	device string
	size   int64
	in     *json.Encoder
	out    *json.Decoder
}

// startDisk makes a disk. It has to outlive what uses it, so it is to be the first
// thing that a test makes.
func startDisk(t *testing.T, size int64) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for FUSE and loop devices")
	}
	d := &disk{t: t, size: size}
	cmd := exec.Command("/proc/self/exe", diskArg, sparse(t, t.TempDir(), size), "disk-"+strconv.Itoa(os.Getpid()))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the disk: %v", err)
		}
	})
	d.in, d.out = json.NewEncoder(in), json.NewDecoder(out)
	d.device = d.reply().Device
	return d
}

func (d *disk) reply() (r diskReply) {
	d.t.Helper()
	if err := d.out.Decode(&r); err != nil {
		d.t.Fatalf("the disk does not answer: %v", err)
	}
	return r
}

// fail makes operations fail from now on as the faults say, and none for any other
// reason.
func (d *disk) fail(faults ...fault) (hits int) {
	d.t.Helper()
	if err := d.in.Encode(faults); err != nil {
		d.t.Fatalf("the disk cannot be told: %v", err)
	}
	return d.reply().Hits
}

// heal makes the disk a good one and returns how many operations have failed since
// fail.
func (d *disk) heal() (hits int) {
	d.t.Helper()
	return d.fail()
}

// sparse makes an image that takes no space in dir.
func sparse(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantErrno fails the test unless err is the error.
func wantErrno(t *testing.T, what string, err error, want ...unix.Errno) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("%s: %v, want %v", what, err, fmt.Sprint(want))
}
