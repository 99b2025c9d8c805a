#!/usr/bin/env bash
# Runs every fuzz target of the given packages for some seconds each. A new
# input that fails is left by go test under testdata/fuzz of its package.
#
# usage: hack/fuzz.sh SECONDS PACKAGE...
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
if [ "$seconds" = 0 ]; then
	exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run_target runs one fuzz target and returns its status. The fuzzing
# coordinator of Go before 1.27 may report its own time limit as a failure
# (golang.org/issue/75804); a real failure always names an input.
run_target() {
	local package=$1 target=$2
	if go test -run '^$' -fuzz "^$target\$" -fuzztime "${seconds}s" "$package" >"$log" 2>&1; then
		tail -n 1 "$log"
		return 0
	fi
	if grep -q 'context deadline exceeded' "$log" && ! grep -qE 'Failing input|panic|\.go:[0-9]+:' "$log"; then
		echo "fuzz: $target of $package: the time was up (a false alarm of the go command)"
		return 0
	fi
	cat "$log"
	return 1
}

failed=0
packages=$(go list -f '{{.ImportPath}} {{.Dir}}' "$@")
while read -r package dir; do
	# Listing the targets compiles a test binary: only where there are any.
	grep -qsE '^func Fuzz[A-Z0-9_]' "$dir"/*_test.go || continue
	targets=$(go test -list '^Fuzz' "$package")
	for target in $targets; do
		[[ $target == Fuzz* ]] || continue # the closing line of go test
		echo "fuzz: $target of $package for $seconds s"
		run_target "$package" "$target" || failed=1
	done
done <<<"$packages"
exit $failed
