package volume_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/volume"
)

// image makes an image file, a hole, and the options for a static volume of it.
func (n *node) image(id string, size int64) volume.PublishOptions {
	n.t.Helper()
	o := n.options(id, "a")
	o.Device = n.path("images", id)
	n.must(os.WriteFile(o.Device, nil, 0o600))
	n.must(os.Truncate(o.Device, size))
	return o
}

// TestUsedRaw: what was written to a raw static volume is not formatted, wherever it
// is.
func TestUsedRaw(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	o := n.image("raw", 64*mib)
	o.Block = true
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	f, err := os.OpenFile(o.TargetPath, os.O_RDWR, 0)
	n.must(err)
	_, err = f.WriteAt([]byte("precious"), 33*mib+100)
	n.must(errors.Join(err, f.Sync(), f.Close()))
	n.end(o.ID, "a")
	before, err := os.ReadFile(o.Device)
	n.must(err)

	o.Block = false
	for range 2 {
		err = n.Stage(ctx, o.StageOptions)
		n.want(err, volume.ErrDamaged)
		if !strings.Contains(err.Error(), "data at byte 34603108") { // 33 MiB and 100
			t.Error(err)
		}
	}
	after, err := os.ReadFile(o.Device)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was changed: %v", err)
	}
	// A person says that it is of no use, while it is attached.
	f, err = os.OpenFile(o.Device, os.O_RDWR, 0)
	n.must(err)
	_, err = f.WriteAt(make([]byte, len("precious")), 33*mib+100)
	n.must(errors.Join(err, f.Sync(), f.Close()))
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.end(o.ID, "a")
}

// TestBlank: holes, allocated space and zeros are no data.
func TestBlank(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	for _, id := range []string{"hole", "allocated", "zeros"} {
		o := n.image(id, 32*mib)
		f, err := os.OpenFile(o.Device, os.O_RDWR, 0)
		n.must(err)
		switch id {
		case "allocated":
			n.must(unix.Fallocate(int(f.Fd()), 0, 0, 32*mib))
		case "zeros":
			_, err = f.WriteAt(make([]byte, 32*mib), 0)
		}
		n.must(errors.Join(err, f.Sync(), f.Close()))
		n.must(n.Stage(ctx, o.StageOptions))
		n.must(n.Unstage(ctx, id, o.StagingPath))
	}
}

// TestBlankDevice: of a block device all is read.
func TestBlankDevice(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	o := n.image("device", 32*mib)
	o.Device = newLoop(t, o.Device)
	write := func(content string) {
		f, err := os.OpenFile(o.Device, os.O_RDWR, 0)
		n.must(err)
		_, err = f.WriteAt([]byte(content), 31*mib-1)
		n.must(errors.Join(err, f.Sync(), f.Close()))
	}
	write("x")
	n.want(n.Stage(ctx, o.StageOptions), volume.ErrDamaged)
	n.must(n.Unstage(ctx, o.ID, o.StagingPath))
	write("\x00")
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Unstage(ctx, o.ID, o.StagingPath))
}

// TestFormattingInterrupted: what an interrupted mkfs has left on a static volume is
// no data, until somebody else may have written to it.
func TestFormattingInterrupted(t *testing.T) {
	for _, unstaged := range []bool{false, true} {
		n := newNode(t)
		ctx := t.Context()
		o := n.image("static", 32*mib)
		f, err := os.OpenFile(o.Device, os.O_RDWR, 0)
		n.must(err)
		_, err = f.WriteAt([]byte("half a file system"), 10*mib)
		n.must(errors.Join(err, f.Sync(), f.Close()))
		record := filepath.Join(n.dir, "state", "volumes", "static.json")
		n.must(os.WriteFile(record, []byte(`{"id":"static","formatting":true}`), 0o600))
		if unstaged {
			n.must(n.Unstage(ctx, o.ID, o.StagingPath))
			n.want(n.Stage(ctx, o.StageOptions), volume.ErrDamaged)
			n.must(n.Unstage(ctx, o.ID, o.StagingPath))
			continue
		}
		n.must(n.Stage(ctx, o.StageOptions))
		if b, err := os.ReadFile(record); err != nil || strings.Contains(string(b), "formatting") {
			t.Errorf("%s, %v", b, err)
		}
		n.must(n.Unstage(ctx, o.ID, o.StagingPath))
	}
}
