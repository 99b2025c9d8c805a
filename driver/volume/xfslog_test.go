package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/filesystem"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
)

// TestStopsAfterRollback stops the machine, as it were, while the same work is done
// again after a rollback: XFS must not take metadata of the first time for newer than
// what its log has of the second.
func TestStopsAfterRollback(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	v, err := n.pool.Create(ctx, pool.CreateOptions{Name: "pvc-1", Size: 320 * mib})
	n.must(err)
	id := v.ID
	o := n.options(id, "a")
	o.FSType = filesystem.XFS
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	n.must(n.Checkpoint(ctx, id, uid1, volume.CheckpointOptions{}))
	work := func(dirs int) {
		for i := range dirs {
			dir := filepath.Join(o.TargetPath, fmt.Sprintf("dir-%d", i))
			n.must(os.Mkdir(dir, 0o755))
			for j := range 50 {
				n.must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("a-file-with-a-long-name-%d", j)), []byte("x"), 0o644))
			}
		}
	}
	for range 3 { // so that its log is far ahead
		work(300)
		n.must(filesystem.Sync(o.StagingPath))
		for i := range 300 {
			n.must(os.RemoveAll(filepath.Join(o.TargetPath, fmt.Sprintf("dir-%d", i))))
		}
	}
	work(300)
	n.must(filesystem.Sync(o.StagingPath))
	n.must(n.Rollback(ctx, id, uid1))
	n.end(id, "a")
	n.eventually("rolled back", func() bool {
		s, err := n.Status(ctx, id)
		return err == nil && s.Open == nil && s.Last.Outcome == volume.RolledBack
	})
	n.must(n.Stage(ctx, o.StageOptions))
	n.must(n.Publish(ctx, o))
	work(150)
	last, err := os.Open(filepath.Join(o.TargetPath, "dir-149"))
	n.must(err)
	n.must(last.Sync())
	n.must(last.Close())

	rest := n.path("rest")
	tool(t, "cp", "--sparse=always", n.status(id).Path, rest)
	device := newLoop(t, rest)
	at := mountXFS(t, device, rest+".mnt")
	for i := range 150 {
		names, err := os.ReadDir(filepath.Join(at, fmt.Sprintf("dir-%d", i)))
		if err != nil || len(names) != 50 {
			t.Errorf("dir-%d has %d names, %v", i, len(names), err)
			break
		}
	}
	n.must(unix.Unmount(at, 0))
	tool(t, "xfs_repair", "-n", device)
	n.end(id, "a")
}
