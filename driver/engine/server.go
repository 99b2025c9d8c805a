// Package engine is the data plane: the process that holds the mappings of
// volumes and answers over a unix socket those who steer it.
//
// It is a process of its own because a mapping must outlive everything that is
// upgraded or restarted often. It keeps nothing that is not on the volumes, in the
// kernel, or with a Keeper, so a successor can take over from one that died.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/mapping"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// detachPatience is how long Detach waits for others to close the mapped device.
const detachPatience = 3 * time.Second

// leftoverPatience is how long is waited for users of what an engine that was
// killed has left.
const leftoverPatience = time.Second

// Server holds mappings and implements the service of package enginepb.
type Server struct {
	enginepb.UnimplementedEngineServer

	// Keeper holds what a successor needs. Nil means that there will be none. Not
	// to be changed after the first call.
	Keeper Keeper

	ending atomic.Bool // no more volumes are attached

	mu      sync.Mutex
	volumes map[string]*volume // guarded by mu
}

// volume is an attached volume, or one that is being attached or detached.
type volume struct {
	// life is held for writing while the volume is attached or detached, and
	// for reading by what needs it to stay attached. Telling how it is needs
	// neither, so that a volume whose disk hangs can still be looked at.
	life    sync.RWMutex
	mapping atomic.Pointer[attachment] // nil when not attached

	// Why who holds life holds it for long.
	restoring  atomic.Bool
	takingOver atomic.Bool
}

// attachment is the mapping of an attached volume.
type attachment struct {
	*mapping.Mapping
	since    time.Time // when this process began to serve it
	survives bool      // a successor can take it over
}

// NewServer returns a server without volumes.
func NewServer() *Server { return &Server{volumes: map[string]*volume{}} }

// Register makes the server answer at s.
func (s *Server) Register(r grpc.ServiceRegistrar) { enginepb.RegisterEngineServer(r, s) }

// End refuses to attach volumes from now on.
func (s *Server) End() { s.ending.Store(true) }

// Attached is the number of volumes that are attached, or about to be.
func (s *Server) Attached() int { return len(s.names()) }

// Close detaches all volumes. Those that are in use stay attached, and the error
// names them.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	for _, name := range s.names() {
		if _, err := s.Detach(ctx, &enginepb.DetachRequest{Name: name}); err != nil {
			errs = append(errs, errors.New(status.Convert(err).Message()))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.volumes))
	for name := range s.volumes {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// enter returns the volume with life held for writing, or nil if it does not
// exist and create is not set. leave ends that.
func (s *Server) enter(name string, create bool) *volume {
	for {
		s.mu.Lock()
		v := s.volumes[name]
		if v == nil && create {
			v = &volume{}
			s.volumes[name] = v
		}
		s.mu.Unlock()
		if v == nil {
			return nil
		}
		v.life.Lock()
		if s.find(name) == v {
			return v
		}
		v.life.Unlock() // it was detached while we waited
	}
}

// leave ends what enter began, and forgets v if it is not attached.
func (s *Server) leave(name string, v *volume) {
	if v.mapping.Load() == nil {
		s.mu.Lock()
		delete(s.volumes, name)
		s.mu.Unlock()
	}
	v.life.Unlock()
}

func (s *Server) find(name string) *volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[name]
}

// Attach implements enginepb.EngineServer.
func (s *Server) Attach(ctx context.Context, req *enginepb.AttachRequest) (*enginepb.Volume, error) {
	if req.Path == "" {
		return nil, status.Error(codes.InvalidArgument, "attaching needs the path of a backing device")
	}
	if req.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "attaching needs a name for the volume")
	}
	switch v := s.find(req.Name); {
	case v == nil:
	case v.restoring.Load():
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q is being rolled back", req.Name)
	case v.takingOver.Load():
		return nil, v.notAttached(req.Name)
	}
	v := s.enter(req.Name, true)
	defer s.leave(req.Name, v)
	if err := s.forgetGone(req.Name, v); err != nil {
		return nil, asStatus(err)
	}
	if m := v.mapping.Load(); m != nil {
		if m.Path() != req.Path || req.BlockSize != 0 && int(req.BlockSize) != m.BlockSize() {
			return nil, status.Errorf(codes.AlreadyExists, "volume %q is attached to %s with blocks of %d bytes", req.Name, m.Path(), m.BlockSize())
		}
		return describe(req.Name, m), nil
	}
	if s.ending.Load() {
		return nil, status.Error(codes.Unavailable, "the engine is about to end; try again when it has been started anew")
	}
	o := mapping.Options{Name: req.Name, BlockSize: int(req.BlockSize), KeepAllocated: req.KeepAllocated, IOUring: req.IoUring}
	if o.BlockSize == 0 {
		content, err := filesystem.Probe(ctx, req.Path)
		if err != nil {
			return nil, asStatus(fmt.Errorf("looking at what is on %s: %w", req.Path, err))
		}
		o.BlockSize = filesystem.MappingBlockSize(content)
	}
	if err := removeLeftover(ctx, req.Name); err != nil {
		return nil, asStatus(err)
	}
	m, err := mapping.Attach(ctx, req.Path, o)
	if err != nil {
		return nil, asStatus(err)
	}
	a := &attachment{Mapping: m, since: time.Now()}
	if a.survives, err = s.keep(m, o); err != nil {
		return nil, asStatus(errors.Join(err, m.Close(ctx)))
	}
	v.mapping.Store(a)
	return describe(req.Name, a), nil
}

// forgetGone detaches v if its mapped device was taken away by others.
func (s *Server) forgetGone(name string, v *volume) error {
	m := v.mapping.Load()
	if m == nil {
		return nil
	}
	select {
	case <-m.Done():
		v.mapping.Store(nil)
		return errors.Join(m.Close(context.Background()), s.drop(name))
	default:
		return nil
	}
}

// removeLeftover removes the mapped device of an engine that died and has no
// successor, which fails every request.
func removeLeftover(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverPatience)
	defer cancel()
	return fuse.RemoveDead(ctx, name)
}

// Detach implements enginepb.EngineServer.
func (s *Server) Detach(ctx context.Context, req *enginepb.DetachRequest) (*enginepb.DetachResponse, error) {
	switch v := s.find(req.Name); {
	case v == nil:
	case v.restoring.Load():
		return &enginepb.DetachResponse{}, nil
	case v.takingOver.Load():
		return nil, v.notAttached(req.Name)
	}
	v := s.enter(req.Name, false)
	if v == nil {
		if err := removeLeftover(ctx, req.Name); err != nil {
			return nil, asStatus(err)
		}
		return &enginepb.DetachResponse{}, nil
	}
	defer s.leave(req.Name, v)
	m := v.mapping.Load()
	if m == nil {
		return &enginepb.DetachResponse{}, nil
	}
	// Somebody looks at every device for a moment; who stays longer uses it.
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	err := m.Close(ctx)
	if errors.Is(err, export.ErrBusy) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// It is in use, or on its way out, which can take long on a busy machine.
		// The backing device is open until the next call finds that it is out.
		return nil, asStatus(err)
	}
	v.mapping.Store(nil) // whatever else went wrong, it is gone
	if err := errors.Join(err, s.drop(req.Name)); err != nil {
		return nil, asStatus(err)
	}
	return &enginepb.DetachResponse{}, nil
}

// List implements enginepb.EngineServer.
func (s *Server) List(ctx context.Context, _ *enginepb.ListRequest) (*enginepb.ListResponse, error) {
	resp := &enginepb.ListResponse{}
	for _, name := range s.names() {
		if m := s.attached(name); m != nil {
			resp.Volumes = append(resp.Volumes, describe(name, m))
		}
	}
	return resp, nil
}

// Get implements enginepb.EngineServer.
func (s *Server) Get(ctx context.Context, req *enginepb.GetRequest) (*enginepb.Volume, error) {
	v := s.find(req.Name)
	if v == nil {
		return nil, notAttached(req.Name)
	}
	m := v.mapping.Load()
	if m == nil {
		return nil, v.notAttached(req.Name)
	}
	return describe(req.Name, m), nil
}

// attached returns the mapping of a volume, or nil.
func (s *Server) attached(name string) *attachment {
	v := s.find(name)
	if v == nil {
		return nil
	}
	return v.mapping.Load()
}

// notAttached says why there is no mapping.
func (v *volume) notAttached(name string) error {
	if v.takingOver.Load() {
		return status.Errorf(codes.Unavailable, "volume %q is being taken over from an engine that died; try again", name)
	}
	return notAttached(name)
}

func notAttached(name string) error {
	return status.Errorf(codes.NotFound, "volume %q is not attached", name)
}
