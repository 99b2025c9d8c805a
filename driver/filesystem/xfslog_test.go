package filesystem

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAdvanceLog(t *testing.T) {
	device := newLoop(t, 320<<20, 4096)
	ctx := context.Background()
	if _, err := NextCycle(device); err == nil {
		t.Error("a device without a file system has a log")
	}
	if err := Make(ctx, device, XFS); err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for i := range 4 {
		mnt := mountAt(t, device, XFS)
		file := filepath.Join(mnt, "file")
		if i > 0 {
			if b, err := os.ReadFile(file); err != nil || len(b) != i {
				t.Errorf("%q, %v after the log was advanced %d times", b, err, i)
			}
		}
		if err := os.WriteFile(file, make([]byte, i+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := AdvanceLog(ctx, device, last, false); !errors.Is(err, ErrBusy) {
			t.Errorf("while it is mounted: %v", err)
		}
		unmount(t, mnt)
		cycle, err := NextCycle(device)
		if err != nil || cycle < last+xfsLogJump {
			t.Fatalf("after cycle %d comes %d, %v", last, cycle, err)
		}
		last = cycle
		if !Untouched(device, cycle) {
			t.Error("it was touched already")
		}
		if i%2 == 1 {
			tearXFSLog(t, device, cycle)
		}
		if err := AdvanceLog(ctx, device, cycle, i%2 == 1); err != nil {
			t.Fatal(err)
		}
		if Untouched(device, cycle) {
			t.Error("it was not touched")
		}
		tool(t, "xfs_repair", "-n", device)
	}
}

// tearXFSLog leaves the log as it is when AdvanceLog was interrupted: new at its
// beginning, and zeros.
func tearXFSLog(t *testing.T, device string, cycle int64) {
	t.Helper()
	if err := AdvanceLog(context.Background(), device, cycle, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	start, length, err := xfsLog(f)
	if err == nil {
		_, err = f.WriteAt(make([]byte, length/2), start+length/2)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := AdvanceLog(context.Background(), device, cycle, false); err == nil {
		t.Error("the tool makes out a log that is half written: nothing is to be erased")
	}
}
