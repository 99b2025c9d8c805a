// Package expansion answers external-resizer, which runs beside the controller:
// a volume may grow unless a checkpoint is open on it. Nodes do the growing.
//
// A rollback would bring back a smaller file system on a larger volume, so nodes
// refuse to grow such a volume anyhow. But by then the resizer would have
// recorded the new size; asked before, it leaves the size alone, tells the user
// why, and tries again.
package expansion

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/checkpoint"
)

// Service is the controller service for external-resizer.
type Service struct {
	csi.UnimplementedControllerServer
	checkpoints client.Reader
}

// New returns a service that finds checkpoints in a cache with the indexes of
// package checkpoint.
func New(checkpoints client.Reader) *Service { return &Service{checkpoints: checkpoints} }

// Register makes the service answer at r.
func (s *Service) Register(r grpc.ServiceRegistrar) { csi.RegisterControllerServer(r, s) }

// ControllerGetCapabilities implements csi.ControllerServer.
func (s *Service) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var r csi.ControllerGetCapabilitiesResponse
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		// Only changes which access modes the resizer names.
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return &r, nil
}

// ControllerExpandVolume implements csi.ControllerServer.
func (s *Service) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id, size := req.GetVolumeId(), req.GetCapacityRange().GetRequiredBytes()
	switch limit := req.GetCapacityRange().GetLimitBytes(); {
	case id == "":
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	case size <= 0:
		return nil, status.Error(codes.InvalidArgument, "capacity_range.required_bytes is missing")
	case limit != 0 && limit < size:
		return nil, status.Errorf(codes.OutOfRange, "capacity_range asks for at least %d bytes and for at most %d", size, limit)
	}
	open, err := s.open(ctx, id)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "looking for checkpoints of volume %s: %v", id, err)
	}
	if open != "" {
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %s cannot grow while checkpoint %s is open: a rollback would bring back the smaller file system; commit the checkpoint or roll it back first", id, open)
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

// open returns the name of a checkpoint on the volume, "" if there is none.
func (s *Service) open(ctx context.Context, handle string) (string, error) {
	var list v1alpha1.VolumeCheckpointList
	if err := s.checkpoints.List(ctx, &list, client.MatchingFields{checkpoint.HandleIndex: handle}); err != nil {
		return "", err
	}
	for i := range list.Items {
		if c := &list.Items[i]; c.OnVolume() {
			return fmt.Sprintf("%s/%s", c.Namespace, c.Name), nil
		}
	}
	return "", nil
}
