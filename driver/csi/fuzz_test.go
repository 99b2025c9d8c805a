package csi

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// FuzzCreateVolume reads requests to create volumes. What is accepted makes
// sense, and what is not has a code of the specification.
func FuzzCreateVolume(f *testing.F) {
	for _, r := range []*spec.CreateVolumeRequest{
		{},
		{
			Name:          "a",
			CapacityRange: &spec.CapacityRange{RequiredBytes: 5000, LimitBytes: 1 << 40},
			VolumeCapabilities: []*spec.VolumeCapability{{
				AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: "xfs"}},
				AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
			}},
			Parameters: map[string]string{"thin": "true"},
			VolumeContentSource: &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
				Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: "b"},
			}},
			AccessibilityRequirements: &spec.TopologyRequirement{Requisite: []*spec.Topology{topology("n")}},
		},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := NewController("n", nil, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req spec.CreateVolumeRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		w, err := c.parseCreate(&req)
		if err != nil {
			switch status.Code(err) {
			case codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted:
			default:
				t.Errorf("%v: %v", &req, err)
			}
			return
		}
		least := smallest(w.access)
		size, err := chooseSize(w.size, least, defaultSize)
		if err != nil {
			if status.Code(err) != codes.OutOfRange {
				t.Errorf("%v: %v", w.size, err)
			}
			return
		}
		if size < least || size > maxSize || size%granularity != 0 || !fits(size, w.size) {
			t.Errorf("%v: %d bytes", w.size, size)
		}
		if w.name == "" || w.access.fsType != "" && w.access.block || strings.Contains(w.source, "/") {
			t.Errorf("accepted: %+v", w)
		}
	})
}

// FuzzPaths: what is accepted as an ID stays in its directory, and what is accepted
// as a path says where it is.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"", "a", "..", "../a", "/a/../b", "/a//b/", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkID("id", s) == nil && (filepath.Dir(filepath.Join("/pool", s)) != "/pool" || filepath.Base(filepath.Join("/pool", s)) != s) {
			t.Errorf("ID %q", s)
		}
		if checkPath("path", s) == nil && (!filepath.IsAbs(s) || filepath.Clean(s) == "/" || !strings.HasPrefix(filepath.Clean("/x"+s), "/x")) {
			t.Errorf("path %q", s)
		}
		if _, _, err := parseContext(map[string]string{deviceKey: s}); (err == nil) != (checkPath("path", s) == nil) {
			t.Errorf("device %q: %v", s, err)
		}
		if err := checkName(s); errors.Is(err, errUnsupported) {
			t.Errorf("name %q: %v", s, err)
		}
	})
}
