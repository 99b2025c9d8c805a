package csi_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

func TestNodeInfo(t *testing.T) {
	d := start(t)
	r, err := d.node.NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{})
	if err != nil || r.GetNodeId() != node || r.GetAccessibleTopology().GetSegments()["topology.bowline.dev/node"] != node {
		t.Errorf("%v, %v", r, err)
	}
}

// TestNodePasses looks at what reaches the volumes.
func TestNodePasses(t *testing.T) {
	d, ctx := start(t), t.Context()
	pod := map[string]string{"csi.storage.k8s.io/pod.name": "p", "storage.kubernetes.io/csiProvisionerIdentity": "i"}
	stage := func(c *spec.VolumeCapability, attributes map[string]string) {
		t.Helper()
		if _, err := d.node.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s//t/", VolumeCapability: c, VolumeContext: attributes}); err != nil {
			t.Error(err)
		}
	}
	stage(mountCap("xfs", "noatime"), pod)
	d.wantDone(t, "stage {Ref:{ID:a Device:} StagingPath:/s/t Block:false FSType:xfs MountOptions:[noatime] IOUring:false}")
	stage(blockCap(), map[string]string{"device": "/dev/sdb", "transport": "io_uring"})
	d.wantDone(t, "stage {Ref:{ID:a Device:/dev/sdb} StagingPath:/s/t Block:true FSType: MountOptions:[] IOUring:true}")

	publish := func(mode spec.VolumeCapability_AccessMode_Mode, readOnly bool) {
		t.Helper()
		_, err := d.node.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{
			VolumeId: "a", StagingTargetPath: "/s", TargetPath: "/t/", Readonly: readOnly,
			VolumeCapability: withMode(mountCap(""), mode), VolumeContext: pod,
		})
		if err != nil {
			t.Error(err)
		}
	}
	const staged = "{Ref:{ID:a Device:} StagingPath:/s Block:false FSType: MountOptions:[] IOUring:false}"
	publish(spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, false)
	d.wantDone(t, "publish {StageOptions:"+staged+" TargetPath:/t ReadOnly:false Exclusive:false}")
	publish(spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, true)
	d.wantDone(t, "publish {StageOptions:"+staged+" TargetPath:/t ReadOnly:true Exclusive:false}")
	publish(spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, false)
	d.wantDone(t, "publish {StageOptions:"+staged+" TargetPath:/t ReadOnly:false Exclusive:true}")
	publish(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, false)
	d.wantDone(t, "publish {StageOptions:"+staged+" TargetPath:/t ReadOnly:false Exclusive:true}")
	publish(spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, false)
	d.wantDone(t, "publish {StageOptions:"+staged+" TargetPath:/t ReadOnly:true Exclusive:true}")

	if _, err := d.node.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: "a", TargetPath: "/t/"}); err != nil {
		t.Error(err)
	}
	if _, err := d.node.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s"}); err != nil {
		t.Error(err)
	}
	d.wantDone(t, "unpublish a /t", "unstage a /s")

	for required, want := range map[int64]int64{1e9: 1000001536, 0: 0} {
		req := &spec.NodeExpandVolumeRequest{VolumeId: "a", VolumePath: "/t"}
		if required > 0 {
			req.CapacityRange = &spec.CapacityRange{RequiredBytes: required}
		}
		if _, err := d.node.NodeExpandVolume(ctx, req); err != nil {
			t.Error(err)
		}
		d.wantDone(t, fmt.Sprintf("expand a %d", want))
	}
	_, err := d.node.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: "a", VolumePath: "/t", CapacityRange: &spec.CapacityRange{LimitBytes: 4096}})
	wantCode(t, err, codes.OutOfRange) // it is larger already
}

func TestStats(t *testing.T) {
	d := start(t)
	d.usage = volume.Usage{Total: 10, Used: 6, Available: 3, Inodes: 20, InodesUsed: 1, InodesAvailable: 19}
	stats := func() []*spec.VolumeUsage {
		t.Helper()
		r, err := d.node.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: "/t"})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetUsage()
	}
	u := stats()
	if len(u) != 2 || u[0].Unit != spec.VolumeUsage_BYTES || u[0].Total != 10 || u[0].Used != 6 || u[0].Available != 3 ||
		u[1].Unit != spec.VolumeUsage_INODES || u[1].Total != 20 || u[1].Used != 1 || u[1].Available != 19 {
		t.Errorf("%v", u)
	}
	d.usage = volume.Usage{Block: true, Total: 10}
	if u := stats(); len(u) != 1 || u[0].Total != 10 || u[0].Used != 0 {
		t.Errorf("%v", u)
	}
}

func TestHealth(t *testing.T) {
	d := start(t)
	for reason, want := range map[string]spec.VolumeHealthErrorType{
		"":                       spec.VolumeHealthErrorType_UNKNOWN_VOLUME_HEALTH_TYPE,
		volume.HealthRollback:    spec.VolumeHealthErrorType_INACCESSIBLE,
		volume.HealthEngineLost:  spec.VolumeHealthErrorType_INACCESSIBLE,
		volume.HealthDamaged:     spec.VolumeHealthErrorType_DATA_LOSS,
		volume.HealthNoSpace:     spec.VolumeHealthErrorType_DEGRADED,
		volume.HealthUnsettled:   spec.VolumeHealthErrorType_DEGRADED,
		volume.HealthDevice:      spec.VolumeHealthErrorType_DEGRADED,
		"SomethingThatCameLater": spec.VolumeHealthErrorType_DEGRADED,
	} {
		d.health = volume.Health{Abnormal: reason != "", Reason: reason, Message: "m"}
		r, err := d.node.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: "a", VolumePublishPath: "/t"})
		if err != nil || r.GetVolumeHealth().GetVolumeId() != "a" {
			t.Fatalf("%v, %v", r, err)
		}
		got := r.GetVolumeHealth().GetHealthStatuses()
		if reason == "" {
			if len(got) != 0 {
				t.Errorf("%v", got)
			}
			continue
		}
		if len(got) != 1 || got[0].GetStatus() != want || got[0].GetReason() != reason || got[0].GetMessage() != "m" {
			t.Errorf("%s: %v", reason, got)
		}
	}
}

func TestStorageHealth(t *testing.T) {
	d := start(t)
	for _, d.ready = range []error{nil, errors.New("the engine is away")} {
		r, err := d.node.NodeGetStorageHealth(t.Context(), &spec.NodeGetStorageHealthRequest{})
		if err != nil || (len(r.GetBackendHealth()) == 0) != (d.ready == nil) {
			t.Errorf("%v: %v, %v", d.ready, r, err)
		}
	}
}

func TestErrorCodes(t *testing.T) {
	d := start(t)
	for kind, want := range map[error]codes.Code{
		volume.ErrInvalid:         codes.InvalidArgument,
		volume.ErrBusy:            codes.Aborted,
		volume.ErrRollbackPending: codes.Aborted,
		volume.ErrInUse:           codes.FailedPrecondition,
		volume.ErrIncompatible:    codes.AlreadyExists,
		volume.ErrUnsupported:     codes.FailedPrecondition,
		volume.ErrPublished:       codes.FailedPrecondition,
		volume.ErrNotStaged:       codes.FailedPrecondition,
		volume.ErrNoSpace:         codes.ResourceExhausted,
		volume.ErrDamaged:         codes.DataLoss,
		volume.ErrEngineDown:      codes.Unavailable,
		pool.ErrNotFound:          codes.NotFound,
		pool.ErrForeign:           codes.NotFound,
		volume.ErrMissing:         codes.NotFound,
		pool.ErrFull:              codes.ResourceExhausted,
		pool.ErrUnavailable:       codes.Unavailable,
		context.DeadlineExceeded:  codes.DeadlineExceeded,
		errors.New("x"):           codes.Internal,
	} {
		d.err = fmt.Errorf("volume a: %w", kind)
		_, err := d.node.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s", VolumeCapability: mountCap("")})
		wantCode(t, err, want)
	}
	// Where the call has a code of its own.
	d.err = volume.ErrNotStaged
	_, err := d.node.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: "/t"})
	wantCode(t, err, codes.NotFound)
	d.err = volume.ErrCheckpointOpen
	_, err = d.node.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{VolumeId: "a", VolumePath: "/t"})
	wantCode(t, err, codes.Aborted)
}
