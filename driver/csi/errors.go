package csi

import (
	"context"
	"errors"

	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codeOf is the code of the specification for each kind of error. The first that
// fits counts.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{volume.ErrBusy, codes.Aborted},
	// Aborted tells the kubelet to come back soon without tearing down.
	{volume.ErrRollbackPending, codes.Aborted},
	{volume.ErrEngineDown, codes.Unavailable},
	{volume.ErrDamaged, codes.DataLoss},
	{volume.ErrIncompatible, codes.AlreadyExists},
	{volume.ErrUnsupported, codes.FailedPrecondition},
	{volume.ErrPublished, codes.FailedPrecondition},
	{volume.ErrInUse, codes.FailedPrecondition},
	{volume.ErrCheckpointOpen, codes.FailedPrecondition},
	{volume.ErrNotStaged, codes.FailedPrecondition},
	{volume.ErrNoSpace, codes.ResourceExhausted},
	{volume.ErrInvalid, codes.InvalidArgument},
	{pool.ErrUnavailable, codes.Unavailable},
	{pool.ErrFull, codes.ResourceExhausted},
	{pool.ErrExists, codes.AlreadyExists},
	{pool.ErrInvalid, codes.InvalidArgument},
	{pool.ErrInUse, codes.FailedPrecondition},
	{pool.ErrDamaged, codes.DataLoss},
	{pool.ErrNotFound, codes.NotFound},
	{pool.ErrForeign, codes.NotFound}, // not on this node
	{volume.ErrMissing, codes.NotFound},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// asStatus gives an error the code of the specification.
func asStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, c := range codeOf {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Err() // it is one of ours already
	}
	return status.Error(codes.Internal, err.Error())
}

// invalid is an error in a field of a request.
func invalid(format string, a ...any) error {
	return status.Errorf(codes.InvalidArgument, format, a...)
}
