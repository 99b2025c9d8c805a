package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/bowline-csi/bowline/driver/pool"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Pool is what the controller service needs of a pool.
type Pool interface {
	Create(ctx context.Context, o pool.CreateOptions) (pool.Volume, error)
	Get(id string) (pool.Volume, error)
	List() ([]pool.Volume, error)
	Capacity() (pool.Capacity, error)
}

// PoolVolumes is what the controller service needs of the one who knows how the
// volumes of the pool are used.
type PoolVolumes interface {
	Clone(ctx context.Context, source string, o pool.CreateOptions) (pool.Volume, error)
	Delete(ctx context.Context, id string) error
}

// Controller is the controller service for the volumes of one node.
type Controller struct {
	spec.UnimplementedControllerServer
	node    string
	pool    Pool
	volumes PoolVolumes
	jobs    *jobs
}

// NewController returns the controller service of the node with this name. Close
// ends it.
func NewController(node string, p Pool, volumes PoolVolumes) *Controller {
	return &Controller{node: node, pool: p, volumes: volumes, jobs: newJobs()}
}

// Register makes the service answer at r.
func (c *Controller) Register(r grpc.ServiceRegistrar) { spec.RegisterControllerServer(r, c) }

// Close ends creations that go on although nobody waits for them any more. What
// is half-made is left to the pool, which removes it when it is opened next.
func (c *Controller) Close() { c.jobs.close() }

func controllerCapabilities(types ...spec.ControllerServiceCapability_RPC_Type) *spec.ControllerGetCapabilitiesResponse {
	r := &spec.ControllerGetCapabilitiesResponse{}
	for _, t := range types {
		r.Capabilities = append(r.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return r
}

// ControllerGetCapabilities implements spec.ControllerServer.
func (c *Controller) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	return controllerCapabilities(
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		spec.ControllerServiceCapability_RPC_GET_CAPACITY,
		spec.ControllerServiceCapability_RPC_CLONE_VOLUME,
		spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	), nil
}

// DeleteVolume implements spec.ControllerServer. A volume that does not exist is
// deleted; one of another node is not ours to say that of.
func (c *Controller) DeleteVolume(ctx context.Context, req *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	err := c.jobs.do(ctx, req.GetVolumeId(), func(ctx context.Context) error {
		return c.volumes.Delete(ctx, req.GetVolumeId())
	})
	switch {
	case errors.Is(err, pool.ErrNotFound):
	case errors.Is(err, pool.ErrForeign):
		return nil, status.Errorf(codes.FailedPrecondition, "this is node %s: %v", c.node, err)
	case err != nil:
		return nil, asStatus(err)
	}
	return &spec.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities implements spec.ControllerServer.
func (c *Controller) ValidateVolumeCapabilities(ctx context.Context, req *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if err := checkID("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_capabilities are missing")
	}
	v, err := c.pool.Get(req.GetVolumeId())
	if err != nil {
		return nil, asStatus(err)
	}
	a, err := parseAll(req.GetVolumeCapabilities())
	if err == nil {
		err = usableAs(v, a)
	}
	if err == nil {
		_, _, err = parseParameters(req.GetParameters())
	}
	if err == nil {
		_, _, err = parseContext(req.GetVolumeContext())
	}
	if err != nil {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// usableAs tells why a volume that holds something cannot be used in this way; the
// error wraps errUnsupported.
func usableAs(v pool.Volume, a access) error {
	switch {
	case !v.Used: // it becomes what it is used as
	case a.block && v.FSType != "":
		return fmt.Errorf("volume %s: raw use of a volume with a file system (%s) is %w", v.ID, v.FSType, errUnsupported)
	case !a.block && v.FSType == "":
		return fmt.Errorf("volume %s: a file system on a volume that is used raw is %w", v.ID, errUnsupported)
	case a.fsType != "" && a.fsType != v.FSType:
		return fmt.Errorf("volume %s: %s on a volume with %s is %w", v.ID, a.fsType, v.FSType, errUnsupported)
	}
	return nil
}

// tokenPrefix begins the tokens of ListVolumes, the ID of the last volume listed
// follows. So a token stays good when volumes come and go.
const tokenPrefix = "after:"

// ListVolumes implements spec.ControllerServer.
func (c *Controller) ListVolumes(ctx context.Context, req *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, invalid("max_entries is %d, it cannot be negative", req.GetMaxEntries())
	}
	after, ok := "", true
	if req.GetStartingToken() != "" {
		after, ok = strings.CutPrefix(req.GetStartingToken(), tokenPrefix)
	}
	if !ok {
		return nil, status.Errorf(codes.Aborted, "starting_token %q is not one of ours", req.GetStartingToken())
	}
	volumes, err := c.pool.List()
	if err != nil {
		return nil, asStatus(err)
	}
	first := sort.Search(len(volumes), func(i int) bool { return volumes[i].ID > after })
	volumes = volumes[first:]
	resp := &spec.ListVolumesResponse{}
	if n := int(req.GetMaxEntries()); n > 0 && n < len(volumes) {
		volumes = volumes[:n]
		resp.NextToken = tokenPrefix + volumes[n-1].ID
	}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, &spec.ListVolumesResponse_Entry{Volume: c.describe(v)})
	}
	return resp, nil
}

func (c *Controller) describe(v pool.Volume) *spec.Volume {
	d := &spec.Volume{
		VolumeId:           v.ID,
		CapacityBytes:      v.Size,
		AccessibleTopology: []*spec.Topology{topology(c.node)},
	}
	if v.Source != "" {
		d.ContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
			Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: v.Source},
		}}
	}
	return d
}

// GetCapacity implements spec.ControllerServer. There is no room for volumes that
// cannot be had, none on other nodes, and none in a pool that is not available.
func (c *Controller) GetCapacity(ctx context.Context, req *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	thin, _, err := parseParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	least := int64(minSize)
	if len(req.GetVolumeCapabilities()) > 0 {
		a, err := parseAll(req.GetVolumeCapabilities())
		if errors.Is(err, errUnsupported) {
			return &spec.GetCapacityResponse{}, nil
		} else if err != nil {
			return nil, err
		}
		least = smallest(a)
	}
	if t := req.GetAccessibleTopology(); t != nil && !c.isHere(t) {
		return &spec.GetCapacityResponse{}, nil
	}
	capacity, err := c.pool.Capacity()
	if errors.Is(err, pool.ErrUnavailable) {
		// An error would leave the last capacity to the scheduler.
		return &spec.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}, nil
	}
	if err != nil {
		return nil, asStatus(err)
	}
	resp := &spec.GetCapacityResponse{
		AvailableCapacity: capacity.Available,
		MinimumVolumeSize: wrapperspb.Int64(least),
	}
	if !thin { // those may be larger than the pool
		resp.MaximumVolumeSize = wrapperspb.Int64(capacity.MaxVolume)
	}
	return resp, nil
}

// isHere tells whether a topology includes this node.
func (c *Controller) isHere(t *spec.Topology) bool {
	for k, v := range t.GetSegments() {
		if k != TopologyKey || v != c.node {
			return false
		}
	}
	return true
}

// checkTopology says why no volume with these accessibility requirements can be
// made on this node.
func (c *Controller) checkTopology(r *spec.TopologyRequirement) error {
	if r == nil {
		return nil
	}
	wanted := r.GetRequisite()
	if len(wanted) == 0 {
		wanted = r.GetPreferred()
	}
	if len(wanted) == 0 {
		return invalid("accessibility_requirements have neither requisite nor preferred")
	}
	if !slices.ContainsFunc(wanted, c.isHere) {
		return status.Errorf(codes.ResourceExhausted, "a volume made here is on node %s only, which accessibility_requirements do not name", c.node)
	}
	return nil
}
