#!/usr/bin/env bash
# Draws where the time of the serving process goes, and that of the kernel on its
# behalf: docs/images/flame-*.svg. The image is in memory, so that the disk does not
# hide the rest. As root.
#
# usage: hack/flamegraphs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

hack/install-packages.sh fio linux-perf util-linux mount
go build -o bin/ ./cmd/bowline
go build -o bin/flamegraph ./hack/flamegraph

dir=$(mktemp -d /dev/shm/bowline-flamegraphs.XXXXXX)
pid=
end() {
	if [ -n "$pid" ]; then
		bin/bowline device detach --run-dir "$dir" "$dir/image" >/dev/null || kill "$pid"
		wait "$pid" || true
	fi
	rm -r "$dir"
}
trap end EXIT

# What is free is more than backups of all that is used take.
used=3G free=5G
fallocate -l 8G "$dir/image"
fio --name=fill --filename="$dir/image" --rw=write --bs=1M --size=$used >/dev/null
bin/bowline device attach --run-dir "$dir" "$dir/image" >"$dir/device" &
pid=$!
for _ in $(seq 100); do
	[ -s "$dir/device" ] && break
	sleep 0.1
done
device=$(head -n 1 "$dir/device")

# draw NAME TITLE FIO-OPTION...
draw() {
	local name=$1 title=$2
	shift 2
	echo "flamegraphs: $title"
	fio --name="$name" --filename="$device" --direct=1 --bs=4k --randrepeat=0 --size=$used \
		--time_based --runtime=4 "$@" >/dev/null &
	local load=$!
	sleep 1
	perf record --quiet --call-graph fp --freq 1999 --pid "$pid" --output "$dir/perf.data" -- sleep 2
	perf script --input "$dir/perf.data" --fields comm,ip,sym,dso 2>/dev/null |
		bin/flamegraph -title "$title" >"docs/images/flame-$name.svg"
	wait $load
}

draw read-1 'random reads of 4 KiB, one at a time, no checkpoint' --rw=randread --ioengine=psync
draw read-32 'random reads of 4 KiB, 32 at a time, no checkpoint' --rw=randread --ioengine=libaio --iodepth=32
draw write-32 'random writes of 4 KiB, 32 at a time, no checkpoint' --rw=randwrite --ioengine=libaio --iodepth=32
blkdiscard --offset $used --length $free "$device"
bin/bowline device checkpoint --run-dir "$dir" "$dir/image" >/dev/null
draw first-32 'first overwrites of 4 KiB, 32 at a time, checkpoint just opened' --rw=randwrite --ioengine=libaio --iodepth=32
