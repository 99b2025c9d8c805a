package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/bowline-csi/bowline/driver/volume"
)

// Goals for a volume of 100 GiB with an ext4 in use, in seconds.
const (
	goalCheckpoint = 2.0
	goalFrozen     = 0.050
	goalCommit     = 0.050
)

// filesystem measures opening and committing checkpoints while a program writes
// files to the ext4 on the mapped device.
func (b *bench) filesystem(ctx context.Context) (err error) {
	const size = 100 << 30
	image := filepath.Join(b.images, "filesystem.img")
	if err := sparseImage(image, size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	m, err := b.attach(ctx, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.detach()) }()
	// The inode tables are 1.6 GiB; to write them says nothing here.
	if _, err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", m.device); err != nil {
		return err
	}
	dir := filepath.Join(b.images, "mount")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := mountDevice(ctx, m.device, dir, "-o", "noinit_itable"); err != nil {
		return err
	}
	defer func() {
		_, uerr := command(context.WithoutCancel(ctx), "umount", dir)
		err = errors.Join(err, uerr)
	}()

	b.progress("checkpoints of an ext4 of %d GiB", size>>30)
	if err := writeFiles(ctx, dir); err != nil {
		return err
	}
	// More rounds than elsewhere: each takes no time, and one alone says little.
	for range 3 * b.Rounds {
		if err := b.checkpointInUse(ctx, m, dir); err != nil {
			return fmt.Errorf("checkpoint of an ext4: %w", err)
		}
	}
	return nil
}

// writeFiles writes some 160 MiB in files of different sizes.
func writeFiles(ctx context.Context, dir string) error {
	data := make([]byte, 64<<10)
	for i := range 100 {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		for j := range 50 {
			if err := ctx.Err(); err != nil {
				return err
			}
			name := filepath.Join(sub, fmt.Sprintf("f%02d", j))
			if err := os.WriteFile(name, data[:1+rand.IntN(len(data))], 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkpointInUse measures one checkpoint and its commit.
func (b *bench) checkpointInUse(ctx context.Context, m *mapped, mountpoint string) error {
	stop := useFilesystem(mountpoint)
	defer stop()
	began := time.Now()
	t, err := volume.Checkpoint(ctx, m, mountpoint)
	if err != nil {
		return err
	}
	total := time.Since(began)
	// Some blocks are to be backed up before the commit.
	if err := pause(ctx, 200*time.Millisecond); err != nil {
		return err
	}
	began = time.Now()
	if err := m.commit(ctx); err != nil {
		return err
	}
	committed := time.Since(began)
	if err := stop(); err != nil {
		return err
	}
	add := func(key, work string, took time.Duration, goal float64) {
		b.results.row(row{key: key, work: work, unit: duration, goal: goal}).add(took.Seconds())
	}
	add("checkpoint", "checkpoint, ext4 of 100 GiB in use", total, goalCheckpoint)
	add("frozen", "of that the file system was frozen", t.Frozen, goalFrozen)
	add("commit", "commit, ext4 of 100 GiB in use", committed, goalCommit)
	return nil
}

// useFilesystem overwrites a file in dir and makes that durable, again and
// again, until the function that it returns is called. That may be called twice.
func useFilesystem(dir string) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = overwriteFile(ctx, filepath.Join(dir, "database"))
	}()
	return func() error {
		cancel()
		<-done
		return err
	}
}

func overwriteFile(ctx context.Context, path string) (err error) {
	const size = 16 * mib
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	page := make([]byte, 8<<10)
	for ctx.Err() == nil {
		if _, err := f.WriteAt(page, rand.Int64N(size/int64(len(page)))*int64(len(page))); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
