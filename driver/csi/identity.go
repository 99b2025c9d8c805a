package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Identity is the identity service. It is the same on the node and beside the
// controllers.
type Identity struct {
	spec.UnimplementedIdentityServer
	version string
	ready   func(context.Context) error
}

// NewIdentity returns an identity service for a build of this version. ready
// tells why the process is not ready yet, or nil; a nil function means that it
// always is.
func NewIdentity(version string, ready func(context.Context) error) *Identity {
	return &Identity{version: version, ready: ready}
}

// Register makes the service answer at r.
func (i *Identity) Register(r grpc.ServiceRegistrar) { spec.RegisterIdentityServer(r, i) }

// GetPluginInfo implements spec.IdentityServer.
func (i *Identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: DriverName, VendorVersion: i.version}, nil
}

// GetPluginCapabilities implements spec.IdentityServer. Expansion is ONLINE only:
// OFFLINE would promise that a controller can expand a volume, and what is
// expanded while nobody uses it is grown when it is staged next.
func (i *Identity) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	service := func(t spec.PluginCapability_Service_Type) *spec.PluginCapability {
		return &spec.PluginCapability{Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}}}
	}
	expansion := func(t spec.PluginCapability_VolumeExpansion_Type) *spec.PluginCapability {
		return &spec.PluginCapability{Type: &spec.PluginCapability_VolumeExpansion_{VolumeExpansion: &spec.PluginCapability_VolumeExpansion{Type: t}}}
	}
	return &spec.GetPluginCapabilitiesResponse{Capabilities: []*spec.PluginCapability{
		service(spec.PluginCapability_Service_CONTROLLER_SERVICE),
		service(spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		expansion(spec.PluginCapability_VolumeExpansion_ONLINE),
	}}, nil
}

// Probe implements spec.IdentityServer. Not being ready is no error: the process
// is well and waits for another one.
func (i *Identity) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	ready := i.ready == nil || i.ready(ctx) == nil
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(ready)}, nil
}
