package engine

import (
	"context"
	"fmt"

	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// StartTrim implements enginepb.EngineServer.
func (s *Server) StartTrim(ctx context.Context, req *enginepb.StartTrimRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error { return m.StartTrim() })
}

// StopTrim implements enginepb.EngineServer.
func (s *Server) StopTrim(ctx context.Context, req *enginepb.StopTrimRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error { m.StopTrim(); return nil })
}

// Checkpoint implements enginepb.EngineServer.
func (s *Server) Checkpoint(ctx context.Context, req *enginepb.CheckpointRequest) (*enginepb.Volume, error) {
	o := bow.CheckpointOptions{CommitWhenFull: req.CommitWhenFull}
	if req.Id != "" {
		id, err := bowlog.ParseID(req.Id)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "id of the checkpoint: %v", err)
		}
		o.ID = id
	}
	return s.do(req.Name, func(m *attachment) error { return m.Checkpoint(ctx, o) })
}

// Commit implements enginepb.EngineServer.
func (s *Server) Commit(ctx context.Context, req *enginepb.CommitRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error { return m.Commit() })
}

// RequestRollback implements enginepb.EngineServer.
func (s *Server) RequestRollback(ctx context.Context, req *enginepb.RequestRollbackRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error { return m.RequestRollback() })
}

// Grow implements enginepb.EngineServer.
func (s *Server) Grow(ctx context.Context, req *enginepb.GrowRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error { return m.Grow() })
}

// MarkFree implements enginepb.EngineServer.
func (s *Server) MarkFree(ctx context.Context, req *enginepb.MarkFreeRequest) (*enginepb.Volume, error) {
	return s.do(req.Name, func(m *attachment) error {
		for _, x := range req.Extents {
			// Who has given up may begin another search, of which this would not be.
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := m.MarkFree(x.Offset, x.Length); err != nil {
				return err
			}
		}
		return nil
	})
}

// do calls f with the mapping of an attached volume, which stays attached
// meanwhile.
func (s *Server) do(name string, f func(*attachment) error) (*enginepb.Volume, error) {
	v := s.find(name)
	if v == nil {
		return nil, notAttached(name)
	}
	if v.restoring.Load() || v.takingOver.Load() {
		return nil, v.notAttached(name)
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
