// Package lifetime lets a process that runs controllers end when it is told to.
package lifetime

import (
	"context"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Run runs m until ctx is done or m cannot go on, and returns what m returns. Once
// ctx is done m has patience to end. A manager that waits for an API server that is
// away does not look at ctx; it is not waited for any longer, and the error is that
// of ctx.
func Run(ctx context.Context, m manager.Manager, patience time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- m.Start(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		return ctx.Err()
	}
}
