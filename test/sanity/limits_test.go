package sanity_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestManyVolumes has the volumes of a full node created, used and removed at
// once, twice. Loop devices, mounts and volumes must not be left, and files and
// goroutines not grow from round to round.
func TestManyVolumes(t *testing.T) {
	count := 100
	if testing.Short() {
		count = 16
	}
	n := startNode(t)
	c := n.client(t)
	round := func(round int) {
		began := time.Now()
		var wg sync.WaitGroup
		for i := range count {
			v := n.newClaim(t, c, fmt.Sprintf("many-%d-%d", round, i), "ext4")
			wg.Go(func() {
				if err := v.live(t.Context()); err != nil {
					t.Errorf("%s: %v", v.scope, err)
				}
			})
		}
		wg.Wait()
		t.Logf("%d volumes created, staged, used, unstaged and deleted at once in %v", count, time.Since(began).Round(time.Millisecond))
		if loops := n.loops(t); len(loops) > 0 {
			t.Errorf("round %d leaves %d loop devices: %v", round, len(loops), loops)
		}
		if mounts := n.mounts(t); len(mounts) > 0 {
			t.Errorf("round %d leaves %d mounts: %v", round, len(mounts), mounts)
		}
	}
	round(0)
	before := measure(t)
	round(1)
	var after resources
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		after = measure(t)
		if after.files <= before.files && after.goroutines <= before.goroutines {
			return
		}
	}
	t.Errorf("%+v after one round, %+v after another", before, after)
}

// live is the life of a volume.
func (v *claim) live(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"create", func(ctx context.Context) error { return v.create(ctx, 16<<20, false, "") }},
		{"stage", v.stage},
		{"publish", func(ctx context.Context) error { return v.publish(ctx, v.target, false) }},
		{"write", func(context.Context) error { return os.WriteFile(filepath.Join(v.target, "f"), []byte(v.id), 0o600) }},
		{"unpublish", func(ctx context.Context) error { return v.unpublish(ctx, v.target) }},
		{"unstage", v.unstage},
		{"delete", v.remove},
	} {
		if err := again(ctx, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// TestStagingIsQuick stages a volume of 10 GiB that has a file system already.
func TestStagingIsQuick(t *testing.T) {
	const most = 500 * time.Millisecond
	n := startNode(t)
	ctx := t.Context()
	for _, fsType := range []string{"ext4", "xfs"} {
		v := n.newClaim(t, n.client(t), "large-"+fsType, fsType)
		must(t, v.create(ctx, 10<<30, true, ""))
		must(t, v.stage(ctx))
		// The best of a few: the machine may have other things to do.
		best := time.Hour
		for range 5 {
			must(t, v.unstage(ctx))
			began := time.Now()
			must(t, v.stage(ctx))
			best = min(best, time.Since(began))
		}
		t.Logf("%s: %v", fsType, best)
		if best > most {
			t.Errorf("%s: staging takes %v, more than %v", fsType, best, most)
		}
		must(t, v.unstage(ctx))
		must(t, v.remove(ctx))
	}
}
