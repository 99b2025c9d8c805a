package engine

import (
	"context"
	"errors"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/export"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func describe(name string, m *attachment) *enginepb.Volume {
	st := m.Stats()
	v := &enginepb.Volume{
		Name:      name,
		Path:      m.Path(),
		Device:    m.Device(),
		State:     enginepb.State(st.State),
		Size:      st.Size,
		BlockSize: int32(st.BlockSize),
		Free:      st.Free,

		Since:           timestamppb.New(m.since),
		SurvivesRestart: m.survives,
		IoUring:         m.IOUring(),
	}
	if f := m.Failures(); f.Count > 0 {
		v.Failures = &enginepb.Failures{Count: f.Count, Last: f.Last.Error(), At: timestamppb.New(f.At)}
	}
	if st.Ended.ID != (bowlog.ID{}) {
		v.Ended = &enginepb.Ended{Id: st.Ended.ID.String(), At: timestamppb.New(st.Ended.At)}
		if st.Ended.Reason == bow.OutOfSpace {
			v.Ended.Reason = enginepb.Ended_OUT_OF_SPACE
		}
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

			RollbackRequested: st.RollbackRequested,
			CommitWhenFull:    st.CommitWhenFull,
			Stale:             st.Stale,
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
		{restore.ErrDamaged, codes.DataLoss},
		{export.ErrUnsupported, codes.Unimplemented},
		{export.ErrInvalid, codes.InvalidArgument},
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
