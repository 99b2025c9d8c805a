package volume_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/volume"
)

// failedAt is an engine whose backing devices failed at another time than they did.
type failedAt struct {
	enginepb.EngineClient
	ago time.Duration
}

func (e failedAt) Get(ctx context.Context, req *enginepb.GetRequest, o ...grpc.CallOption) (*enginepb.Volume, error) {
	v, err := e.EngineClient.Get(ctx, req, o...)
	if v.GetFailures() != nil {
		v.Failures.At = timestamppb.New(time.Now().Add(-e.ago))
	}
	return v, err
}

// TestBackingDeviceFails: a volume whose image cannot be read tells of that, and is
// healthy again when it has not failed for a while.
func TestBackingDeviceFails(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	id := n.create("raw", 16*mib)
	o := n.options(id, "a")
	o.Block = true
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	s := n.status(id)
	if h, err := n.Health(ctx, id); err != nil || h.Abnormal || s.Failures != (volume.Failures{}) || s.Failures.Recent() {
		t.Errorf("%+v, %v, %+v", h, err, s.Failures)
	}

	n.must(os.Truncate(s.Path, mib))
	f, err := os.OpenFile(o.TargetPath, os.O_RDONLY|unix.O_DIRECT, 0)
	n.must(err)
	_, err = f.ReadAt(blockdev.Buffer(4096), 8*mib)
	n.want(err, unix.EIO)
	n.must(f.Close())
	n.must(os.Truncate(s.Path, 16*mib))

	s = n.status(id)
	if s.Failures.Count == 0 || !s.Failures.Recent() || !strings.Contains(s.Failures.Last, s.Path) || time.Since(s.Failures.At) > time.Minute {
		t.Errorf("%+v", s.Failures)
	}
	h, err := n.Health(ctx, id)
	if err != nil || !h.Abnormal || h.Reason != volume.HealthDevice || !strings.Contains(h.Message, s.Failures.Last) {
		t.Errorf("%+v, %v", h, err)
	}
	n.client = failedAt{n.client, time.Hour}
	n.restartManager()
	s = n.status(id)
	if h, err := n.Health(ctx, id); err != nil || h.Abnormal || s.Failures.Count == 0 || s.Failures.Recent() {
		t.Errorf("an hour later: %+v, %v, %+v", h, err, s.Failures)
	}
	n.end(id, "a")
}
