#!/usr/bin/env bash
# Builds the programs that the image has, statically. The Dockerfile runs this in
# its build stage, `make image` on the host. A sidecar is built only if it is not
# there in the version that its go.mod names: that takes minutes.
#
# usage: hack/image/programs.sh DIRECTORY bowline VERSION
#        hack/image/programs.sh DIRECTORY sidecars
set -euo pipefail

mkdir -p "$1"
directory=$(cd "$1" && pwd)
what=$2
version=${3:-unknown}
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0

# sidecar MODULE PROGRAM SOURCE: MODULE is a directory of hack/sidecars.
sidecar() {
	local module=$1 program=$2 source=$3 version
	version=$(go list -C "hack/sidecars/$module" -m -f '{{.Version}}' "$source")
	if "$directory/$program" --version 2>/dev/null | grep -qw -- "$version"; then
		return
	fi
	echo "image: building $program $version"
	go build -C "hack/sidecars/$module" -trimpath -ldflags "-s -w -X main.version=$version" -o "$directory/" tool
}

case $what in
bowline)
	# The plugin, too: for jobs in the cluster that open and end checkpoints.
	go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$directory/" ./cmd/bowline ./cmd/kubectl-bowline
	;;
sidecars)
	sidecar provisioner csi-provisioner github.com/kubernetes-csi/external-provisioner/v6
	sidecar resizer csi-resizer github.com/kubernetes-csi/external-resizer/v2
	;;
*)
	echo "programs.sh: no such programs: $what" >&2
	exit 2
	;;
esac
