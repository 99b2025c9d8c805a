#!/usr/bin/env bash
# A PostgreSQL in a real Kubernetes on this machine is checkpointed, an upgrade
# wrecks it, it is rolled back; then an upgrade goes well and is committed. Ends
# with "every check held" and exit code 0, or else says what did not hold. The
# cluster stays, to look around.
#
# usage: hack/demo.sh        (as root; `make demo` builds first)
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/.."

# --- telling ------------------------------------------------------------------

chapter() { printf '\n== %s  [%s s]\n' "$*" "$SECONDS"; }
say() { printf '   %s\n' "$*"; }
indent() { sed 's/^/     /'; }
run() { # shows a command, runs it, and shows what it says
	printf '   $ %s\n' "$*"
	"$@" 2>&1 | indent
}
held() { printf '   ok: %s\n' "$*"; }
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}
same() { # same WHAT GOT WANT
	[ "$2" = "$3" ] || die "$1: not the same
was: $3
is:  $2"
	held "$1"
}
quietly() { # quietly COMMAND...: shows what it says only if it fails
	"$@" >"$log" 2>&1 || die "$* failed:
$(tail -n 40 "$log")"
}
eventually() { # eventually SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || die "waited too long: $what"
		sleep 1
	done
}

log=$(mktemp -t bowline-demo.XXXXXX)
failed() {
	local code=$?
	trap - EXIT
	if [ "$code" != 0 ] && [ -n "${KUBECONFIG:-}" ]; then
		{
			echo "--- what the cluster says"
			kubectl get volumecheckpoints,pods,persistentvolumeclaims -A -o wide
			kubectl -n "$namespace" get events --sort-by=.lastTimestamp | tail -n 20
			kubectl -n bowline-system logs --tail=20 --prefix --all-containers -l app.kubernetes.io/name=bowline
		} >&2 2>&1 || true
	fi
	rm -f "$log"
	exit "$code"
}
trap failed EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" = 0 ] || die "needs root: it starts a Kubernetes with nodes of its own"

# --- what the story is made of ------------------------------------------------

namespace=bowline-demo
cluster=bin/demo/cluster
kubectl() { "$cluster" kubectl "$@"; }
k() { kubectl -n "$namespace" "$@"; }
bowline() { bin/kubectl-bowline -n "$namespace" "$@"; }
show() { # what a user would type
	printf '   $ kubectl %s\n' "$*"
	if [ "$1" = bowline ]; then
		shift
		bowline "$@" 2>&1 | indent
	else
		k "$@" 2>&1 | indent
	fi
}
sql() { k exec db-0 -c postgres -- psql -d postgres -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
up() { k wait --for=condition=Ready pod/db-0 --timeout=5s; }
database_is_up() { eventually 180 "PostgreSQL is ready" up; }
# One line for a table: name, rows, and the sum of a 64-bit hash of every row.
checksums() {
	local table
	for table in $(sql "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"); do
		sql "SELECT '$table', count(*), sum(hashtextextended(t::text, 0)::numeric) FROM $table t"
	done
}
identity() { k get pvc data-db-0 -o jsonpath='{.metadata.uid} {.spec.volumeName}'; }
condition() { k get volumecheckpoint "$1" -o jsonpath="{.status.conditions[?(@.type=='$2')].status}"; }
is() { [ "$(condition "$1" "$2")" = True ]; }
noticed() { [[ $(k get volumecheckpoint before-v2 -o jsonpath='{.status.backedUp}') =~ [1-9] ]]; }
migration_failed() {
	local code
	code=$(k get pod db-0 -o jsonpath='{.status.initContainerStatuses[?(@.name=="migrate")].lastState.terminated.exitCode}{.status.initContainerStatuses[?(@.name=="migrate")].state.terminated.exitCode}')
	[ -n "$code" ] && [ "$code" != 0 ]
}
migrated() { [ "$(k get pod db-0 -o jsonpath='{.metadata.labels.version}')" = 3 ] && up; }

# --- a Kubernetes with Bowline --------------------------------------------------

SECONDS=0
chapter "A Kubernetes on this machine"
mkdir -p bin/demo
go build -o "$cluster" ./hack/cluster
"$cluster" up
KUBECONFIG=$("$cluster" kubeconfig)
export KUBECONFIG
postgres=$("$cluster" load-postgres | tail -n 1)
say "image $postgres"

chapter "Install Bowline with Helm"
image=bowline:$(bin/bowline --version | awk '{ print $NF }')
quietly hack/image/programs.sh bin/image sidecars
quietly hack/image/programs.sh bin/image bowline "${image#*:}"
quietly "$cluster" build-image --tag "$image" --build-arg PROGRAMS=host --build-arg "VERSION=${image#*:}" .
say "image $image is built and on the node"
printf '   $ helm install bowline charts/bowline --namespace bowline-system --create-namespace --wait\n'
quietly "$cluster" helm upgrade --install bowline charts/bowline --namespace bowline-system --create-namespace \
	--set "image.repository=${image%:*}" --set "image.tag=${image#*:}" --wait --timeout 5m
# Helm does not wait for DaemonSets that are updated on delete.
quietly kubectl -n bowline-system wait --for=condition=Ready pod --all --timeout=120s
kubectl -n bowline-system get pods | indent

chapter "A PostgreSQL with a claim of StorageClass bowline"
kubectl get namespace "$namespace" >/dev/null 2>&1 && quietly kubectl delete namespace "$namespace" --timeout=120s
quietly kubectl create namespace "$namespace"
show apply -f hack/demo/postgres.yaml
database_is_up
sql "CREATE TABLE documents AS SELECT i AS id, repeat(md5(i::text), 20) AS body FROM generate_series(1, 100000) i"
sql "CREATE TABLE letters AS SELECT i AS id, md5((-i)::text) AS body FROM generate_series(1, 300000) i"
sql "CHECKPOINT"
before=$(checksums)
was=$(identity)
say "$(sql "SELECT pg_size_pretty(pg_database_size('postgres'))") of data in $(wc -l <<<"$before") tables"
show get pvc

chapter "Before the upgrade: a VolumeCheckpoint"
cat hack/demo/checkpoint.yaml | indent
show apply -f hack/demo/checkpoint.yaml
started=$(date +%s%N)
eventually 60 "the checkpoint is open" is before-v2 Checkpointed
say "open after $((($(date +%s%N) - started) / 1000000)) ms, while PostgreSQL runs"
show get volumecheckpoints

chapter "The upgrade: its migration wrecks the data and fails"
show patch statefulset db --patch-file hack/demo/upgrade-fails.yaml
eventually 180 "the migration fails" migration_failed
show get pods
eventually 40 "the status tells how much was backed up" noticed
show bowline status
say "the tables are gone, and with them half of the files of the database"

chapter "Roll back: the version, and the data"
# The old version again. Its pod cannot start on what the migration has left.
show rollout undo statefulset db
show bowline rollback data-db-0 --evict --wait
k delete pod db-0 --wait=false >/dev/null 2>&1 || true # a StatefulSet leaves a broken pod alone
database_is_up
same "every row of every table is as before" "$(checksums)" "$before"
same "it is the same claim and the same volume" "$(identity)" "$was"
show get volumecheckpoints

chapter "Another upgrade, which goes well; the rollout decides"
show apply -f hack/demo/checkpoint-verify.yaml
eventually 60 "the checkpoint is open" is before-v3 Checkpointed
show patch statefulset db --patch-file hack/demo/upgrade-works.yaml
eventually 180 "version 3 runs" migrated
eventually 60 "the checkpoint is committed" is before-v3 Committed
show bowline list
[ "$(sql "SELECT count(*) FROM documents WHERE version = 3")" = 100000 ] || die "the migration's work is lost"
held "the data of version 3 is there, and nothing was copied"

trap - EXIT
rm -f "$log"
cat <<END

every check held ($SECONDS s)

The cluster is still there. To look around:
  export KUBECONFIG=$KUBECONFIG
  $cluster kubectl -n $namespace get volumecheckpoints,pods,pvc
  $cluster kubectl -n $namespace describe volumecheckpoint before-v2
  bin/kubectl-bowline -n $namespace list
To remove everything:
  make cluster-down
END
