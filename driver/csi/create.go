package csi

import (
	"context"
	"errors"
	"fmt"

	"github.com/bowline-csi/bowline/driver/pool"
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CreateVolume implements spec.ControllerServer. What takes longer than the
// caller waits, as a large clone does, goes on and is found done by a later call.
func (c *Controller) CreateVolume(ctx context.Context, req *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	w, err := c.parseCreate(req)
	if err != nil {
		return nil, err
	}
	var v pool.Volume
	err = c.jobs.do(ctx, pool.ID(w.name, c.node), func(ctx context.Context) (err error) {
		v, err = c.create(ctx, w)
		return err
	})
	if err != nil {
		return nil, asStatus(err)
	}
	d := c.describe(v)
	if w.ioUring {
		// It is no property of the volume: who stages it is told again each time.
		d.VolumeContext = map[string]string{transportKey: transportIOUring}
	}
	return &spec.CreateVolumeResponse{Volume: d}, nil
}

// wanted is the volume that a CreateVolumeRequest describes.
type wanted struct {
	name   string
	access access
	size   *spec.CapacityRange // nil: no matter
	thin   bool
	source string // ID of the volume to clone, or ""

	ioUring bool
}

func (c *Controller) parseCreate(req *spec.CreateVolumeRequest) (w wanted, err error) {
	w = wanted{name: req.GetName(), size: req.GetCapacityRange()}
	if err := checkName(w.name); err != nil {
		return w, err
	}
	w.access, err = parseAll(req.GetVolumeCapabilities())
	if errors.Is(err, errUnsupported) {
		return w, invalid("volume_capabilities: %v", err)
	} else if err != nil {
		return w, err
	}
	if w.size != nil {
		if err := checkRange(w.size); err != nil {
			return w, err
		}
	}
	if w.thin, w.ioUring, err = parseParameters(req.GetParameters()); err != nil {
		return w, err
	}
	if err := checkKeys("mutable_parameters", req.GetMutableParameters()); err != nil {
		return w, err
	}
	if s := req.GetVolumeContentSource(); s != nil {
		if s.GetVolume() == nil {
			return w, invalid("volume_content_source is not a volume: this driver has no snapshots")
		}
		w.source = s.GetVolume().GetVolumeId()
		if err := checkID("volume_id of volume_content_source", w.source); err != nil {
			return w, err
		}
	}
	return w, c.checkTopology(req.GetAccessibilityRequirements())
}

// create makes a volume, or finds that it exists.
func (c *Controller) create(ctx context.Context, w wanted) (pool.Volume, error) {
	v, err := c.pool.Get(pool.ID(w.name, c.node))
	switch {
	case err == nil:
		return v, sameAs(v, w)
	case !errors.Is(err, pool.ErrNotFound):
		return v, err
	case w.source != "":
		return c.clone(ctx, w)
	}
	size, err := chooseSize(w.size, smallest(w.access), defaultSize)
	if err != nil {
		return v, err
	}
	return c.pool.Create(ctx, pool.CreateOptions{Name: w.name, Size: size, Thin: w.thin})
}

// sameAs says in what a volume differs from what is wanted under its name.
func sameAs(v pool.Volume, w wanted) error {
	differs := func(format string, a ...any) error {
		return status.Errorf(codes.AlreadyExists, "volume %s exists and %s", v.ID, fmt.Sprintf(format, a...))
	}
	if !fits(v.Size, w.size) {
		return differs("has %d bytes, wanted are %d to %d", v.Size, w.size.GetRequiredBytes(), w.size.GetLimitBytes())
	}
	if v.Thin != w.thin {
		return differs("its %s is %t", thinKey, v.Thin)
	}
	if v.Source != w.source {
		return differs("is a clone of %q, not of %q", v.Source, w.source)
	}
	if err := usableAs(v, w.access); err != nil {
		return differs("cannot be used as wanted: %v", err)
	}
	return nil
}

// clone makes a volume with the content of another one.
func (c *Controller) clone(ctx context.Context, w wanted) (pool.Volume, error) {
	source, err := c.pool.Get(w.source)
	switch {
	case errors.Is(err, pool.ErrForeign):
		// The provisioner then lets the scheduler choose another node.
		return source, status.Errorf(codes.ResourceExhausted, "a clone has to be on the node of its source, this is %s: %v", c.node, err)
	case err != nil:
		return source, fmt.Errorf("source of the clone: %w", err)
	}
	if err := usableAs(source, w.access); err != nil {
		return source, invalid("source of the clone: %v", err)
	}
	size, err := chooseSize(w.size, smallest(w.access), source.Size)
	if err != nil {
		return source, err
	}
	if size < source.Size {
		return source, status.Errorf(codes.OutOfRange, "a clone of %d bytes is smaller than its source %s with %d", size, source.ID, source.Size)
	}
	return c.volumes.Clone(ctx, source.ID, pool.CreateOptions{Name: w.name, Size: size, Thin: w.thin})
}
