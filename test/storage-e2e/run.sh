#!/usr/bin/env bash
# Runs Kubernetes' own tests of storage against the driver: starts a cluster with
# one node, with images for the tests, installs the chart, runs them and ends the
# cluster. What each test said is in bin/storage-e2e/log, how each ended in results.
#
# usage: test/storage-e2e/run.sh [REGEXP]        (as root; of names of tests)
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/../.."
out=$PWD/bin/storage-e2e here=$PWD/test/storage-e2e image=bowline:storage-e2e
# The cluster, and so the pool of its node, is on an XFS, which can share blocks: a
# volume in use cannot be cloned otherwise.
disk=/var/tmp/bowline-storage-e2e.img
export BOWLINE_CLUSTER_STATE=/var/tmp/bowline-storage-e2e

# What is not run.
skip=(
	'\[Disruptive\]'                                 # stops the kubelet over SSH
	'\[Feature:Windows\]' '\(ntfs\)'                 # the node has Linux
	'\[Feature:VolumeSnapshotDataSource\]'           # there are no CSI snapshots,
	'\[Feature:volumegroupsnapshot\]'                # none of groups,
	'\[Feature:snapshotmetadata\]'                   # and nothing to say about them
	'\[Feature:VolumeAttributesClass\]'              # a volume has nothing to modify but its size
	'\[Feature:SELinux\]'                            # the node has none
	'provision storage with any volume data source'  # pulls images of a populator
)

[ "$(id -u)" = 0 ] || {
	echo "run.sh: needs root: it starts a Kubernetes with a node of its own" >&2
	exit 1
}
step() { printf '== %s  [%s s]\n' "$*" "$SECONDS"; }
end_cluster() {
	"$out/cluster" down || return
	if mountpoint -q "$BOWLINE_CLUSTER_STATE"; then umount "$BOWLINE_CLUSTER_STATE" || return; fi
	rm -rf "$BOWLINE_CLUSTER_STATE" "$disk"
}
down() {
	local code=$?
	trap - EXIT
	end_cluster || code=1
	exit "$code"
}

hack/install-packages.sh xfsprogs mount
step "Programs"
mkdir -p "$out/agnhost"
CGO_ENABLED=0 go build -C "$here" -trimpath -ldflags '-s -w' -o "$out/agnhost/" k8s.io/kubernetes/test/images/agnhost
CGO_ENABLED=0 go build -C "$here" -trimpath -ldflags '-s -w' -o "$out/" github.com/onsi/ginkgo/v2/ginkgo
CGO_ENABLED=0 go test -C "$here" -c -vet=off -trimpath -ldflags '-s -w' -o "$out/storage.test"
go build -o "$out/cluster" ./hack/cluster

step "Cluster"
trap 'exit 130' INT
trap 'exit 143' TERM
end_cluster # what a run that was killed left
trap down EXIT
truncate -s 30G "$disk"
mkfs.xfs -q "$disk"
mkdir "$BOWLINE_CLUSTER_STATE"
mount -o loop "$disk" "$BOWLINE_CLUSTER_STATE"
"$out/cluster" up
KUBECONFIG=$("$out/cluster" kubeconfig)
export KUBECONFIG
kubectl=$out/kubectl
printf '#!/bin/sh\nexec "%s" kubectl "$@"\n' "$out/cluster" >"$kubectl"
chmod +x "$kubectl"

step "Images"
"$out/storage.test" -storage.images | while read -r directory name; do
	context=$here/images/$directory
	[ "$directory" = agnhost ] && context=$out/agnhost
	"$out/cluster" build-image --tag "$name" --file "$here/images/$directory/Dockerfile" "$context" </dev/null
done
make image IMAGE="$image" VERSION=storage-e2e

step "Chart"
"$out/cluster" helm upgrade --install bowline charts/bowline --namespace bowline-system --create-namespace \
	--values "$here/values.yaml" --wait --timeout 3m
"$kubectl" -n bowline-system wait --for=condition=Ready pod --all --timeout=120s

step "Tests: what they say is in $out/log"
code=0
"$out/ginkgo" --procs=4 --no-color --timeout=4h \
	--focus="External.Storage.*csi.bowline.dev.*${1:-}" --skip="$(IFS='|' && echo "${skip[*]}")" "$out/storage.test" -- \
	--provider=skeleton --kubeconfig="$KUBECONFIG" --kubectl-path="$kubectl" \
	--storage.testdriver="$here/testdriver.yaml" --storage.results="$out/results" >"$out/log" 2>&1 || code=$?
if [ "$code" = 0 ]; then tail -n 1 "$out/results"; else
	tail -n 20 "$out/log"
	grep -v '^\(passed\|skipped\)' "$out/results" || true
fi
step "End"
exit "$code"
