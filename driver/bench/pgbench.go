package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/bowline-csi/bowline/driver/volume"
)

// goalTransactions is for transactions with a checkpoint open, against those
// without a mapping.
const goalTransactions = 0.85

// pgbench compares the transactions of a PostgreSQL on an ext4 on the raw device
// with those of another one on a mapped device: on which a checkpoint has just been
// opened, which is the worst moment, and after that, while it is still open. Both run
// all the time; only one has something to do.
func (b *bench) pgbench(ctx context.Context) (err error) {
	pg, err := findPostgres()
	if err != nil {
		b.skip("pgbench", err.Error())
		return nil
	}
	var closers closers
	defer func() { err = errors.Join(err, closers.close()) }()
	b.progress("two databases with pgbench, %d times %s each", b.Rounds, b.transfers)
	image := func(name string) (string, error) {
		path := filepath.Join(b.images, name+".img")
		closers.add(func() error { return os.RemoveAll(path) })
		return path, writeImage(path, b.database, ctx.Err)
	}

	path, err := image("pgbench-raw")
	if err != nil {
		return err
	}
	loop, err := rawLoop(path)
	if err != nil {
		return err
	}
	closers.add(loop.Close)
	raw, err := b.startDatabase(ctx, pg, "raw", loop.Name())
	if err != nil {
		return err
	}
	closers.add(raw.remove)

	if path, err = image("pgbench-mapped"); err != nil {
		return err
	}
	m, err := b.attach(ctx, path)
	if err != nil {
		return err
	}
	closers.add(m.detach)
	mapped, err := b.startDatabase(ctx, pg, "mapped", m.device)
	if err != nil {
		return err
	}
	closers.add(mapped.remove)

	for range b.Rounds {
		if err := b.transactions(ctx, raw, mapped, m); err != nil {
			return fmt.Errorf("pgbench: %w", err)
		}
	}
	return nil
}

// transactions does one round.
func (b *bench) transactions(ctx context.Context, raw, mapped *database, m *mapped) error {
	// What one of them has not written yet is not to be part of the other's run.
	settle := func() error { return errors.Join(raw.settle(ctx), mapped.settle(ctx)) }
	if err := settle(); err != nil {
		return err
	}
	without, err := raw.transactions(ctx, b.transfers)
	if err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	if _, err := volume.Checkpoint(ctx, m, mapped.mountpoint()); err != nil {
		return err
	}
	with, err := mapped.transactions(ctx, b.transfers)
	if err != nil {
		return err
	}
	v, err := m.status(ctx)
	if err != nil {
		return err
	}
	if v.Open == nil || v.Open.BackedUp == 0 || v.Open.OutOfSpace != 0 {
		return fmt.Errorf("the checkpoint is %v: this is not the work that was to be measured", v.Open)
	}
	b.results.row(row{
		key: "pgbench", work: "state 1, just begun: pgbench on ext4", unit: operations, against: "raw", goal: goalTransactions,
	}).compare(without, with)
	if err := settle(); err != nil {
		return err
	}
	later, err := mapped.transactions(ctx, b.transfers)
	if err != nil {
		return err
	}
	b.results.row(row{
		key: "pgbench-later", work: "state 1, after that: pgbench on ext4", unit: operations, against: "raw", goal: goalTransactions,
	}).compare(without, later)
	return m.commit(ctx)
}

var tps = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// settle makes the server write all that it has changed.
func (d *database) settle(ctx context.Context) error {
	_, err := d.client(ctx, "psql", "--no-psqlrc", "--quiet", "--command", "CHECKPOINT", "postgres")
	return err
}

// transactions runs pgbench for so long, in whole seconds, and returns how many
// transactions it did in a second.
func (d *database) transactions(ctx context.Context, length time.Duration) (float64, error) {
	seconds := strconv.Itoa(int(length / time.Second))
	out, err := d.client(ctx, "pgbench", "--client", "4", "--time", seconds, "postgres")
	if err != nil {
		return 0, err
	}
	// Of two figures, the last one is without the time for connecting.
	found := tps.FindAllSubmatch(out, -1)
	if len(found) == 0 {
		return 0, fmt.Errorf("pgbench says nothing of its rate: %s", out)
	}
	return strconv.ParseFloat(string(found[len(found)-1][1]), 64)
}
