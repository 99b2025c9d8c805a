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
	if err := AdvanceLog(ctx, device); err == nil {
		t.Error("a device without a file system has a log")
	}
	if err := Make(ctx, device, XFS); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
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
		if err := AdvanceLog(ctx, device); !errors.Is(err, ErrBusy) {
			t.Errorf("while it is mounted: %v", err)
		}
		unmount(t, mnt)
		before, err := xfsCycle(device)
		if err != nil {
			t.Fatal(err)
		}
		if err := AdvanceLog(ctx, device); err != nil {
			t.Fatal(err)
		}
		if after, err := xfsCycle(device); err != nil || after != before+xfsLogJump {
			t.Errorf("the log was in cycle %d and is in cycle %d, %v", before, after, err)
		}
		tool(t, "xfs_repair", "-n", device)
	}
}
