#!/usr/bin/env bash
# Writes generated files anew, with the tools pinned in hack/tools: the Go code
# of every .proto file in the tree, next to it; the deep copies of the API's
# types, next to them; their custom resource definitions, in crds; what of the
# chart is made from others; and the reference pages of the documentation.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t protos < <(git ls-files --cached --others --exclude-standard -- '*.proto' | sort)
if [ ${#protos[@]} -gt 0 ]; then
	if ! command -v protoc >/dev/null; then
		echo "generate: protoc is missing: run hack/install-packages.sh" >&2
		exit 1
	fi
	echo "generate: ${protos[*]}"
	PATH="$PWD/bin/tools:$PATH" protoc -I . \
		--go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative \
		"${protos[@]}"
fi

echo "generate: api/..., crds"
# A definition of a type that is no more would stay otherwise.
rm -f crds/*.yaml
bin/tools/controller-gen object crd paths=./api/... output:crd:dir=crds

echo "generate: charts/bowline"
go run ./hack/chart

echo "generate: docs/reference"
go run ./hack/docs
