package node

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
)

// fakeVolumes are volumes that do what a Manager's would, in memory. They outlive
// the reconcilers of a test, as real ones do.
type fakeVolumes struct {
	mu      sync.Mutex
	volumes map[string]*fakeVolume // guarded by mu
	watches []func(string)         // guarded by mu
	calls   []string               // guarded by mu
}

type fakeVolume struct {
	facts  Facts
	frozen string // ID of the checkpoint
	fail   map[string]error
}

func newFakeVolumes(ids ...string) *fakeVolumes {
	f := &fakeVolumes{volumes: map[string]*fakeVolume{}}
	for _, id := range ids {
		f.volumes[id] = &fakeVolume{facts: Facts{Staged: true}, fail: map[string]error{}}
	}
	return f
}

// change changes a volume and tells of it, as something on the node would.
func (f *fakeVolumes) change(volume string, change func(*fakeVolume)) {
	f.mu.Lock()
	change(f.volumes[volume])
	watches := f.watches
	f.mu.Unlock()
	for _, w := range watches {
		w(volume)
	}
}

// called returns how often what was called, of a volume.
func (f *fakeVolumes) called(what, volume string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == what+" "+volume {
			n++
		}
	}
	return n
}

func (f *fakeVolumes) do(what, volume string, do func(*fakeVolume) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what+" "+volume)
	v := f.volumes[volume]
	if v == nil {
		return ErrNotFound
	}
	if err := v.fail[what]; err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return do(v)
}

func (f *fakeVolumes) Watch(changed func(string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches = append(f.watches, changed)
}

func (f *fakeVolumes) Facts(_ context.Context, volume string) (facts Facts, err error) {
	err = f.do("facts", volume, func(v *fakeVolume) error {
		facts = v.facts
		if v.facts.Open != nil {
			open := *v.facts.Open
			facts.Open = &open
		}
		if v.facts.Rollback != nil {
			rollback := *v.facts.Rollback
			facts.Rollback = &rollback
		}
		return nil
	})
	return facts, err
}

func (f *fakeVolumes) open(v *fakeVolume, id string) error {
	if v.facts.Open != nil && v.facts.Open.ID != id {
		return ErrCheckpointOpen
	}
	if v.facts.Open == nil {
		v.facts.Open = &Checkpoint{ID: id, State: Open, Opened: time.Now(), Frozen: 12 * time.Millisecond, Measured: true, Free: 10 * gib}
	}
	return nil
}

func (f *fakeVolumes) Checkpoint(_ context.Context, volume, id string, _ Options) error {
	return f.do("checkpoint", volume, func(v *fakeVolume) error { return f.open(v, id) })
}

func (f *fakeVolumes) Prepare(_ context.Context, volume, id string) error {
	return f.do("prepare", volume, func(*fakeVolume) error { return nil })
}

func (f *fakeVolumes) Freeze(_ context.Context, volume, id string, _ time.Duration) error {
	return f.do("freeze", volume, func(v *fakeVolume) error {
		v.frozen = id
		return nil
	})
}

func (f *fakeVolumes) CheckpointFrozen(_ context.Context, volume, id string, _ Options) error {
	return f.do("switch", volume, func(v *fakeVolume) error {
		if v.frozen != id {
			return ErrNotFrozen
		}
		v.frozen = ""
		return f.open(v, id)
	})
}

func (f *fakeVolumes) Thaw(_ context.Context, volume string) error {
	return f.do("thaw", volume, func(v *fakeVolume) error {
		v.frozen = ""
		return nil
	})
}

func (f *fakeVolumes) Commit(_ context.Context, volume, id string) error {
	return f.do("commit", volume, func(v *fakeVolume) error {
		v.end(Committed)
		return nil
	})
}

func (f *fakeVolumes) Rollback(_ context.Context, volume, id string) error {
	return f.do("rollback", volume, func(v *fakeVolume) error {
		v.facts.Open.State = RollbackRequested
		v.facts.Rollback = &Rollback{WaitingFor: v.facts.Publishers}
		return nil
	})
}

func (v *fakeVolume) end(o Outcome) {
	v.facts.Last = &Ended{ID: v.facts.Open.ID, Outcome: o, At: time.Now()}
	v.facts.Open, v.facts.Rollback = nil, nil
}

// restore is how far a rollback of v has come; total says that it is done.
func (v *fakeVolume) restore(done, total int64) {
	if done == total {
		v.end(RolledBack)
		return
	}
	v.facts.Publishers = nil
	v.facts.Open.State = RollingBack
	v.facts.Rollback = &Rollback{Done: done, Total: total}
}

// failing makes calls of a volume fail.
func (v *fakeVolume) failing(fail map[string]error) { v.fail = maps.Clone(fail) }
