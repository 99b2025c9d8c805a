package csi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bowline-csi/bowline/driver/csi"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const node = "node-1"

// backend is a pool and the volumes of a node, in memory. It notes what is done
// to it, besides being asked.
type backend struct {
	capacity pool.Capacity
	usage    volume.Usage
	health   volume.Health
	err      error                       // what everything but the pool's Get and List returns
	cloning  func(context.Context) error // called by Clone

	mu      sync.Mutex
	volumes map[string]pool.Volume // guarded by mu
	done    []string               // guarded by mu
}

func (b *backend) note(format string, a ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = append(b.done, fmt.Sprintf(format, a...))
	return b.err
}

// take returns what was done since the last call.
func (b *backend) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := b.done
	b.done = nil
	return done
}

func (b *backend) put(v pool.Volume) pool.Volume {
	b.mu.Lock()
	defer b.mu.Unlock()
	v.ID = pool.ID(v.Name, node)
	b.volumes[v.ID] = v
	return v
}

func (b *backend) Create(_ context.Context, o pool.CreateOptions) (pool.Volume, error) {
	if err := b.note("create %+v", o); err != nil {
		return pool.Volume{}, err
	}
	return b.put(pool.Volume{Name: o.Name, Size: o.Size, Thin: o.Thin}), nil
}

func (b *backend) Clone(ctx context.Context, source string, o pool.CreateOptions) (pool.Volume, error) {
	if err := b.note("clone %s %+v", source, o); err != nil {
		return pool.Volume{}, err
	}
	if b.cloning != nil {
		if err := b.cloning(ctx); err != nil {
			return pool.Volume{}, err
		}
	}
	return b.put(pool.Volume{Name: o.Name, Size: o.Size, Thin: o.Thin, Source: source}), nil
}

func (b *backend) Get(id string) (pool.Volume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.volumes[id]
	switch {
	case ok:
		return v, nil
	case strings.HasSuffix(id, ".00000000"):
		return v, pool.ErrForeign
	}
	return v, pool.ErrNotFound
}

func (b *backend) List() ([]pool.Volume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []pool.Volume
	for _, v := range b.volumes {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b pool.Volume) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

func (b *backend) Capacity() (pool.Capacity, error) { return b.capacity, b.err }

func (b *backend) Delete(_ context.Context, id string) error {
	if err := b.note("delete %s", id); err != nil {
		return err
	}
	_, err := b.Get(id)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.volumes, id)
	return err
}

func (b *backend) Stage(_ context.Context, o volume.StageOptions) error {
	return b.note("stage %+v", o)
}

func (b *backend) Unstage(_ context.Context, id, path string) error {
	return b.note("unstage %s %s", id, path)
}

func (b *backend) Publish(_ context.Context, o volume.PublishOptions) error {
	return b.note("publish %+v", o)
}

func (b *backend) Unpublish(_ context.Context, id, path string) error {
	return b.note("unpublish %s %s", id, path)
}

func (b *backend) Expand(_ context.Context, r volume.Ref, size int64) (int64, error) {
	return max(size, 1<<20), b.note("expand %s %d", r.ID, size)
}

func (b *backend) Stats(_ context.Context, id, path string) (volume.Usage, error) {
	return b.usage, b.err
}

func (b *backend) Health(context.Context, string) (volume.Health, error) { return b.health, b.err }

// driver is a driver in front of a backend, and clients of it.
type driver struct {
	*backend
	identity   spec.IdentityClient
	controller spec.ControllerClient
	node       spec.NodeClient
	metrics    *prometheus.Registry
	ready      error         // of the engine
	log        *bytes.Buffer // not to be read while requests are under way
}

// start starts a driver whose backend is empty.
func start(t *testing.T) *driver {
	t.Helper()
	d := &driver{
		backend: &backend{volumes: map[string]pool.Volume{}},
		metrics: prometheus.NewRegistry(),
		log:     &bytes.Buffer{},
	}
	server, err := csi.NewServer(slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug})), d.metrics)
	if err != nil {
		t.Fatal(err)
	}
	ready := func(context.Context) error { return d.ready }
	csi.NewIdentity("v1.2.3", ready).Register(server)
	controller := csi.NewController(node, d.backend, d.backend)
	controller.Register(server)
	csi.NewNode(node, d.backend, ready).Register(server)
	conn := serve(t, server)
	t.Cleanup(controller.Close)
	d.identity, d.controller, d.node = spec.NewIdentityClient(conn), spec.NewControllerClient(conn), spec.NewNodeClient(conn)
	return d
}

// serve makes server answer and returns a connection to it.
func serve(t *testing.T, server *grpc.Server) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %v, want %v: %v", got, want, err)
	}
}

// wantDone fails unless exactly this was done to the backend.
func (d *driver) wantDone(t *testing.T, want ...string) {
	t.Helper()
	if got := d.take(); !slices.Equal(got, want) {
		t.Errorf("done: %q\nwant: %q", got, want)
	}
}

func mountCap(fsType string, flags ...string) *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

func blockCap() *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

func withMode(c *spec.VolumeCapability, mode spec.VolumeCapability_AccessMode_Mode) *spec.VolumeCapability {
	c.AccessMode.Mode = mode
	return c
}

func TestIdentity(t *testing.T) {
	d := start(t)
	info, err := d.identity.GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.bowline.dev" || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("%v, %v", info, err)
	}
	for _, ready := range []error{nil, errors.New("the engine is away")} {
		d.ready = ready
		r, err := d.identity.Probe(t.Context(), &spec.ProbeRequest{})
		if err != nil || r.GetReady().GetValue() != (ready == nil) {
			t.Errorf("ready %v: %v, %v", ready, r, err)
		}
	}
	c, err := d.identity.GetPluginCapabilities(t.Context(), &spec.GetPluginCapabilitiesRequest{})
	if err != nil || len(c.GetCapabilities()) != 3 {
		t.Errorf("%v, %v", c, err)
	}
}
