// Package engine is the data plane: the process that holds the mappings of
// volumes and answers over a unix socket those who steer it.
//
// It is a process of its own because a mapping must outlive everything that is
// upgraded or restarted often. It keeps nothing that is not on the volumes or in
// the kernel.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/mapping"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// detachPatience is how long Detach waits for others to close the mapped device.
const detachPatience = 3 * time.Second

// Server holds mappings and implements the service of package enginepb.
type Server struct {
	enginepb.UnimplementedEngineServer

	mu      sync.Mutex
	volumes map[string]*volume // guarded by mu
}

// volume is an attached volume, or one that is being attached or detached.
type volume struct {
	// life is held for writing while the volume is attached or detached, and
	// for reading by what needs it to stay attached. Telling how it is needs
	// neither, so that a volume whose disk hangs can still be looked at.
	life    sync.RWMutex
	mapping atomic.Pointer[mapping.Mapping] // nil when not attached
}

// NewServer returns a server without volumes.
func NewServer() *Server { return &Server{volumes: map[string]*volume{}} }

// Register makes the server answer at s.
func (s *Server) Register(r grpc.ServiceRegistrar) { enginepb.RegisterEngineServer(r, s) }

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
	v := s.enter(req.Name, true)
	defer s.leave(req.Name, v)
	if m := v.mapping.Load(); m != nil {
		if m.Path() != req.Path || req.BlockSize != 0 && int(req.BlockSize) != m.BlockSize() {
			return nil, status.Errorf(codes.AlreadyExists, "volume %q is attached to %s with blocks of %d bytes", req.Name, m.Path(), m.BlockSize())
		}
		return describe(req.Name, m), nil
	}
	blockSize := int(req.BlockSize)
	if blockSize == 0 {
		content, err := filesystem.Probe(ctx, req.Path)
		if err != nil {
			return nil, asStatus(fmt.Errorf("looking at what is on %s: %w", req.Path, err))
		}
		blockSize = filesystem.MappingBlockSize(content)
	}
	m, err := mapping.Attach(ctx, req.Path, mapping.Options{Name: req.Name, BlockSize: blockSize})
	if err != nil {
		return nil, asStatus(err)
	}
	v.mapping.Store(m)
	return describe(req.Name, m), nil
}

// Detach implements enginepb.EngineServer.
func (s *Server) Detach(ctx context.Context, req *enginepb.DetachRequest) (*enginepb.DetachResponse, error) {
	v := s.enter(req.Name, false)
	if v == nil {
		return &enginepb.DetachResponse{}, nil
	}
	defer s.leave(req.Name, v)
	// Somebody looks at every device for a moment; who stays longer uses it.
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	err := v.mapping.Load().Close(ctx)
	if errors.Is(err, export.ErrBusy) {
		return nil, asStatus(err)
	}
	v.mapping.Store(nil) // whatever else went wrong, it is gone
	if err != nil {
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
	m := s.attached(req.Name)
	if m == nil {
		return nil, notAttached(req.Name)
	}
	return describe(req.Name, m), nil
}

// attached returns the mapping of a volume, or nil.
func (s *Server) attached(name string) *mapping.Mapping {
	v := s.find(name)
	if v == nil {
		return nil
	}
	return v.mapping.Load()
}

func notAttached(name string) error {
	return status.Errorf(codes.NotFound, "volume %q is not attached", name)
}

// StartTrim implements enginepb.EngineServer.
func (s *Server) StartTrim(ctx context.Context, req *enginepb.StartTrimRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *mapping.Mapping) error { return m.StartTrim() })
}

// StopTrim implements enginepb.EngineServer.
func (s *Server) StopTrim(ctx context.Context, req *enginepb.StopTrimRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *mapping.Mapping) error { m.StopTrim(); return nil })
}

// Checkpoint implements enginepb.EngineServer.
func (s *Server) Checkpoint(ctx context.Context, req *enginepb.CheckpointRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *mapping.Mapping) error { return m.Checkpoint(ctx, bow.CheckpointOptions{}) })
}

// Commit implements enginepb.EngineServer.
func (s *Server) Commit(ctx context.Context, req *enginepb.CommitRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *mapping.Mapping) error { return m.Commit() })
}

// MarkFree implements enginepb.EngineServer.
func (s *Server) MarkFree(ctx context.Context, req *enginepb.MarkFreeRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *mapping.Mapping) error {
		for _, x := range req.Extents {
			if err := m.MarkFree(x.Offset, x.Length); err != nil {
				return err
			}
		}
		return nil
	})
}

// do calls f with the mapping of an attached volume, which stays attached
// meanwhile.
func (s *Server) do(name string, f func(*mapping.Mapping) error) (*enginepb.Volume, error) {
	v := s.find(name)
	if v == nil {
		return nil, notAttached(name)
	}
	v.life.RLock()
	defer v.life.RUnlock()
	m := v.mapping.Load()
	if m == nil {
		return nil, notAttached(name)
	}
	if err := f(m); err != nil {
		return nil, asStatus(fmt.Errorf("volume %q: %w", name, err))
	}
	return describe(name, m), nil
}

func describe(name string, m *mapping.Mapping) *enginepb.Volume {
	st := m.Stats()
	v := &enginepb.Volume{
		Name:      name,
		Path:      m.Path(),
		Device:    m.Device(),
		State:     enginepb.State(st.State),
		Size:      st.Size,
		BlockSize: int32(st.BlockSize),
		Free:      st.Free,
	}
	if st.State == bow.Checkpoint {
		v.Open = &enginepb.Open{
			Id:          st.ID.String(),
			Opened:      timestamppb.New(st.Opened),
			BackedUp:    st.BackedUp,
			Changed:     st.Changed,
			BackupUsed:  st.BackupUsed,
			Moved:       st.Moved,
			LogSequence: st.LogSequence,
			LogWrites:   st.LogWrites,
			OutOfSpace:  st.OutOfSpace,
			Unsettled:   st.Unsettled,
		}
	}
	return v
}

// asStatus gives an error the code that the protocol has for it.
func asStatus(err error) error {
	code := codes.Internal
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{bow.ErrNoSpace, codes.ResourceExhausted},
		{bow.ErrState, codes.FailedPrecondition},
		{bow.ErrCheckpointOpen, codes.FailedPrecondition},
		{export.ErrBusy, codes.FailedPrecondition},
		{blockdev.ErrInUse, codes.FailedPrecondition},
		{bowlog.ErrCorrupt, codes.DataLoss},
		{bowlog.ErrTorn, codes.DataLoss},
		{bowlog.ErrUnsupported, codes.DataLoss},
		{blockdev.ErrOutOfRange, codes.InvalidArgument},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return status.Error(code, err.Error())
}
