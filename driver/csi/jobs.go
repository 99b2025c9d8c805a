package csi

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// jobs runs work that may take longer than its callers wait, one at a time for
// each volume. A caller who gives up does not end it, so that a large copy does
// not begin anew with each try.
type jobs struct {
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool                     // guarded by mu
	running map[string]chan struct{} // closed when it is done; guarded by mu
}

func newJobs() *jobs {
	j := &jobs{running: map[string]chan struct{}{}}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	return j
}

// close ends what runs and waits for it.
func (j *jobs) close() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.cancel()
	j.wg.Wait()
}

// do runs f for the volume id, after another job of that volume if there is one.
// f must be idempotent and know nothing of ctx: it goes on when that ends.
func (j *jobs) do(ctx context.Context, id string, f func(context.Context) error) error {
	pending := status.Errorf(codes.Aborted, "volume %s: an operation is under way; try again", id)
	for {
		if ctx.Err() != nil {
			return pending // nobody waits for what would begin now
		}
		done, err, mine := j.start(id, f)
		if mine {
			select {
			case err := <-err:
				return err
			case <-ctx.Done():
				return pending
			}
		}
		if done == nil {
			return status.Error(codes.Unavailable, "shutting down")
		}
		select {
		case <-done:
		case <-ctx.Done():
			return pending
		}
	}
}

// start begins the job unless one of the same volume runs; then it returns what
// is closed when that is done, or nil after close.
func (j *jobs) start(id string, f func(context.Context) error) (done <-chan struct{}, result <-chan error, mine bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, nil, false
	}
	if running, busy := j.running[id]; busy {
		return running, nil, false
	}
	finished, errs := make(chan struct{}), make(chan error, 1)
	j.running[id] = finished
	j.wg.Go(func() {
		errs <- f(j.ctx)
		j.mu.Lock()
		delete(j.running, id)
		j.mu.Unlock()
		close(finished)
	})
	return nil, errs, true
}
