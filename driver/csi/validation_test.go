package csi_test

import (
	"context"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/driver/pool"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// change is a good request gone wrong.
type change[R proto.Message] struct {
	change func(R)
	want   codes.Code
}

// refuse sends a good request, and then each that is wrong in one place. None of
// the latter may reach the backend.
func refuse[R proto.Message, A any](t *testing.T, d *driver, good R, call func(context.Context, R) (A, error), bad map[string]change[R]) {
	t.Helper()
	if _, err := call(t.Context(), proto.CloneOf(good)); err != nil {
		t.Fatalf("the good request: %v", err)
	}
	d.take()
	for name, c := range bad {
		t.Run(name, func(t *testing.T) {
			req := proto.CloneOf(good)
			c.change(req)
			_, err := call(t.Context(), req)
			wantCode(t, err, c.want)
			d.wantDone(t)
		})
	}
}

// Wrong in any request that has them.
var (
	badIDs = map[string]string{
		"no id": "", "upwards": "../etc", "a slash": "a/b", "dot": ".", "dots": "..", "absolute": "/etc",
		"a NUL": "a\x00", "a control character": "a\x1b", "too long": strings.Repeat("x", 129),
	}
	badPaths = map[string]string{
		"relative": "some/path", "upwards": "/var/../etc", "the root": "/", "the root twice": "//",
		"a NUL": "/a\x00", "too long": "/" + strings.Repeat("x", 4096),
	}
)

// addStrings adds a change for each bad value of a field.
func addStrings[R proto.Message](m map[string]change[R], what string, values map[string]string, set func(R, string)) map[string]change[R] {
	for name, value := range values {
		m[what+": "+name] = change[R]{func(r R) { set(r, value) }, codes.InvalidArgument}
	}
	return m
}

func TestCreateVolumeRefuses(t *testing.T) {
	type R = *spec.CreateVolumeRequest
	d := start(t)
	d.put(pool.Volume{Name: "raw", Size: 1 << 30, Used: true})
	d.put(pool.Volume{Name: "formatted", Size: 1 << 30, Used: true, FSType: "xfs"})
	good := &spec.CreateVolumeRequest{
		Name:               "a",
		CapacityRange:      &spec.CapacityRange{RequiredBytes: 1 << 30},
		VolumeCapabilities: []*spec.VolumeCapability{mountCap("xfs")},
		Parameters:         map[string]string{"thin": "true", "csi.storage.k8s.io/pvc/name": "c"},
	}
	from := func(id string) func(R) {
		return func(r R) {
			r.Name = "clone"
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
				Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: id},
			}}
		}
	}
	caps := func(c ...*spec.VolumeCapability) func(R) { return func(r R) { r.VolumeCapabilities = c } }
	capacity := func(required, limit int64) func(R) {
		return func(r R) { r.CapacityRange = &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit} }
	}
	topologies := func(t ...*spec.Topology) func(R) {
		return func(r R) { r.AccessibilityRequirements = &spec.TopologyRequirement{Requisite: t} }
	}
	refuse(t, d, good, func(ctx context.Context, r R) (*spec.CreateVolumeResponse, error) {
		return d.controller.CreateVolume(ctx, r)
	},
		map[string]change[R]{
			"no name":             {func(r R) { r.Name = "" }, codes.InvalidArgument},
			"long name":           {func(r R) { r.Name = strings.Repeat("x", 129) }, codes.InvalidArgument},
			"control character":   {func(r R) { r.Name = "a\u0085" }, codes.InvalidArgument},
			"no capabilities":     {caps(), codes.InvalidArgument},
			"empty capability":    {caps(&spec.VolumeCapability{}), codes.InvalidArgument},
			"no access mode":      {caps(&spec.VolumeCapability{AccessType: mountCap("").AccessType}), codes.InvalidArgument},
			"many nodes read":     {caps(withMode(mountCap(""), spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.InvalidArgument},
			"many nodes write":    {caps(mountCap(""), withMode(mountCap(""), spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)), codes.InvalidArgument},
			"another file system": {caps(mountCap("btrfs")), codes.InvalidArgument},
			"two file systems":    {caps(mountCap("xfs"), mountCap("ext4")), codes.InvalidArgument},
			"raw and not":         {caps(mountCap(""), blockCap()), codes.InvalidArgument},
			"many mount flags":    {caps(mountCap("", strings.Repeat("x", 4097))), codes.InvalidArgument},
			"mount group": {caps(&spec.VolumeCapability{AccessMode: mountCap("").AccessMode, AccessType: &spec.VolumeCapability_Mount{
				Mount: &spec.VolumeCapability_MountVolume{VolumeMountGroup: "1"}}}), codes.InvalidArgument},
			"no sizes":            {capacity(0, 0), codes.InvalidArgument},
			"negative":            {capacity(-1, 0), codes.InvalidArgument},
			"negative limit":      {capacity(0, -1), codes.InvalidArgument},
			"limit too low":       {capacity(2<<30, 1<<30), codes.OutOfRange},
			"limit for xfs":       {func(r R) { r.Name = "b"; capacity(1<<20, 2<<20)(r) }, codes.OutOfRange},
			"no multiple":         {func(r R) { r.Name = "b"; capacity(1<<30+1, 1<<30+2)(r) }, codes.OutOfRange},
			"immense":             {capacity(1<<63-1, 0), codes.OutOfRange},
			"unknown parameter":   {func(r R) { r.Parameters["tihn"] = "true" }, codes.InvalidArgument},
			"unknown transport":   {func(r R) { r.Parameters["transport"] = "uring" }, codes.InvalidArgument},
			"wrong parameter":     {func(r R) { r.Parameters["thin"] = "yes" }, codes.InvalidArgument},
			"mutable parameters":  {func(r R) { r.MutableParameters = map[string]string{"iops": "3"} }, codes.InvalidArgument},
			"no topology":         {topologies(), codes.InvalidArgument},
			"another node":        {topologies(&spec.Topology{Segments: map[string]string{"topology.bowline.dev/node": "node-2"}}), codes.ResourceExhausted},
			"another key":         {topologies(&spec.Topology{Segments: map[string]string{"topology.bowline.dev/node": node, "zone": "a"}}), codes.ResourceExhausted},
			"smaller than wanted": {capacity(2<<30, 0), codes.AlreadyExists},
			"larger than wanted":  {capacity(400<<20, 500<<20), codes.AlreadyExists},
			"thick exists thin":   {func(r R) { delete(r.Parameters, "thin") }, codes.AlreadyExists},
			"exists, no clone":    {func(r R) { from(pool.ID("formatted", node))(r); r.Name = "a" }, codes.AlreadyExists},
			"source of no type":   {func(r R) { r.VolumeContentSource = &spec.VolumeContentSource{} }, codes.InvalidArgument},
			"a snapshot": {func(r R) {
				r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{
					Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: "s"}}}
			}, codes.InvalidArgument},
			"source without id":   {from(""), codes.InvalidArgument},
			"source outside":      {from("../../etc"), codes.InvalidArgument},
			"no such source":      {from(pool.ID("b", node)), codes.NotFound},
			"source elsewhere":    {from("b.00000000"), codes.ResourceExhausted},
			"source is raw":       {from(pool.ID("raw", node)), codes.InvalidArgument},
			"source is not raw":   {func(r R) { from(pool.ID("formatted", node))(r); caps(blockCap())(r) }, codes.InvalidArgument},
			"source is xfs":       {func(r R) { from(pool.ID("formatted", node))(r); caps(mountCap("ext4"))(r) }, codes.InvalidArgument},
			"smaller than source": {func(r R) { from(pool.ID("formatted", node))(r); capacity(512<<20, 0)(r) }, codes.OutOfRange},
			"limit below source":  {func(r R) { from(pool.ID("formatted", node))(r); capacity(0, 512<<20)(r) }, codes.OutOfRange},
			"only preferred there": {func(r R) {
				topologies(&spec.Topology{Segments: map[string]string{"topology.bowline.dev/node": "node-2"}})(r)
				q := r.AccessibilityRequirements
				q.Requisite, q.Preferred = nil, q.Requisite
			}, codes.ResourceExhausted},
		})
}

func TestControllerRefuses(t *testing.T) {
	d := start(t)
	v := d.put(pool.Volume{Name: "a", Size: 1 << 30})
	t.Run("DeleteVolume", func(t *testing.T) {
		type R = *spec.DeleteVolumeRequest
		refuse(t, d, &spec.DeleteVolumeRequest{VolumeId: "b"},
			func(ctx context.Context, r R) (*spec.DeleteVolumeResponse, error) {
				return d.controller.DeleteVolume(ctx, r)
			},
			addStrings(map[string]change[R]{}, "id", badIDs, func(r R, s string) { r.VolumeId = s }))
	})
	t.Run("ValidateVolumeCapabilities", func(t *testing.T) {
		type R = *spec.ValidateVolumeCapabilitiesRequest
		refuse(t, d, &spec.ValidateVolumeCapabilitiesRequest{VolumeId: v.ID, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")}},
			func(ctx context.Context, r R) (*spec.ValidateVolumeCapabilitiesResponse, error) {
				return d.controller.ValidateVolumeCapabilities(ctx, r)
			},
			addStrings(map[string]change[R]{
				"no such volume":  {func(r R) { r.VolumeId = "b" }, codes.NotFound},
				"elsewhere":       {func(r R) { r.VolumeId = "a.00000000" }, codes.NotFound},
				"no capabilities": {func(r R) { r.VolumeCapabilities = nil }, codes.InvalidArgument},
			}, "id", badIDs, func(r R, s string) { r.VolumeId = s }))
	})
	t.Run("ListVolumes", func(t *testing.T) {
		type R = *spec.ListVolumesRequest
		refuse(t, d, &spec.ListVolumesRequest{},
			func(ctx context.Context, r R) (*spec.ListVolumesResponse, error) {
				return d.controller.ListVolumes(ctx, r)
			},
			map[string]change[R]{
				"negative":      {func(r R) { r.MaxEntries = -1 }, codes.InvalidArgument},
				"invalid token": {func(r R) { r.StartingToken = "7" }, codes.Aborted},
			})
	})
	t.Run("GetCapacity", func(t *testing.T) {
		type R = *spec.GetCapacityRequest
		refuse(t, d, &spec.GetCapacityRequest{},
			func(ctx context.Context, r R) (*spec.GetCapacityResponse, error) {
				return d.controller.GetCapacity(ctx, r)
			},
			map[string]change[R]{
				"unknown parameter": {func(r R) { r.Parameters = map[string]string{"x": ""} }, codes.InvalidArgument},
				"empty capability":  {func(r R) { r.VolumeCapabilities = []*spec.VolumeCapability{nil} }, codes.InvalidArgument},
			})
	})
}

// badAccess are capabilities that a volume cannot be staged or published with.
func badAccess[R proto.Message](m map[string]change[R], set func(R, *spec.VolumeCapability)) map[string]change[R] {
	for name, c := range map[string]struct {
		cap  *spec.VolumeCapability
		want codes.Code
	}{
		"no capability":    {nil, codes.InvalidArgument},
		"empty capability": {&spec.VolumeCapability{}, codes.InvalidArgument},
		"file system":      {mountCap("ntfs"), codes.FailedPrecondition},
		"many nodes":       {withMode(mountCap(""), spec.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER), codes.FailedPrecondition},
	} {
		m["access: "+name] = change[R]{func(r R) { set(r, c.cap) }, c.want}
	}
	return m
}

func TestNodeRefuses(t *testing.T) {
	d := start(t)
	d.usage.Total = 1
	t.Run("NodeStageVolume", func(t *testing.T) {
		type R = *spec.NodeStageVolumeRequest
		bad := map[string]change[R]{
			"no path":           {func(r R) { r.StagingTargetPath = "" }, codes.InvalidArgument},
			"unknown attribute": {func(r R) { r.VolumeContext = map[string]string{"devise": "/dev/sdb"} }, codes.InvalidArgument},
			"unknown transport": {func(r R) { r.VolumeContext = map[string]string{"transport": ""} }, codes.InvalidArgument},
			"empty device":      {func(r R) { r.VolumeContext = map[string]string{"device": ""} }, codes.InvalidArgument},
		}
		addStrings(bad, "device", badPaths, func(r R, s string) { r.VolumeContext = map[string]string{"device": s} })
		addStrings(bad, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		addStrings(bad, "path", badPaths, func(r R, s string) { r.StagingTargetPath = s })
		badAccess(bad, func(r R, c *spec.VolumeCapability) { r.VolumeCapability = c })
		refuse(t, d, &spec.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s", VolumeCapability: mountCap("")},
			func(ctx context.Context, r R) (*spec.NodeStageVolumeResponse, error) {
				return d.node.NodeStageVolume(ctx, r)
			}, bad)
	})
	t.Run("NodeUnstageVolume", func(t *testing.T) {
		type R = *spec.NodeUnstageVolumeRequest
		bad := addStrings(map[string]change[R]{
			"no path": {func(r R) { r.StagingTargetPath = "" }, codes.InvalidArgument},
		}, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		addStrings(bad, "path", badPaths, func(r R, s string) { r.StagingTargetPath = s })
		refuse(t, d, &spec.NodeUnstageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s"},
			func(ctx context.Context, r R) (*spec.NodeUnstageVolumeResponse, error) {
				return d.node.NodeUnstageVolume(ctx, r)
			}, bad)
	})
	t.Run("NodePublishVolume", func(t *testing.T) {
		type R = *spec.NodePublishVolumeRequest
		bad := map[string]change[R]{
			"no path":           {func(r R) { r.TargetPath = "" }, codes.InvalidArgument},
			"no staging path":   {func(r R) { r.StagingTargetPath = "" }, codes.FailedPrecondition},
			"unknown attribute": {func(r R) { r.VolumeContext = map[string]string{"devise": "/dev/sdb"} }, codes.InvalidArgument},
		}
		addStrings(bad, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		addStrings(bad, "target", badPaths, func(r R, s string) { r.TargetPath = s })
		addStrings(bad, "staging", badPaths, func(r R, s string) { r.StagingTargetPath = s })
		badAccess(bad, func(r R, c *spec.VolumeCapability) { r.VolumeCapability = c })
		refuse(t, d, &spec.NodePublishVolumeRequest{VolumeId: "a", StagingTargetPath: "/s", TargetPath: "/t", VolumeCapability: mountCap("")},
			func(ctx context.Context, r R) (*spec.NodePublishVolumeResponse, error) {
				return d.node.NodePublishVolume(ctx, r)
			}, bad)
	})
	t.Run("NodeUnpublishVolume", func(t *testing.T) {
		type R = *spec.NodeUnpublishVolumeRequest
		bad := addStrings(map[string]change[R]{
			"no path": {func(r R) { r.TargetPath = "" }, codes.InvalidArgument},
		}, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		addStrings(bad, "path", badPaths, func(r R, s string) { r.TargetPath = s })
		refuse(t, d, &spec.NodeUnpublishVolumeRequest{VolumeId: "a", TargetPath: "/t"},
			func(ctx context.Context, r R) (*spec.NodeUnpublishVolumeResponse, error) {
				return d.node.NodeUnpublishVolume(ctx, r)
			}, bad)
	})
	t.Run("NodeGetVolumeStats", func(t *testing.T) {
		type R = *spec.NodeGetVolumeStatsRequest
		bad := addStrings(map[string]change[R]{
			"no path":       {func(r R) { r.VolumePath = "" }, codes.InvalidArgument},
			"relative path": {func(r R) { r.VolumePath = "some/path" }, codes.NotFound},
		}, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		refuse(t, d, &spec.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: "/t"},
			func(ctx context.Context, r R) (*spec.NodeGetVolumeStatsResponse, error) {
				return d.node.NodeGetVolumeStats(ctx, r)
			}, bad)
	})
	t.Run("NodeGetVolumeHealth", func(t *testing.T) {
		type R = *spec.NodeGetVolumeHealthRequest
		bad := addStrings(map[string]change[R]{}, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		addStrings(bad, "published", badPaths, func(r R, s string) { r.VolumePublishPath = s })
		addStrings(bad, "staged", badPaths, func(r R, s string) { r.StagingTargetPath = s })
		refuse(t, d, &spec.NodeGetVolumeHealthRequest{VolumeId: "a"},
			func(ctx context.Context, r R) (*spec.NodeGetVolumeHealthResponse, error) {
				return d.node.NodeGetVolumeHealth(ctx, r)
			}, bad)
	})
	t.Run("NodeExpandVolume", func(t *testing.T) {
		type R = *spec.NodeExpandVolumeRequest
		capacity := func(required, limit int64) func(R) {
			return func(r R) { r.CapacityRange = &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit} }
		}
		bad := addStrings(map[string]change[R]{
			"no path":       {func(r R) { r.VolumePath = "" }, codes.InvalidArgument},
			"relative path": {func(r R) { r.VolumePath = "some/path" }, codes.NotFound},
			"upwards":       {func(r R) { r.VolumePath = "/a/../../b" }, codes.InvalidArgument},
			"no sizes":      {capacity(0, 0), codes.InvalidArgument},
			"negative":      {capacity(-1, 0), codes.InvalidArgument},
			"limit too low": {capacity(2<<30, 1<<30), codes.OutOfRange},
			"many nodes": {func(r R) {
				r.VolumeCapability = withMode(mountCap(""), spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
			}, codes.InvalidArgument},
		}, "id", badIDs, func(r R, s string) { r.VolumeId = s })
		refuse(t, d, &spec.NodeExpandVolumeRequest{VolumeId: "a", VolumePath: "/t", VolumeCapability: mountCap("")},
			func(ctx context.Context, r R) (*spec.NodeExpandVolumeResponse, error) {
				return d.node.NodeExpandVolume(ctx, r)
			}, bad)
	})
}
