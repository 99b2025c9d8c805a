#!/usr/bin/env bash
# A PostgreSQL on a Bowline volume is checkpointed, wrecked and rolled back, and
# then upgraded and committed. Ends with "every check held" and exit code 0, or
# else says what did not hold. Leaves nothing behind but the Debian packages.
#
# usage: hack/demo-device.sh        (as root; `make demo-device` builds first)
set -euo pipefail
exec </dev/null

root=$(cd "$(dirname "$0")/.." && pwd)
bowline=${BOWLINE:-$root/bin/bowline}
scale=${SCALE:-20} # of pgbench: 100,000 accounts each
size=2G

# --- telling ------------------------------------------------------------------

chapter() { printf '\n%s\n' "== $*"; }
say() { printf '   %s\n' "$*"; }
run() { # shows a command of bowline's, runs it, and shows what it says
	printf '   # bowline device %s\n' "$*"
	device "$@" | sed 's/^/     /'
}
held() { printf '   ok: %s\n' "$*"; }
die() {
	printf 'demo-device: %s\n' "$*" >&2
	exit 1
}
same() { # same WHAT GOT WANT
	[ "$2" = "$3" ] || die "$1: not the same
was: $3
is:  $2"
	held "$1"
}

# --- what the story is made of ------------------------------------------------

device() { "$bowline" device --run-dir "$work/run" "$@"; }
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups -- "$@"; }
sql() { as_postgres "$pg/psql" -h "$work/socket" -U postgres -d postgres -XAtq -v ON_ERROR_STOP=1 -c "$1"; }

attach() {
	printf '   # bowline device attach --daemon %s\n' "$image"
	mapped=$(device attach --daemon "$image")
	say "  $mapped"
}

unmount_and_detach() {
	umount "$mnt"
	run detach "$image"
}

start_postgres() {
	# The settings keep it apart from any other PostgreSQL of the machine.
	as_postgres "$pg/pg_ctl" -D "$data" -s -w -t 60 -l "$work/log/postgres" start \
		-o "-c listen_addresses='' -c unix_socket_directories='$work/socket' -c shared_buffers=64MB -c max_wal_size=256MB" ||
		die "PostgreSQL does not start"
	serving=yes
}
stop_postgres() {
	as_postgres "$pg/pg_ctl" -D "$data" -s -w -m "${1:-fast}" stop
	serving=
}

start_load() {
	# Not as_postgres: $! would be the shell around it.
	setpriv --reuid postgres --regid postgres --init-groups -- \
		"$pg/pgbench" -h "$work/socket" -U postgres -n -c 4 -T 600 postgres >"$work/log/pgbench" 2>&1 &
	load=$!
	local before
	before=$(transfers)
	until [ "$(transfers)" -gt $((before + 100)) ]; do
		kill -0 "$load" 2>/dev/null || die "the load ended: $(tail -n 3 "$work/log/pgbench")"
		sleep 0.1
	done
}
stop_load() {
	[ -n "$load" ] || return 0
	kill "$load" 2>/dev/null || true
	wait "$load" 2>/dev/null || true
	load=
}

transfers() { sql 'SELECT count(*) FROM pgbench_history'; }

# Each transfer of pgbench adds the same amount to an account, a teller and a
# branch, and notes it. Whatever instant one looks at, the four sums are equal.
check_balances() {
	local sums
	sums=$(sql 'SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)')
	[ "$(tr '|' '\n' <<<"$sums" | sort -u | wc -l)" = 1 ] || die "the balances do not agree: $sums"
	held "accounts, tellers, branches and history agree: ${sums%%|*}"
}

# One line for a table: name, rows, and the sum of a 64-bit hash of every row.
checksum() { sql "SELECT '$1', count(*), sum(hashtextextended(t::text, 0)::numeric) FROM $1 t"; }
checksum_all() {
	local table
	for table in $(sql "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"); do
		checksum "$table"
	done
}

# An upgrade that rewrites tables and drops some.
upgrade() {
	sql 'ALTER TABLE pgbench_accounts ALTER abalance TYPE bigint'
	sql 'ALTER TABLE documents ADD version int; UPDATE documents SET body = reverse(body), version = 2'
	sql 'DROP TABLE letters'
	sql 'CREATE TABLE reports AS SELECT aid, md5(aid::text) AS report FROM pgbench_accounts WHERE aid <= 100000'
	say "tables are rewritten, 'letters' is dropped, 'reports' is new"
}

# What happens when it goes really wrong.
lose_files() {
	local lost
	stop_postgres immediate
	lost=$(find "$data/base" "$data/pg_xact" "$data/pg_wal" -type f | wc -l)
	rm -rf "$data/base" "$data/pg_xact" "$data/pg_wal"
	say "PostgreSQL is down, and $lost of its data files are deleted"
	if as_postgres "$pg/pg_ctl" -D "$data" -s -w -t 20 -l "$work/log/wrecked" start 2>/dev/null; then
		die "PostgreSQL starts from a wrecked directory"
	fi
	held "it does not start any more"
}

roll_back() {
	unmount_and_detach
	run restore "$image"
	attach
	mount "$mapped" "$mnt"
	# Back with everything else came the lock file of the server that ran then.
	rm -f "$data/postmaster.pid"
	start_postgres
	say "PostgreSQL runs again"
}

# --- getting ready, and leaving nothing behind --------------------------------

work= load= serving= mapped= finished=
cleanup() {
	local code=$?
	trap - EXIT
	trap '' INT TERM HUP
	set +e
	stop_load
	if [ -n "$work" ]; then
		[ "$code" = 0 ] || tail -n 5 "$work"/log/* >&2 2>/dev/null
		[ -z "$serving" ] || stop_postgres immediate
		if mountpoint -q "$mnt"; then umount "$mnt" || code=1; fi
		if device status "$image" >/dev/null 2>&1; then device detach "$image" >/dev/null || code=1; fi
		if mountpoint -q "$mnt"; then
			echo "demo-device: $mnt is still mounted; nothing in $work is removed" >&2
		else
			rm -rf "$work"
		fi
	fi
	if [ "$code" = 0 ] && [ -n "$finished" ]; then
		printf '\nevery check held (%s s)\n' "$SECONDS"
	fi
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

[ "$(id -u)" = 0 ] || die "needs root, for loop devices and mounts"
[ -x "$bowline" ] || die "$bowline is not there: run 'make demo-device'"

find_postgres() {
	local dirs=(/usr/lib/postgresql/*/bin)
	[ -x "${dirs[-1]}/initdb" ] && pg=${dirs[-1]}
}
if ! find_postgres; then
	# Debian would make and start a database of its own, which nobody asked for.
	no_cluster=/etc/postgresql-common/createcluster.d/bowline-demo.conf
	mkdir -p "$(dirname "$no_cluster")"
	echo 'create_main_cluster = false' >"$no_cluster"
	"$root/hack/install-packages.sh" postgresql || { rm -f "$no_cluster"; die "PostgreSQL cannot be installed"; }
	rm -f "$no_cluster"
	find_postgres || die "PostgreSQL is not in /usr/lib/postgresql"
fi
"$root/hack/install-packages.sh" e2fsprogs mount util-linux

unset "${!PG@}" # what would lead psql elsewhere
cd /
SECONDS=0
work=$(mktemp -d -t bowline-demo.XXXXXX)
image=$work/disk.img mnt=$work/mnt data=$work/mnt/data
chmod 755 "$work"
mkdir "$mnt" "$work/log" "$work/socket"
chown postgres: "$work/log" "$work/socket"

# --- the story ----------------------------------------------------------------

chapter "A PostgreSQL on a volume of ${size}iB"
truncate -s "$size" "$image"
attach
mkfs.ext4 -q "$mapped"
mount "$mapped" "$mnt"
install -d -o postgres -m 700 "$data"
as_postgres "$pg/initdb" -D "$data" -A trust -U postgres -E UTF8 --locale C >"$work/log/initdb" 2>&1 ||
	die "initdb failed: $(tail -n 3 "$work/log/initdb")"
start_postgres
as_postgres "$pg/pgbench" -h "$work/socket" -U postgres -i -q -s "$scale" postgres >"$work/log/pgbench" 2>&1 ||
	die "pgbench -i failed: $(tail -n 3 "$work/log/pgbench")"
sql "CREATE TABLE documents AS SELECT i AS id, repeat(md5(i::text), 20) AS body FROM generate_series(1, 30000) i"
sql "CREATE TABLE letters AS SELECT i AS id, md5((-i)::text) AS body FROM generate_series(1, 200000) i"
say "$(sql "SELECT pg_size_pretty(pg_database_size('postgres'))") of data in tables and indexes"

chapter "Checkpoint under load, and an upgrade that fails"
quiet=$(checksum documents; checksum letters)
start_load
say "4 clients transfer money all the time"
at_least=$(transfers)
run checkpoint "$mnt"
at_most=$(transfers)
upgrade
stop_load
say "$(($(transfers) - at_least)) transfers since the checkpoint"
run status "$mnt"
lose_files

chapter "Roll back"
roll_back
same "the tables that were not in use are as before" "$(checksum documents; checksum letters)" "$quiet"
check_balances
now=$(transfers)
if [ "$now" -lt "$at_least" ] || [ "$now" -gt "$at_most" ]; then
	die "$now transfers; $at_least were done before the checkpoint and $at_most after it"
fi
held "$now transfers; there were $at_least just before the checkpoint and $at_most just after"

chapter "Once more without load: every byte of every table"
before=$(checksum_all)
run checkpoint "$mnt"
upgrade
lose_files
roll_back
same "all $(wc -l <<<"$before") tables have the checksums of before" "$(checksum_all)" "$before"

chapter "The upgrade again; this time it goes well, and is committed"
start_load
run checkpoint "$mnt"
upgrade
stop_load
after=$(checksum_all)
[ "$after" != "$before" ] || die "the upgrade changed nothing"
run commit "$mnt"
same "all tables are as the upgrade left them" "$(checksum_all)" "$after"
check_balances
run checkpoint "$mnt"
sql "DELETE FROM documents"
stop_postgres
roll_back
same "a second checkpoint, rolled back: as the upgrade left them" "$(checksum_all)" "$after"
stop_postgres
unmount_and_detach
e2fsck -fn "$image" >"$work/log/e2fsck" 2>&1 || die "e2fsck: $(cat "$work/log/e2fsck")"
held "e2fsck finds nothing wrong"
finished=yes
