package volume

import (
	"context"
	"time"

	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// refillInterval is how often it is looked whether an engine knows less of the free
// space of a volume than the file system could tell.
const refillInterval = time.Second

// refill tells engines that have carried on with an open checkpoint, because their
// predecessor was killed, what is free. Until then backups have only a reserve, and
// when that is used up writes fail.
func (m *Manager) refill() {
	told := map[string]time.Time{} // by mapping: when the engine that was told began to serve it
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
			since := v.Since.AsTime()
			if v.Open.GetStale() == 0 || told[v.Name].Equal(since) {
				continue
			}
			mounts, err := filesystem.Mounts(v.Device)
			if err != nil || len(mounts) == 0 {
				continue // mounting it does the same
			}
			ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
			err = FindFree(ctx, m.volumeOf(v, "", CheckpointOptions{}), mounts[0].Path)
			cancel()
			told[v.Name] = since
			if err != nil {
				m.log.Warn("free space is not known anew", "mapping", v.Name, "error", err)
				continue
			}
			m.log.Info("free space is known again", "mapping", v.Name)
		}
	}
}
