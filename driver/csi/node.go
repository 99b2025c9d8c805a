package csi

import (
	"context"
	"path/filepath"

	"github.com/bowline-csi/bowline/driver/volume"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Volumes is what the node service needs of the volumes of its node.
type Volumes interface {
	Stage(ctx context.Context, o volume.StageOptions) error
	Unstage(ctx context.Context, id, stagingPath string) error
	Publish(ctx context.Context, o volume.PublishOptions) error
	Unpublish(ctx context.Context, id, targetPath string) error
	Stats(ctx context.Context, id, path string) (volume.Usage, error)
	Health(ctx context.Context, id string) (volume.Health, error)
	Expand(ctx context.Context, ref volume.Ref, size int64) (int64, error)
}

// Node is the node service.
type Node struct {
	spec.UnimplementedNodeServer
	name    string
	volumes Volumes
	engine  func(context.Context) error
}

// NewNode returns the node service of the node with this name. engine tells why
// the engine cannot be reached, or nil.
func NewNode(name string, volumes Volumes, engine func(context.Context) error) *Node {
	return &Node{name: name, volumes: volumes, engine: engine}
}

// Register makes the service answer at r.
func (n *Node) Register(r grpc.ServiceRegistrar) { spec.RegisterNodeServer(r, n) }

func nodeCapabilities() *spec.NodeGetCapabilitiesResponse {
	r := &spec.NodeGetCapabilitiesResponse{}
	for _, t := range []spec.NodeServiceCapability_RPC_Type{
		spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		spec.NodeServiceCapability_RPC_EXPAND_VOLUME,
		spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	} {
		r.Capabilities = append(r.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return r
}

// NodeGetCapabilities implements spec.NodeServer. VOLUME_MOUNT_GROUP is not one of
// them: the kubelet gives files to the group of a pod itself.
func (n *Node) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	return nodeCapabilities(), nil
}

// NodeGetInfo implements spec.NodeServer.
func (n *Node) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: n.name, AccessibleTopology: topology(n.name)}, nil
}

// stageOptions reads what staging and publishing have in common. The paths are
// checked by the caller.
func stageOptions(id, stagingPath string, c *spec.VolumeCapability, attributes map[string]string) (volume.StageOptions, access, error) {
	o := volume.StageOptions{Ref: volume.Ref{ID: id}}
	a, err := parseAccessAs(codes.FailedPrecondition, c)
	if err != nil {
		return o, a, err
	}
	if o.Device, o.IOUring, err = parseContext(attributes); err != nil {
		return o, a, err
	}
	o.StagingPath = filepath.Clean(stagingPath)
	o.Block, o.FSType, o.MountOptions = a.block, a.fsType, a.mountFlags
	return o, a, nil
}

// NodeStageVolume implements spec.NodeServer.
func (n *Node) NodeStageVolume(ctx context.Context, req *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	o, _, err := stageOptions(req.GetVolumeId(), req.GetStagingTargetPath(), req.GetVolumeCapability(), req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	if err := n.volumes.Stage(ctx, o); err != nil {
		return nil, asStatus(err)
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume implements spec.NodeServer.
func (n *Node) NodeUnstageVolume(ctx context.Context, req *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := n.volumes.Unstage(ctx, req.GetVolumeId(), filepath.Clean(req.GetStagingTargetPath())); err != nil {
		return nil, asStatus(err)
	}
	return &spec.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume implements spec.NodeServer.
func (n *Node) NodePublishVolume(ctx context.Context, req *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	stage, a, err := stageOptions(req.GetVolumeId(), req.GetStagingTargetPath(), req.GetVolumeCapability(), req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "staging_target_path is missing: the volume has to be staged first")
	}
	if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	err = n.volumes.Publish(ctx, volume.PublishOptions{
		StageOptions: stage,
		TargetPath:   filepath.Clean(req.GetTargetPath()),
		ReadOnly:     req.GetReadonly() || a.readOnly,
		Exclusive:    a.exclusive,
	})
	if err != nil {
		return nil, asStatus(err)
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume implements spec.NodeServer.
func (n *Node) NodeUnpublishVolume(ctx context.Context, req *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := n.volumes.Unpublish(ctx, req.GetVolumeId(), filepath.Clean(req.GetTargetPath())); err != nil {
		return nil, asStatus(err)
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}

// checkPlace checks the path where a volume is said to be. No volume is at a path
// that is not absolute.
func checkPlace(id, path string) error {
	if path == "" {
		return invalid("volume_path is missing")
	}
	if !filepath.IsAbs(path) {
		return status.Errorf(codes.NotFound, "volume %s: volume_path %q is not an absolute path, so the volume is not there", id, path)
	}
	return checkPath("volume_path", path)
}

// NodeExpandVolume implements spec.NodeServer.
func (n *Node) NodeExpandVolume(ctx context.Context, req *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPlace(req.GetVolumeId(), req.GetVolumePath()); err != nil {
		return nil, err
	}
	if req.GetVolumeCapability() != nil {
		if _, err := parseAccessAs(codes.InvalidArgument, req.GetVolumeCapability()); err != nil {
			return nil, err
		}
	}
	// 0 grows what is on the volume to the size that the volume has.
	size, err := chooseSize(req.GetCapacityRange(), 0, 0)
	if err != nil {
		return nil, err
	}
	got, err := n.volumes.Expand(ctx, volume.Ref{ID: req.GetVolumeId()}, size)
	if err != nil {
		err = asStatus(err)
		if status.Code(err) == codes.FailedPrecondition {
			// It would tell the kubelet to wait until the volume is mounted anew.
			// An open checkpoint is over sooner.
			err = status.Error(codes.Aborted, status.Convert(err).Message())
		}
		return nil, err
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); limit > 0 && got > limit {
		return nil, status.Errorf(codes.OutOfRange, "volume %s has %d bytes, more than limit_bytes %d", req.GetVolumeId(), got, limit)
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: got}, nil
}
