package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// postgres is the PostgreSQL of this machine.
type postgres struct {
	bin        string // directory of its programs
	credential *syscall.Credential
	uid, gid   int // root may not run them
}

// findPostgres returns the newest PostgreSQL, or an error that says what is
// missing.
func findPostgres() (*postgres, error) {
	// Debian has a directory for each version, and others the PATH.
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	slices.SortFunc(found, func(a, b string) int { return postgresVersion(a) - postgresVersion(b) })
	if path, err := exec.LookPath("pgbench"); err == nil {
		found = append([]string{path}, found...)
	}
	for _, pgbench := range slices.Backward(found) {
		bin := filepath.Dir(pgbench)
		if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
			continue // the client alone
		}
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, fmt.Errorf("the user that runs PostgreSQL: %w", err)
		}
		uid, uerr := strconv.Atoi(u.Uid)
		gid, gerr := strconv.Atoi(u.Gid)
		if err := errors.Join(uerr, gerr); err != nil {
			return nil, err
		}
		return &postgres{
			bin: bin, uid: uid, gid: gid,
			credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		}, nil
	}
	return nil, errors.New("PostgreSQL with pgbench is not installed")
}

// postgresVersion is that of a program in /usr/lib/postgresql/VERSION/bin.
func postgresVersion(program string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(program))))
	return n
}

// database is a server of PostgreSQL with its data on a file system of its own.
type database struct {
	*postgres
	name   string
	dir    string // for its socket and its log; its file system is mounted below
	server *exec.Cmd
	ended  chan error // gets how the server ended
}

func (d *database) mountpoint() string { return filepath.Join(d.dir, "mount") }
func (d *database) data() string       { return filepath.Join(d.mountpoint(), "data") }

// command is one of PostgreSQL's programs.
func (d *database) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := newCommand(ctx, filepath.Join(d.bin, name), args...)
	cmd.Dir = d.dir
	cmd.SysProcAttr.Credential = d.credential
	// Variables of PostgreSQL would lead it elsewhere.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") })
	return cmd
}

// client runs a program that talks to the server.
func (d *database) client(ctx context.Context, name string, args ...string) ([]byte, error) {
	args = append([]string{"--host", d.dir, "--username", "postgres"}, args...)
	return output(d.command(ctx, name, args...))
}

// startDatabase makes an ext4 on a device, mounts it, and starts a server with
// new tables of pgbench on it.
func (b *bench) startDatabase(ctx context.Context, pg *postgres, name, device string) (_ *database, err error) {
	// Not below the images: the user of PostgreSQL may have no way there.
	dir, err := os.MkdirTemp("", "bowline-bench-")
	if err != nil {
		return nil, err
	}
	d := &database{postgres: pg, name: name, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.remove())
		}
	}()
	if err := errors.Join(os.Chown(dir, pg.uid, pg.gid), os.Mkdir(d.mountpoint(), 0o755)); err != nil {
		return nil, err
	}
	if _, err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", device); err != nil {
		return nil, err
	}
	if err := mountDevice(ctx, device, d.mountpoint()); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Mkdir(d.data(), 0o700), os.Chown(d.data(), pg.uid, pg.gid)); err != nil {
		return nil, err
	}
	initdb := d.command(ctx, "initdb", "--pgdata", d.data(), "--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if _, err := output(initdb); err != nil {
		return nil, err
	}
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	if _, err := d.client(ctx, "pgbench", "--initialize", "--quiet", "--scale", strconv.Itoa(b.scale), "postgres"); err != nil {
		return nil, err
	}
	return d, nil
}

// start starts the server and waits until it answers.
func (d *database) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	// It ends with stop, not with ctx. The tables are vacuumed before each run;
	// to do it in the middle of one, or while the other server is measured, would
	// say nothing.
	cmd := d.command(context.WithoutCancel(ctx), "postgres", "-D", d.data(),
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+d.dir,
		"-c", "shared_buffers=64MB", "-c", "max_wal_size=256MB", "-c", "autovacuum=off")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = unix.SIGINT
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	d.server, d.ended = cmd, make(chan error, 1)
	go func() { d.ended <- cmd.Wait() }()
	for {
		if _, err := d.client(ctx, "pg_isready", "--quiet"); err == nil {
			return nil
		}
		select {
		case err := <-d.ended:
			d.ended <- err
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("PostgreSQL ended: %w: %s", err, bytes.TrimSpace(said))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends the server, in order if that is possible.
func (d *database) stop() error {
	if d.server == nil {
		return nil
	}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGKILL} {
		if err := d.server.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("ending PostgreSQL: %w", err)
		}
		select {
		case err := <-d.ended:
			d.server = nil
			if err != nil {
				return fmt.Errorf("PostgreSQL ended: %w", err)
			}
			return nil
		case <-time.After(20 * time.Second):
		}
	}
	return errors.New("PostgreSQL does not end")
}

// remove stops the server and takes away what startDatabase made.
func (d *database) remove() error {
	err := d.stop()
	if isMounted(d.mountpoint()) {
		_, uerr := command(context.Background(), "umount", d.mountpoint())
		err = errors.Join(err, uerr)
	}
	if isMounted(d.mountpoint()) {
		return err // the rest would delete from the file system
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// isMounted tells whether something is mounted at dir.
func isMounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}
