package volume_test

import (
	"context"
	"testing"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestIOUring: a volume that asked for io_uring has it, also when it is attached anew,
// and what an engine that was killed has left does not stay.
func TestIOUring(t *testing.T) {
	n := newNode(t)
	id := n.create("fast", 64<<20)
	o := n.options(id, "pod")
	o.IOUring = true
	n.must(n.Stage(t.Context(), o.StageOptions))
	if s := n.status(id); !s.IOUring {
		t.Skip("this machine has no FUSE over io_uring")
	}
	n.must(n.Publish(t.Context(), o))
	n.write(o.TargetPath+"/file", "content")

	n.killEngine()
	n.startEngine()
	n.eventually("the volume is dead", func() bool { return n.status(id).Dead })
	n.must(n.Unpublish(t.Context(), id, o.TargetPath))
	n.must(n.Stage(t.Context(), o.StageOptions))
	n.must(n.Publish(t.Context(), o))
	if s := n.status(id); !s.IOUring || s.SurvivesRestart || s.Dead {
		t.Errorf("%+v", s)
	}
	n.end(id, "pod")
}

// noUring is an engine on a machine without FUSE over io_uring.
type noUring struct{ enginepb.EngineClient }

func (e noUring) Attach(ctx context.Context, r *enginepb.AttachRequest, o ...grpc.CallOption) (*enginepb.Volume, error) {
	if r.IoUring {
		return nil, status.Error(codes.Unimplemented, "no io_uring here")
	}
	return e.EngineClient.Attach(ctx, r, o...)
}

// TestWithoutIOUring: where there is none, a volume that asks for it does without.
func TestWithoutIOUring(t *testing.T) {
	n := newNode(t)
	n.client = noUring{n.client}
	n.restartManager()
	id := n.create("a", 64<<20)
	o := n.options(id, "pod")
	o.IOUring = true
	n.must(n.Stage(t.Context(), o.StageOptions))
	if s := n.status(id); !s.Attached || s.IOUring {
		t.Errorf("%+v", s)
	}
	n.must(n.Unstage(t.Context(), id, o.StagingPath))
}
