package daemon_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
)

// postgres is a PostgreSQL server whose data are on a volume.
type postgres struct {
	t           *testing.T
	bin         string // directory of its programs
	data        string
	socket      string // directory
	credentials []string
}

// newPostgres makes an empty database in dir, with checksums.
func newPostgres(t *testing.T, dir string) *postgres {
	t.Helper()
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	u, err := user.Lookup("postgres")
	if len(programs) == 0 || err != nil {
		t.Skip("needs PostgreSQL")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	p := &postgres{
		t: t, bin: filepath.Dir(programs[len(programs)-1]), data: filepath.Join(dir, "data"), socket: t.TempDir(),
		credentials: []string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups"},
	}
	// Directories of tests belong to root alone.
	for _, d := range []string{dir, p.socket} {
		if err := errors.Join(os.Chmod(filepath.Dir(d), 0o755), os.Chown(d, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	p.run("initdb", "--pgdata", p.data, "--data-checksums", "--auth", "trust", "--username", "postgres")
	return p
}

// command is one of PostgreSQL's programs, which root may not run.
func (p *postgres) command(name string, args ...string) *exec.Cmd {
	args = append(append(p.credentials[1:len(p.credentials):len(p.credentials)], filepath.Join(p.bin, name)), args...)
	cmd := exec.Command(p.credentials[0], args...)
	cmd.Dir = p.socket
	return cmd
}

func (p *postgres) run(name string, args ...string) string {
	p.t.Helper()
	// Not a pipe: the server inherits it, and Wait would wait for that.
	f, err := os.CreateTemp(p.t.TempDir(), "out")
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	cmd := p.command(name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, _ := os.ReadFile(f.Name())
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p *postgres) start() {
	p.t.Helper()
	p.run("pg_ctl", "start", "--wait", "--pgdata", p.data, "--log", filepath.Join(p.socket, "log"), "--timeout", "120",
		"--options", fmt.Sprintf("-c listen_addresses= -c unix_socket_directories=%s -c checkpoint_timeout=30s -c max_wal_size=64MB -c shared_buffers=16MB", p.socket))
}

func (p *postgres) stop() {
	p.t.Helper()
	p.run("pg_ctl", "stop", "--wait", "--mode", "fast", "--pgdata", p.data, "--timeout", "120")
}

func (p *postgres) query(sql string) string {
	p.t.Helper()
	return p.run("psql", "--host", p.socket, "--username", "postgres", "--no-align", "--tuples-only", "--command", sql, "postgres")
}

// transactions counts those that were committed, and fails unless they are whole.
func (p *postgres) transactions() int {
	p.t.Helper()
	sums := p.query("select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta),0) from pgbench_history), (select count(*) from pgbench_history)")
	f := strings.Split(sums, "|")
	if len(f) != 5 || f[0] != f[1] || f[0] != f[2] || f[0] != f[3] {
		p.t.Errorf("transactions are not whole: %s", sums)
		return -1
	}
	n, err := strconv.Atoi(f[4])
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

var processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)

// TestKilledUnderPostgres kills the server under a database, with checkpoints, a
// commit and a rollback in between. No transaction fails or is lost.
func TestKilledUnderPostgres(t *testing.T) {
	m := mount(t, "ext4")
	p := newPostgres(t, m.dir)
	p.start()
	running := true
	defer func() {
		if running {
			_ = p.command("pg_ctl", "stop", "--mode", "immediate", "--pgdata", p.data).Run()
		}
	}()
	p.run("pgbench", "--host", p.socket, "--username", "postgres", "--initialize", "--scale", "2", "--quiet", "postgres")

	// load runs transactions while f runs, and returns how many.
	load := func(f func()) int {
		t.Helper()
		bench := p.command("pgbench", "--host", p.socket, "--username", "postgres", "--client", "4", "--no-vacuum", "--time", "100000", "postgres")
		var out bytes.Buffer
		bench.Stdout, bench.Stderr = &out, &out
		if err := bench.Start(); err != nil {
			t.Fatal(err)
		}
		f()
		// It ends by SIGINT without its report; so its clients are asked to go.
		p.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbench'")
		_ = bench.Wait()
		if strings.Contains(out.String(), "ERROR") || strings.Contains(out.String(), "PANIC") {
			t.Errorf("pgbench: %s", out.Bytes())
		}
		got := processed.FindStringSubmatch(out.String())
		if got == nil {
			t.Fatalf("pgbench: %s", out.Bytes())
		}
		n, _ := strconv.Atoi(got[1])
		return n
	}
	// kill kills often, and returns.
	total := 0
	kill := func() {
		for range kills(t) {
			time.Sleep(time.Duration(rand.Int64N(int64(200 * time.Millisecond))))
			m.kill(m.name())
			total++
		}
	}
	acknowledged := load(func() {
		kill()
		m.checkpoint()
		kill()
		if _, err := m.Commit(t.Context(), &enginepb.CommitRequest{Name: m.name()}); err != nil {
			t.Error(err)
		}
		kill()
	})
	// A transaction whose answer was on its way when its client was asked to go
	// is committed, and not counted.
	kept := p.transactions()
	if kept < acknowledged || kept > acknowledged+4 {
		t.Errorf("%d transactions, %d were acknowledged", kept, acknowledged)
	}
	m.checkpoint()
	more := load(kill)
	if n := p.transactions(); n < kept+more || n > kept+more+4 {
		t.Errorf("%d transactions, %d were acknowledged", n, kept+more)
	}
	if _, err := m.RequestRollback(t.Context(), &enginepb.RequestRollbackRequest{Name: m.name()}); err != nil {
		t.Fatal(err)
	}
	p.stop()
	running = false
	dir := m.dir
	m.remove()
	if r, err := engine.Restore(t.Context(), m, m.name(), m.image, nil); err != nil || r.Outcome != enginepb.RestoreResult_RESTORED {
		t.Fatalf("%v, %v", r, err)
	}
	v, err := m.Attach(t.Context(), &enginepb.AttachRequest{Name: m.name(), Path: m.image})
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mount", v.Device, dir)
	m.dir = dir
	if err := os.Remove(filepath.Join(p.data, "postmaster.pid")); err != nil {
		t.Error(err) // the server ran at the checkpoint
	}
	p.start()
	running = true
	if n := p.transactions(); n != kept {
		t.Errorf("%d transactions after the rollback, want %d", n, kept)
	}
	p.stop()
	running = false
	p.run("pg_checksums", "--check", "--pgdata", p.data)
	t.Logf("killed %d times under %d transactions", total, acknowledged+more)
}
