#!/usr/bin/env bash
# Installs Debian packages that are missing, and says so. Without arguments:
# what the build and the tests of this project run. Calls apt-get only if
# something is missing.
#
# usage: hack/install-packages.sh [PACKAGE...]
set -euo pipefail

if [ $# -eq 0 ]; then
	set -- \
		gcc libc6-dev git make \
		e2fsprogs xfsprogs util-linux mount fio \
		protobuf-compiler
	# gcc and libc6-dev: the race detector is built with cgo.
	# util-linux: blkid; mount: mount, umount and losetup.
fi

if ! command -v dpkg-query >/dev/null; then
	echo "install-packages: not a Debian system; please see to it that these are installed: $*"
	exit 0
fi

missing=()
for package in "$@"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "install-packages: missing: ${missing[*]}" >&2
	echo "install-packages: run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "install-packages: installing the Debian packages ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# The package lists may be absent or old on a new machine.
apt-get update -q </dev/null
apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
