package csi_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// create asks for a volume; change makes the request other than the usual.
func (d *driver) create(t *testing.T, name string, change func(*spec.CreateVolumeRequest)) (*spec.Volume, error) {
	t.Helper()
	req := &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")}}
	if change != nil {
		change(req)
	}
	resp, err := d.controller.CreateVolume(t.Context(), req)
	return resp.GetVolume(), err
}

func TestCreateVolume(t *testing.T) {
	type R = *spec.CreateVolumeRequest
	capacity := func(required, limit int64) func(R) {
		return func(r R) { r.CapacityRange = &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit} }
	}
	all := func(f ...func(R)) func(R) {
		return func(r R) {
			for _, f := range f {
				f(r)
			}
		}
	}
	xfs := func(r R) { r.VolumeCapabilities = []*spec.VolumeCapability{mountCap("xfs")} }
	for name, c := range map[string]struct {
		change func(R)
		want   int64
		thin   bool
	}{
		"no size":      {nil, gib, false},
		"exactly":      {capacity(2*gib, 2*gib), 2 * gib, false},
		"rounded up":   {capacity(1e9, 0), 1000001536, false},
		"limit only":   {capacity(0, 100*mib+1), 100 * mib, false},
		"large limit":  {capacity(0, 100*gib), gib, false},
		"tiny":         {capacity(1, 0), 16 * mib, false},
		"tiny for xfs": {all(xfs, capacity(1, 0)), 300 * mib, false},
		"tiny for xfs in many": {func(r R) {
			capacity(1, 0)(r)
			r.VolumeCapabilities = []*spec.VolumeCapability{mountCap(""), mountCap("xfs")}
		}, 300 * mib, false},
		"raw":  {func(r R) { r.VolumeCapabilities = []*spec.VolumeCapability{blockCap()} }, gib, false},
		"thin": {func(r R) { r.Parameters = map[string]string{"thin": "true"} }, gib, true},
		"thick": {func(r R) {
			r.Parameters = map[string]string{"thin": "false", "csi.storage.k8s.io/pv/name": "x"}
		}, gib, false},
		"here": {func(r R) {
			r.AccessibilityRequirements = &spec.TopologyRequirement{Requisite: []*spec.Topology{
				{Segments: map[string]string{"topology.bowline.dev/node": "node-2"}},
				{Segments: map[string]string{"topology.bowline.dev/node": node}},
			}}
		}, gib, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t)
			v, err := d.create(t, "a", c.change)
			if err != nil {
				t.Fatal(err)
			}
			d.wantDone(t, fmt.Sprintf("create {Name:a Size:%d Thin:%t}", c.want, c.thin))
			if v.GetCapacityBytes() != c.want || v.GetVolumeId() != pool.ID("a", node) || len(v.GetVolumeContext()) > 0 || v.GetContentSource() != nil ||
				len(v.GetAccessibleTopology()) != 1 || v.AccessibleTopology[0].Segments["topology.bowline.dev/node"] != node {
				t.Errorf("%v", v)
			}
			again, err := d.create(t, "a", c.change)
			if err != nil || !proto.Equal(again, v) {
				t.Errorf("again: %v, %v", again, err)
			}
			d.wantDone(t)
		})
	}
}

// TestCreateAfterExpansion: a late repetition of the request that made a volume is
// still about that volume.
func TestCreateAfterExpansion(t *testing.T) {
	d := start(t)
	d.put(pool.Volume{Name: "a", Size: 2 * gib, Used: true, FSType: "ext4"})
	v, err := d.create(t, "a", func(r *spec.CreateVolumeRequest) { r.CapacityRange = &spec.CapacityRange{RequiredBytes: gib} })
	if err != nil || v.GetCapacityBytes() != 2*gib {
		t.Errorf("%v, %v", v, err)
	}
	d.wantDone(t)
}

func TestClone(t *testing.T) {
	d := start(t)
	source := d.put(pool.Volume{Name: "source", Size: 1000001536, Used: true, FSType: "ext4"})
	clone := func(required int64) func(*spec.CreateVolumeRequest) {
		return func(r *spec.CreateVolumeRequest) {
			if required > 0 {
				r.CapacityRange = &spec.CapacityRange{RequiredBytes: required}
			}
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
				Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: source.ID},
			}}
		}
	}
	for required, want := range map[int64]int64{
		0:       source.Size,
		1e9:     source.Size, // what the claim of the source says
		2 * gib: 2 * gib,
	} {
		name := fmt.Sprint("clone-", required)
		v, err := d.create(t, name, clone(required))
		if err != nil || v.GetCapacityBytes() != want || v.GetContentSource().GetVolume().GetVolumeId() != source.ID {
			t.Errorf("%d: %v, %v", required, v, err)
		}
		d.wantDone(t, fmt.Sprintf("clone %s {Name:%s Size:%d Thin:false}", source.ID, name, want))
		if again, err := d.create(t, name, clone(required)); err != nil || again.GetVolumeId() != v.GetVolumeId() {
			t.Errorf("%d again: %v, %v", required, again, err)
		}
		d.wantDone(t)
	}
	_, err := d.create(t, "clone-0", nil)
	wantCode(t, err, codes.AlreadyExists)
	for kind, want := range map[error]codes.Code{
		volume.ErrInUse:           codes.FailedPrecondition,
		volume.ErrCheckpointOpen:  codes.FailedPrecondition,
		volume.ErrRollbackPending: codes.Aborted,
		pool.ErrFull:              codes.ResourceExhausted,
	} {
		d.err = fmt.Errorf("x: %w", kind)
		_, err := d.create(t, "another", clone(0))
		wantCode(t, err, want)
	}
}

// TestSlowClone gives up waiting for a clone, which goes on.
func TestSlowClone(t *testing.T) {
	d := start(t)
	source := d.put(pool.Volume{Name: "source", Size: gib, Used: true, FSType: "ext4"})
	proceed, begun := make(chan struct{}), make(chan struct{}, 10)
	d.cloning = func(ctx context.Context) error {
		begun <- struct{}{}
		select {
		case <-proceed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	req := &spec.CreateVolumeRequest{
		Name: "clone", VolumeCapabilities: []*spec.VolumeCapability{mountCap("")},
		VolumeContentSource: &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
			Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: source.ID},
		}},
	}
	impatient := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := d.controller.CreateVolume(ctx, req)
		return err
	}
	for range 3 {
		if err := impatient(); err == nil {
			t.Error("done before it was")
		}
	}
	// Nor may it be deleted in the middle.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.controller.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: pool.ID("clone", node)}); err == nil {
		t.Error("deleted in the middle")
	}
	// The server may notice a little later than the client that time is up.
	for end := time.Now().Add(10 * time.Second); d.requests(t) < 4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("requests go on although nobody waits for them")
		}
	}
	close(proceed)
	if _, err := d.controller.CreateVolume(t.Context(), req); err != nil {
		t.Error(err)
	}
	if n := len(begun); n != 1 {
		t.Errorf("begun %d times", n)
	}
}

// requests is how many requests have been answered.
func (d *driver) requests(t *testing.T) (n uint64) {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			n += m.GetHistogram().GetSampleCount()
		}
	}
	return n
}

// TestCloseEndsClone: the driver stops although a clone is under way.
func TestCloseEndsClone(t *testing.T) {
	d := start(t) // its end waits for what is under way
	source := d.put(pool.Volume{Name: "source", Size: gib})
	begun, ended := make(chan struct{}), make(chan error, 1)
	d.cloning = func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := d.controller.CreateVolume(ctx, &spec.CreateVolumeRequest{
		Name: "clone", VolumeCapabilities: []*spec.VolumeCapability{mountCap("")},
		VolumeContentSource: &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{
			Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: source.ID},
		}},
	})
	wantCode(t, err, codes.Canceled)
	select {
	case err := <-ended:
		t.Errorf("ended with its caller: %v", err)
	default:
	}
}

func TestDeleteVolume(t *testing.T) {
	d := start(t)
	v := d.put(pool.Volume{Name: "a", Size: gib})
	for _, id := range []string{v.ID, v.ID, "never-was"} {
		if _, err := d.controller.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for kind, want := range map[error]codes.Code{
		pool.ErrForeign:      codes.FailedPrecondition, // it may well exist
		volume.ErrInUse:      codes.FailedPrecondition,
		volume.ErrBusy:       codes.Aborted,
		volume.ErrEngineDown: codes.Unavailable,
		pool.ErrUnavailable:  codes.Unavailable, // nobody knows whether it exists
		errors.New("x"):      codes.Internal,
	} {
		d.err = fmt.Errorf("x: %w", kind)
		_, err := d.controller.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: v.ID})
		wantCode(t, err, want)
	}
}

func TestListVolumes(t *testing.T) {
	d := start(t)
	var want []string
	for i := range 5 {
		want = append(want, d.put(pool.Volume{Name: fmt.Sprint("v", i), Size: gib}).ID)
	}
	for _, page := range []int32{0, 1, 2, 5, 6} {
		var got []string
		token := ""
		for {
			r, err := d.controller.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: page, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if page > 0 && len(r.GetEntries()) > int(page) {
				t.Errorf("%d entries on a page of %d", len(r.GetEntries()), page)
			}
			for _, e := range r.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeId())
			}
			if token = r.GetNextToken(); token == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %d: %v", page, got)
		}
	}
	// The volume that a token names may be gone.
	r, err := d.controller.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), want[1]); err != nil {
		t.Fatal(err)
	}
	r, err = d.controller.ListVolumes(t.Context(), &spec.ListVolumesRequest{StartingToken: r.GetNextToken()})
	if err != nil || len(r.GetEntries()) != 3 || r.Entries[0].GetVolume().GetVolumeId() != want[2] {
		t.Errorf("%v, %v", r, err)
	}
}

func TestGetCapacity(t *testing.T) {
	d := start(t)
	d.capacity = pool.Capacity{Total: 10 * gib, Available: 7 * gib, MaxVolume: 6 * gib}
	at := func(key, value string) *spec.Topology { return &spec.Topology{Segments: map[string]string{key: value}} }
	for name, c := range map[string]struct {
		req                     *spec.GetCapacityRequest
		available, most, lowest int64
	}{
		"any":         {&spec.GetCapacityRequest{}, 7 * gib, 6 * gib, 16 * mib},
		"here":        {&spec.GetCapacityRequest{AccessibleTopology: at("topology.bowline.dev/node", node)}, 7 * gib, 6 * gib, 16 * mib},
		"elsewhere":   {&spec.GetCapacityRequest{AccessibleTopology: at("topology.bowline.dev/node", "x")}, 0, 0, 0},
		"in a zone":   {&spec.GetCapacityRequest{AccessibleTopology: at("zone", node)}, 0, 0, 0},
		"thin":        {&spec.GetCapacityRequest{Parameters: map[string]string{"thin": "true"}}, 7 * gib, 0, 16 * mib},
		"xfs":         {&spec.GetCapacityRequest{VolumeCapabilities: []*spec.VolumeCapability{mountCap("xfs")}}, 7 * gib, 6 * gib, 300 * mib},
		"unsupported": {&spec.GetCapacityRequest{VolumeCapabilities: []*spec.VolumeCapability{mountCap("zfs")}}, 0, 0, 0},
	} {
		r, err := d.controller.GetCapacity(t.Context(), c.req)
		if err != nil || r.GetAvailableCapacity() != c.available || r.GetMaximumVolumeSize().GetValue() != c.most || r.GetMinimumVolumeSize().GetValue() != c.lowest {
			t.Errorf("%s: %v, %v", name, r, err)
		}
		// Without the pool there is no room, which is better known than not.
		d.err = fmt.Errorf("x: %w", pool.ErrUnavailable)
		r, err = d.controller.GetCapacity(t.Context(), c.req)
		if err != nil || r.GetAvailableCapacity() != 0 || r.GetMaximumVolumeSize().GetValue() != 0 {
			t.Errorf("%s, without the pool: %v, %v", name, r, err)
		}
		d.err = nil
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	d := start(t)
	fresh := d.put(pool.Volume{Name: "fresh", Size: gib}).ID
	raw := d.put(pool.Volume{Name: "raw", Size: gib, Used: true}).ID
	ext4 := d.put(pool.Volume{Name: "ext4", Size: gib, Used: true, FSType: "ext4"}).ID
	for _, c := range []struct {
		req  *spec.ValidateVolumeCapabilitiesRequest
		want bool
	}{
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: fresh, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")}}, true},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: fresh, VolumeCapabilities: []*spec.VolumeCapability{blockCap()}}, true},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: fresh, VolumeCapabilities: []*spec.VolumeCapability{mountCap("reiserfs")}}, false},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: raw, VolumeCapabilities: []*spec.VolumeCapability{blockCap()}}, true},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: raw, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")}}, false},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: ext4, VolumeCapabilities: []*spec.VolumeCapability{mountCap(""), mountCap("ext4")}}, true},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: ext4, VolumeCapabilities: []*spec.VolumeCapability{mountCap("xfs")}}, false},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: ext4, VolumeCapabilities: []*spec.VolumeCapability{blockCap()}}, false},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: ext4, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")}, Parameters: map[string]string{"x": "y"}}, false},
		{&spec.ValidateVolumeCapabilitiesRequest{VolumeId: ext4, VolumeCapabilities: []*spec.VolumeCapability{mountCap("")},
			VolumeContext: map[string]string{"storage.kubernetes.io/csiProvisionerIdentity": "x"}}, true},
	} {
		r, err := d.controller.ValidateVolumeCapabilities(t.Context(), c.req)
		if err != nil || (r.GetConfirmed() != nil) != c.want || (r.GetMessage() == "") != c.want {
			t.Errorf("%v: %v, %v", c.req, r, err)
		}
	}
}

// TestTransport checks that what a StorageClass says of it is told to those who stage
// the volume.
func TestTransport(t *testing.T) {
	d := start(t)
	for transport, want := range map[string]map[string]string{"": nil, "classic": nil, "io_uring": {"transport": "io_uring"}} {
		v, err := d.create(t, "t"+strings.ReplaceAll(transport, "_", "-"), func(r *spec.CreateVolumeRequest) {
			if transport != "" {
				r.Parameters = map[string]string{"transport": transport}
			}
		})
		if err != nil {
			t.Fatalf("%q: %v", transport, err)
		}
		if !maps.Equal(v.GetVolumeContext(), want) {
			t.Errorf("%q: context %v", transport, v.GetVolumeContext())
		}
	}
}
