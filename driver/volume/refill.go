package volume

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
)

// refillInterval is how often it is looked whether an engine knows less of the free
// space of a volume than the file system could tell.
const refillInterval = time.Second

// refill tells engines that have carried on with an open checkpoint, because their
// predecessor was killed, what is free. Until then backups have only a reserve, and
// when that is used up writes fail.
func (m *Manager) refill() {
	told := map[string]time.Time{}   // by mapping: when the engine that was told began to serve it
	failed := map[string]time.Time{} // by mapping
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-time.After(refillInterval):
		}
		resp, err := m.engine.List(m.ctx, &enginepb.ListRequest{})
		if err != nil {
			continue // whoever needs the engine says so
		}
		for _, v := range resp.Volumes {
			id, err := url.PathUnescape(v.Name)
			if err != nil || v.Open.GetStale() == 0 || told[v.Name].Equal(v.Since.AsTime()) || time.Since(failed[v.Name]) < retryInterval {
				continue
			}
			since, err := m.tellFree(id)
			switch {
			case errors.Is(err, ErrBusy):
			case err != nil:
				m.log.Warn("free space is not known anew", "volume", id, "error", err)
				failed[v.Name] = time.Now()
			default:
				m.log.Info("free space is known again", "volume", id)
				told[v.Name] = since
			}
		}
	}
}

// tellFree tells the engine what is free on a volume, and returns since when it
// serves that. The error wraps ErrBusy if it is to be tried again soon.
//
// It is an operation on the volume like any other, and not tried while another one
// is under way: what a file system has reported must not reach the engine when the
// checkpoint has ended and the next one is being opened, or when another mapping of
// the volume has taken the place of this one. It would be believed for what was
// written in between, and backups would go there.
func (m *Manager) tellFree(id string) (since time.Time, err error) {
	s := m.slot(id)
	select {
	case s.sem <- struct{}{}:
	default:
		return since, ErrBusy
	}
	defer s.leave()
	ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
	defer cancel()
	v, err := m.attached(ctx, id)
	if err != nil || v == nil || v.Open.GetStale() == 0 || s.frozen != nil {
		return since, ErrBusy
	}
	at, err := mountOf(id, v)
	if err != nil || at == "" {
		return since, ErrBusy // mounting it does the same
	}
	return v.Since.AsTime(), FindFree(ctx, m.volumeOf(v, "", CheckpointOptions{}), at)
}
