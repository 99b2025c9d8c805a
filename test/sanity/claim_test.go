package sanity_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// client is a kubelet and a provisioner at once.
type client struct {
	spec.ControllerClient
	spec.NodeClient
}

func (n *testNode) client(t *testing.T) client {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client{spec.NewControllerClient(conn), spec.NewNodeClient(conn)}
}

// claim is a volume and where it is used.
type claim struct {
	client
	id                     string
	staging, target, scope string
	cap                    *spec.VolumeCapability
	attributes             map[string]string
}

// newClaim returns a claim whose volume does not exist yet.
func (n *testNode) newClaim(t *testing.T, c client, name, fsType string) *claim {
	t.Helper()
	scope := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Join(scope, "staging"), 0o700); err != nil {
		t.Fatal(err)
	}
	v := &claim{
		client: c, scope: scope, staging: filepath.Join(scope, "staging"), target: filepath.Join(scope, "target"),
		cap: &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER}},
	}
	if fsType == "" {
		v.cap.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
	} else {
		v.cap.AccessType = &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: fsType}}
	}
	return v
}

func (v *claim) create(ctx context.Context, size int64, thin bool, source string) error {
	req := &spec.CreateVolumeRequest{
		Name:               filepath.Base(v.scope),
		CapacityRange:      &spec.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*spec.VolumeCapability{v.cap},
		Parameters:         map[string]string{"thin": fmt.Sprint(thin)},
	}
	if source != "" {
		req.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
			Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: source},
		}}
	}
	resp, err := v.CreateVolume(ctx, req)
	v.id = resp.GetVolume().GetVolumeId()
	return err
}

func (v *claim) stage(ctx context.Context) error {
	_, err := v.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging, VolumeCapability: v.cap, VolumeContext: v.attributes,
	})
	return err
}

func (v *claim) publish(ctx context.Context, target string, readOnly bool) error {
	_, err := v.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging, TargetPath: target, VolumeCapability: v.cap, Readonly: readOnly, VolumeContext: v.attributes,
	})
	return err
}

func (v *claim) unpublish(ctx context.Context, target string) error {
	_, err := v.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target})
	return err
}

func (v *claim) unstage(ctx context.Context) error {
	_, err := v.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging})
	return err
}

func (v *claim) remove(ctx context.Context) error {
	_, err := v.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: v.id})
	return err
}

// again calls f until it succeeds or fails for good, as the kubelet and the
// provisioner do. That a volume is in use can well be for a moment only: all
// programs that this process starts have its files open for an instant.
func again(ctx context.Context, f func(context.Context) error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := f(ctx)
		switch status.Code(err) {
		case codes.Aborted, codes.FailedPrecondition, codes.Unavailable, codes.DeadlineExceeded:
		default:
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
