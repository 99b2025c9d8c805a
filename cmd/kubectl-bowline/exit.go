package main

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Exit codes. Scripts rely on them.
const (
	exitOK       = 0
	exitFailed   = 1 // something went wrong: the API server cannot be reached or forbids it
	exitUsage    = 2 // a mistake in the command line
	exitState    = 3 // not possible now, or it came to another end: no or another checkpoint open, failed, space ran out
	exitNotFound = 4 // there is no such claim or checkpoint
	exitTimeout  = 5 // it has not happened within --timeout; it may happen still
)

const exitCodesHelp = `Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not possible in this state, or
the checkpoint came to another end than the one waited for; 4 no such claim or
checkpoint; 5 not done within --timeout, and going on.`

type (
	usageError    struct{ error }
	stateError    struct{ error }
	notFoundError struct{ error }
	timeoutError  struct{ error }
)

func (e usageError) Unwrap() error    { return e.error }
func (e stateError) Unwrap() error    { return e.error }
func (e notFoundError) Unwrap() error { return e.error }
func (e timeoutError) Unwrap() error  { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
func statef(format string, args ...any) error { return stateError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var usage usageError
	var state stateError
	var missing notFoundError
	var late timeoutError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &state):
		return exitState
	case errors.As(err, &missing), apierrors.IsNotFound(err):
		return exitNotFound
	case errors.As(err, &late):
		return exitTimeout
	case apierrors.IsInvalid(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return exitState
	}
	return exitFailed
}

// message is the text of err for people.
func message(err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted; what was asked for goes on in the cluster"
	case meta.IsNoMatchError(err):
		return "the cluster knows no VolumeCheckpoint: Bowline is not installed in it, or this is not the cluster you mean (see --context): " + err.Error()
	}
	return err.Error()
}
