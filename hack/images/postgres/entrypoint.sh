#!/bin/sh
# Makes the database if there is none, then runs the server. Connections from
# other pods need no password: this image is for demonstrations and tests.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
	# A power cut may have come in between; what is half made is made anew.
	rm -rf "$PGDATA.new"
	initdb --pgdata="$PGDATA.new" --auth=trust --encoding=UTF8 --data-checksums
	echo "host all all all trust" >>"$PGDATA.new/pg_hba.conf"
	echo "listen_addresses = '*'" >>"$PGDATA.new/postgresql.conf"
	sync
	rmdir "$PGDATA" 2>/dev/null || true
	mv "$PGDATA.new" "$PGDATA"
fi
exec postgres "$@"
