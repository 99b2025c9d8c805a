package main

import (
	"context"
	"errors"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes. Scripts rely on them.
const (
	exitOK      = 0
	exitFailed  = 1 // something went wrong, an I/O error for instance
	exitUsage   = 2 // a mistake in the command line
	exitState   = 3 // not possible now: not attached, in use, no free space, no or another checkpoint
	exitNoLog   = 4 // there is no checkpoint on the device
	exitDamaged = 5 // the log or a copy is damaged, or of a format that is not known
)

const exitCodesHelp = `Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not possible in this state
(not attached, in use, a checkpoint open or none, no free space); 4 no checkpoint
on the device; 5 the checkpoint is damaged or of an unknown format.`

func exitCode(err error) int {
	var usage usageError
	var state stateError
	var child *childError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &state):
		return exitState
	case errors.As(err, &child):
		return child.exitCode()
	case isAny(err, bowlog.ErrNoLog):
		return exitNoLog
	case isAny(err, bowlog.ErrCorrupt, bowlog.ErrTorn, bowlog.ErrUnsupported, restore.ErrDamaged):
		return exitDamaged
	case isAny(err, errNotAttached, blockdev.ErrInUse, bow.ErrState, bow.ErrNoSpace, bow.ErrCheckpointOpen, restore.ErrBlockSize, restore.ErrHalfRestored):
		return exitState
	}
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.ResourceExhausted, codes.NotFound, codes.AlreadyExists:
		return exitState
	case codes.DataLoss:
		return exitDamaged
	case codes.InvalidArgument:
		return exitUsage
	}
	return exitFailed
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// message is the text of err for people: without the frame that gRPC puts around
// what the engine said.
func message(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted: " + err.Error()
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Message()
	}
	return err.Error()
}
