package csi

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/bowline-csi/bowline/driver/volume"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NodeGetVolumeStats implements spec.NodeServer.
func (n *Node) NodeGetVolumeStats(ctx context.Context, req *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPlace(req.GetVolumeId(), req.GetVolumePath()); err != nil {
		return nil, err
	}
	u, err := n.volumes.Stats(ctx, req.GetVolumeId(), filepath.Clean(req.GetVolumePath()))
	if errors.Is(err, volume.ErrNotStaged) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, asStatus(err)
	}
	if u.Block {
		// How much of a raw volume is used only its user knows.
		return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
			{Unit: spec.VolumeUsage_BYTES, Total: u.Total},
		}}, nil
	}
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: u.Total, Used: u.Used, Available: u.Available},
		{Unit: spec.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed, Available: u.InodesAvailable},
	}}, nil
}

// severityOf is how bad each reason of package volume is for whoever uses the
// volume. Others make a volume degraded.
var severityOf = map[string]spec.VolumeHealthErrorType{
	volume.HealthRollback:   spec.VolumeHealthErrorType_INACCESSIBLE,
	volume.HealthEngineLost: spec.VolumeHealthErrorType_INACCESSIBLE,
	volume.HealthDamaged:    spec.VolumeHealthErrorType_DATA_LOSS,
}

// NodeGetVolumeHealth implements spec.NodeServer.
func (n *Node) NodeGetVolumeHealth(ctx context.Context, req *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	for field, path := range map[string]string{
		"volume_publish_path": req.GetVolumePublishPath(),
		"staging_target_path": req.GetStagingTargetPath(),
	} {
		if path == "" {
			continue
		}
		if err := checkPath(field, path); err != nil {
			return nil, err
		}
	}
	h, err := n.volumes.Health(ctx, req.GetVolumeId())
	if err != nil {
		return nil, asStatus(err)
	}
	health := &spec.VolumeHealth{VolumeId: req.GetVolumeId()}
	if h.Abnormal {
		severity, known := severityOf[h.Reason]
		if !known {
			severity = spec.VolumeHealthErrorType_DEGRADED
		}
		health.HealthStatuses = []*spec.VolumeHealth_VolumeHealthEntry{
			{Status: severity, Reason: h.Reason, Message: h.Message},
		}
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// NodeGetStorageHealth implements spec.NodeServer. Without the engine no volume can
// be staged; those that are in use may well go on.
func (n *Node) NodeGetStorageHealth(ctx context.Context, _ *spec.NodeGetStorageHealthRequest) (*spec.NodeGetStorageHealthResponse, error) {
	resp := &spec.NodeGetStorageHealthResponse{}
	if err := n.engine(ctx); err != nil {
		resp.BackendHealth = append(resp.BackendHealth, &spec.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status:  spec.StorageHealthErrorType_STORAGE_UNREACHABLE,
			Reason:  "EngineUnreachable",
			Message: err.Error(),
		})
	}
	return resp, nil
}
