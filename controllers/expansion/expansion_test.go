package expansion

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/checkpoint"
	"github.com/bowline-csi/bowline/controllers/fixture"
	"github.com/bowline-csi/bowline/test/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

func TestExpand(t *testing.T) {
	var s *Service
	f := fixture.New(t, func(ctx context.Context, m ctrl.Manager, now func() time.Time, log *slog.Logger) error {
		s = New(m.GetCache())
		r := &checkpoint.Reconciler{
			Client: m.GetClient(), Live: m.GetAPIReader(), Now: now, Log: log,
			Events: &checkpoint.Events{Client: m.GetClient(), Instance: "test", Log: log},
		}
		return r.SetUp(ctx, m)
	})
	expand := func(id string, required, limit int64) (*csi.ControllerExpandVolumeResponse, error) {
		return s.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
			VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit},
		})
	}
	f.Accepted(v1alpha1.CheckpointPolicy{})
	handle := f.Get("before").Status.VolumeHandle
	wait := func(want codes.Code) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if _, err = expand(handle, 1<<30, 0); status.Code(err) == want {
				return
			}
		}
		t.Fatalf("%v; want %v", err, want)
	}
	wait(codes.FailedPrecondition)
	for name, test := range map[string]struct {
		id              string
		required, limit int64
		want            codes.Code
	}{
		"no volume":  {"", 1, 0, codes.InvalidArgument},
		"no size":    {"v", 0, 0, codes.InvalidArgument},
		"limit":      {"v", 2, 1, codes.OutOfRange},
		"negative":   {"v", -1, 0, codes.InvalidArgument},
		"as it asks": {"v", 2, 2, codes.OK},
	} {
		if _, err := expand(test.id, test.required, test.limit); status.Code(err) != test.want {
			t.Errorf("%s: %v; want %v", name, err, test.want)
		}
	}
	f.NodeWrites("before", f.Open())
	if _, err := expand(handle, 1<<30, 0); !strings.Contains(status.Convert(err).Message(), f.Namespace+"/before") {
		t.Errorf("the message does not name the checkpoint: %v", err)
	}
	f.NodeWrites("before", f.At(v1alpha1.PhaseCommitted, fixture.Is(v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)))
	wait(codes.OK)
	if r, err := expand(handle, 1<<30, 0); err != nil || r.GetCapacityBytes() != 1<<30 || !r.GetNodeExpansionRequired() {
		t.Errorf("got %v, %v", r, err)
	}
}
