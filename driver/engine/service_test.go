package engine_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const testID = "0b5e4f8a-9e2d-4c43-b3b6-5f1d3a6c7e01"

// attachFree attaches the image at path as volume a, the second half of which is
// free.
func attachFree(t *testing.T, c enginepb.EngineClient, path string) *enginepb.Volume {
	t.Helper()
	v, err := c.Attach(t.Context(), &enginepb.AttachRequest{Name: "a", Path: path, KeepAllocated: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartTrim(t.Context(), &enginepb.StartTrimRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	half := v.Size / 2
	if _, err := c.MarkFree(t.Context(), &enginepb.MarkFreeRequest{Name: "a", Extents: []*enginepb.Extent{{Offset: half, Length: half}}}); err != nil {
		t.Fatal(err)
	}
	return v
}

// write writes n bytes of b at off to the device at path.
func write(t *testing.T, path string, off int64, n int, b byte) error {
	t.Helper()
	dev, err := blockdev.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	buf := blockdev.Buffer(n)
	for i := range buf {
		buf[i] = b
	}
	if _, err := dev.WriteAt(buf, off); err != nil {
		return err
	}
	return dev.Flush()
}

func TestRollback(t *testing.T) {
	c, ctx, path := startEngine(t), t.Context(), image(t)
	r, err := engine.Restore(ctx, c, "a", path, nil)
	if err != nil || r.Outcome != enginepb.RestoreResult_NO_CHECKPOINT {
		t.Errorf("without a checkpoint: %v, %v", r, err)
	}
	v := attachFree(t, c, path)
	if err := write(t, v.Device, 1<<20, 1<<20, 'a'); err != nil {
		t.Fatal(err)
	}
	_, err = c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a", Id: "mine"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = c.RequestRollback(ctx, &enginepb.RequestRollbackRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	for range 2 {
		v, err := c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a", Id: testID})
		if err != nil || v.Open.GetId() != testID {
			t.Errorf("%v, %v", v, err)
		}
	}
	_, err = c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	if err := write(t, v.Device, 1<<20, 2<<20, 'b'); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v, err := c.RequestRollback(ctx, &enginepb.RequestRollbackRequest{Name: "a"})
		if err != nil || !v.Open.GetRollbackRequested() {
			t.Errorf("%v, %v", v, err)
		}
	}
	_, err = c.Commit(ctx, &enginepb.CommitRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = c.Grow(ctx, &enginepb.GrowRequest{Name: "a"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = engine.Restore(ctx, c, "a", path, nil)
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := c.Detach(ctx, &enginepb.DetachRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path})
	wantCode(t, err, codes.FailedPrecondition)

	// Cancelled, it can be done again.
	cancelled, cancel := context.WithCancel(ctx)
	_, err = engine.Restore(cancelled, c, "a", path, func(*enginepb.RestoreProgress) { cancel() })
	if err != nil {
		wantCode(t, err, codes.Canceled)
	}
	var done, total int64
	r, err = engine.Restore(ctx, c, "a", path, func(p *enginepb.RestoreProgress) { done, total = p.Done, p.Total })
	if err != nil || r.Outcome == enginepb.RestoreResult_RESTORED && (r.Id != testID || r.PutBack < 2<<20 || done != total || total < 2<<20) {
		t.Errorf("%v, %v, progress %d of %d", r, err, done, total)
	}
	if r.Outcome == enginepb.RestoreResult_ENDED_BEFORE {
		t.Errorf("outcome %v", r)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content[1<<20:2<<20], bytes.Repeat([]byte{'a'}, 1<<20)) || !bytes.Equal(content[2<<20:3<<20], make([]byte, 1<<20)) {
		t.Error("the content is not that of the checkpoint")
	}
	if _, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path}); err != nil {
		t.Error(err)
	}
}

func TestRestoreErrors(t *testing.T) {
	c, ctx := startEngine(t), t.Context()
	damaged := image(t)
	if err := os.WriteFile(damaged, append([]byte("BOW\x00garbage"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	used := image(t)
	dev, err := blockdev.Open(used, blockdev.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for name, restore := range map[string]struct {
		volume, path string
		want         codes.Code
	}{
		"no name":       {"", damaged, codes.InvalidArgument},
		"no path":       {"a", "", codes.InvalidArgument},
		"nothing there": {"a", damaged + "x", codes.Internal},
		"a damaged log": {"a", damaged, codes.DataLoss},
		"in use":        {"a", used, codes.FailedPrecondition},
	} {
		_, err := engine.Restore(ctx, c, restore.volume, restore.path, nil)
		if got := status.Code(err); got != restore.want {
			t.Errorf("%s: code %v, want %v: %v", name, got, restore.want, err)
		}
	}
	if list, err := c.List(ctx, &enginepb.ListRequest{}); err != nil || len(list.Volumes) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestGrow(t *testing.T) {
	c, ctx, path := startEngine(t), t.Context(), image(t)
	v, err := c.Attach(ctx, &enginepb.AttachRequest{Name: "a", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 24<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		grown, err := c.Grow(ctx, &enginepb.GrowRequest{Name: "a"})
		if err != nil || grown.Size != 24<<20 {
			t.Fatalf("%v, %v", grown, err)
		}
	}
	if err := write(t, v.Device, 23<<20, 1<<20, 'x'); err != nil {
		t.Error(err)
	}
	_, err = c.Grow(ctx, &enginepb.GrowRequest{Name: "b"})
	wantCode(t, err, codes.NotFound)
}

func TestCommitWhenFull(t *testing.T) {
	c, ctx, path := startEngine(t), t.Context(), image(t)
	v := attachFree(t, c, path)
	if _, err := c.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: "a", Id: testID, CommitWhenFull: true}); err != nil {
		t.Fatal(err)
	}
	if err := write(t, v.Device, 0, 8<<20, 'x'); err != nil {
		t.Error(err)
	}
	v, err := c.Get(ctx, &enginepb.GetRequest{Name: "a"})
	if err != nil || v.State != enginepb.State_COMMITTED || v.Ended.GetId() != testID || v.Ended.GetReason() != enginepb.Ended_OUT_OF_SPACE {
		t.Errorf("%v, %v", v, err)
	}
}
