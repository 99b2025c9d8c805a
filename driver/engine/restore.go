package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/mapping"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// progressInterval is the time between two reports of a phase.
const progressInterval = 200 * time.Millisecond

// Restore implements enginepb.EngineServer.
func (s *Server) Restore(req *enginepb.RestoreRequest, stream grpc.ServerStreamingServer[enginepb.RestoreProgress]) error {
	if req.Name == "" || req.Path == "" {
		return status.Error(codes.InvalidArgument, "restoring needs the name of a volume and the path of its backing device")
	}
	last, err := s.restore(req, stream)
	if err != nil {
		return err
	}
	// Who has the result may attach the volume: nothing is in the way any more.
	return stream.Send(last)
}

// restore does it and returns the last message, which it leaves to be sent.
func (s *Server) restore(req *enginepb.RestoreRequest, stream grpc.ServerStreamingServer[enginepb.RestoreProgress]) (*enginepb.RestoreProgress, error) {
	ctx := stream.Context()
	if v := s.find(req.Name); v != nil && v.takingOver.Load() {
		return nil, v.notAttached(req.Name)
	}
	v := s.enter(req.Name, true)
	defer s.leave(req.Name, v)
	if err := s.forgetGone(req.Name, v); err != nil {
		return nil, asStatus(err)
	}
	if m := v.mapping.Load(); m != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q is attached; detach it first", req.Name)
	}
	v.restoring.Store(true)
	defer v.restoring.Store(false)
	if err := removeLeftover(ctx, req.Name); err != nil {
		return nil, asStatus(err)
	}
	var phase restore.Phase
	var next time.Time
	last := &enginepb.RestoreProgress{}
	r, err := mapping.Restore(ctx, req.Path, func(p restore.Progress) {
		now := time.Now()
		if p.Phase == phase && p.Done < p.Total && now.Before(next) {
			return
		}
		phase, next = p.Phase, now.Add(progressInterval)
		last.Done, last.Total, last.Phase = p.Done, p.Total, enginepb.RestoreProgress_VERIFY
		if p.Phase == restore.PhaseRestore {
			last.Phase = enginepb.RestoreProgress_PUT_BACK
		}
		// Who has gone away has cancelled ctx as well.
		_ = stream.Send(&enginepb.RestoreProgress{Phase: last.Phase, Done: last.Done, Total: last.Total})
	})
	last.Result = &enginepb.RestoreResult{PutBack: r.PutBack}
	switch {
	case errors.Is(err, bowlog.ErrNoLog):
		last.Result.Outcome = enginepb.RestoreResult_NO_CHECKPOINT
	case err != nil:
		return nil, asStatus(fmt.Errorf("volume %q: %w", req.Name, err))
	case r.Phase == bowlog.PhaseOpening:
		last.Result.Outcome = enginepb.RestoreResult_NEVER_OPENED
	case r.Phase == bowlog.PhaseClosing:
		last.Result.Outcome = enginepb.RestoreResult_ENDED_BEFORE
	default:
		last.Result.Outcome = enginepb.RestoreResult_RESTORED
	}
	if r.ID != (bowlog.ID{}) {
		last.Result.Id = r.ID.String()
	}
	return last, nil
}
