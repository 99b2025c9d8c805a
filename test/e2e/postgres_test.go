//go:build cluster

package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// A database is a PostgreSQL of one pod with a volume of Bowline's.
type database struct {
	*tenant
	set *appsv1.StatefulSet
}

const databasePod = "postgres-0"

// newDatabase starts PostgreSQL with the tables of pgbench and two of its own.
func newDatabase(n *tenant) database {
	n.Helper()
	group, graceful := int64(1000), int64(30)
	// PostgreSQL refuses a directory that others than its user may write to.
	once := corev1.FSGroupChangeOnRootMismatch
	spec := podSpec("", "")
	spec.TerminationGracePeriodSeconds = &graceful
	spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, FSGroupChangePolicy: &once}
	c := &spec.Containers[0]
	c.Image, c.Command, c.WorkingDir = postgres, nil, ""
	c.Args = []string{"-c", "shared_buffers=32MB", "-c", "max_wal_size=128MB", "-c", "min_wal_size=32MB"}
	c.VolumeMounts[0].MountPath = "/var/lib/postgresql/data"
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"pg_isready", "-q"}}},
		PeriodSeconds: 1,
	}
	d := database{n, n.newStatefulSet("postgres", 1, spec)}
	d.exec(databasePod, "pgbench -i -q -s 5 2>&1")
	d.sql(`CREATE TABLE documents AS SELECT i AS id, repeat(md5(i::text), 20) AS body FROM generate_series(1, 20000) i;
		CREATE TABLE letters AS SELECT * FROM documents WHERE id <= 5000;
		CHECKPOINT`)
	return d
}

func (d database) sql(statements string) string {
	d.Helper()
	return d.exec(databasePod, "psql -XAtq -v ON_ERROR_STOP=1 <<'SQL'\n"+statements+"\nSQL")
}

// load starts pgbench beside the server and waits until it has done something.
func (d database) load() {
	d.Helper()
	before := d.transfers()
	// The server is the first process of the container and takes the end of an
	// orphan for that of one of its own, so the load keeps its parent.
	go func() {
		_, _ = d.tryExec(databasePod, "pgbench -n -c 4 -R 200 -T 600 >/tmp/pgbench 2>&1 & echo $! >/tmp/pgbench.pid; wait")
	}()
	d.until(phaseLimit, func() error {
		if now := d.transfers(); now < before+50 {
			return fmt.Errorf("%d transfers, before %d: %s", now, before, d.exec(databasePod, "tail -n 3 /tmp/pgbench"))
		}
		return nil
	})
}

func (d database) stopLoad() {
	d.Helper()
	d.exec(databasePod, "pid=$(cat /tmp/pgbench.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done")
}

// transfers returns how many pgbench has made.
func (d database) transfers() int {
	d.Helper()
	count, err := strconv.Atoi(d.sql("SELECT count(*) FROM pgbench_history"))
	if err != nil {
		d.Fatal(err)
	}
	return count
}

// sums returns a line for each table: name, number of rows and the sum of a hash
// of every row.
func (d database) sums(except ...string) string {
	d.Helper()
	var lines []string
	for _, table := range strings.Fields(d.sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1")) {
		if !slices.Contains(except, table) {
			lines = append(lines, d.sql(fmt.Sprintf("SELECT '%[1]s', count(*), sum(hashtextextended(t::text, 0)::numeric) FROM %[1]s t", table)))
		}
	}
	return strings.Join(lines, "\n")
}

// The tables that transfers change.
var loaded = []string{"pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers"}

// balanced checks what holds at every instant: each transfer adds the same amount
// to an account, a teller and a branch, and notes it.
func (d database) balanced() {
	d.Helper()
	balances := strings.Split(d.sql(`SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)`), "|")
	if len(slices.Compact(balances)) != 1 {
		d.Errorf("accounts, tellers, branches and history do not agree: %v", balances)
	}
}

// upgrade rewrites tables and drops one.
func (d database) upgrade() {
	d.Helper()
	d.sql(`DROP TABLE letters;
		ALTER TABLE documents ADD version int;
		UPDATE documents SET body = reverse(body), version = 2;
		CREATE TABLE reports AS SELECT aid, md5(aid::text) AS report FROM pgbench_accounts WHERE aid <= 50000`)
}

// destroy deletes the files of the database under the server that runs.
func (d database) destroy() {
	d.Helper()
	d.exec(databasePod, "cd $PGDATA && rm -rf base pg_wal pg_xact && sync -f .")
}

// pod returns the pod of the database when it is ready, and checks that claim and
// volume are those of before.
func (d database) pod() *corev1.Pod {
	d.Helper()
	return d.podOf(d.set, 0)
}

func (d database) claim() *corev1.PersistentVolumeClaim {
	d.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "data-" + databasePod}}
	d.read(c)
	return c
}

// TestPostgres: the story that Bowline is for, in all its endings.
func TestPostgres(t *testing.T) {
	t.Parallel()
	d := newDatabase(newTenant(t))
	before := d.claim()

	// Under load, a failed upgrade, and back by scaling down.
	d.load()
	still := d.sums(loaded...)
	least := d.transfers()
	began := time.Now()
	c := d.newCheckpoint("before-upgrade", before.Name)
	t.Logf("checkpoint of a database under load after %v, frozen for %v", time.Since(began).Round(10*time.Millisecond), c.Status.FreezeDuration)
	most := d.transfers()
	d.upgrade()
	d.destroy()
	d.desire(c, v1alpha1.RolledBack)
	d.phase(c, v1alpha1.PhaseRollbackPending, phaseLimit)
	d.scale(d.set, 0)
	d.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	d.scale(d.set, 1)
	d.pod()
	equal(d.tenant, "the tables that had no load", d.sums(loaded...), still)
	d.balanced()
	if got := d.transfers(); got < least || got > most {
		t.Errorf("%d transfers are there, at the checkpoint there were %d to %d", got, least, most)
	}

	// The rows to the last, and back by eviction.
	full := d.sums()
	c = d.newCheckpoint("second", before.Name, evict)
	pod := d.pod()
	d.load()
	d.upgrade()
	d.destroy()
	began = time.Now()
	d.desire(c, v1alpha1.RolledBack)
	d.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	after := d.pod()
	t.Logf("the database was back %v after the rollback was asked for", time.Since(began).Round(100*time.Millisecond))
	if after.UID == pod.UID {
		t.Error("the pod was not evicted")
	}
	equal(d.tenant, "all tables", d.sums(), full)

	// An upgrade that works, and another checkpoint on the same mount.
	c = d.newCheckpoint("third", before.Name)
	d.load()
	d.upgrade()
	began = time.Now()
	d.desire(c, v1alpha1.Committed)
	d.phase(c, v1alpha1.PhaseCommitted, phaseLimit)
	t.Logf("committed after %v", time.Since(began).Round(10*time.Millisecond))
	d.stopLoad()
	d.balanced()
	full = d.sums()
	c = d.newCheckpoint("fourth", before.Name, evict)
	d.load()
	d.destroy()
	d.desire(c, v1alpha1.RolledBack)
	d.phase(c, v1alpha1.PhaseRolledBack, rollbackLimit)
	d.pod()
	equal(d.tenant, "all tables of the new version", d.sums(), full)

	now := d.claim()
	equal(d.tenant, "the claim", now.UID, before.UID)
	equal(d.tenant, "the volume", now.Spec.VolumeName, before.Spec.VolumeName)
}
