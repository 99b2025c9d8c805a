#!/usr/bin/env bash
# Writes the Go code of every .proto file in the tree anew, next to it, with
# the plugins pinned in hack/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t protos < <(git ls-files --cached --others --exclude-standard -- '*.proto' | sort)
if [ ${#protos[@]} -eq 0 ]; then
	echo "generate: no .proto files"
	exit 0
fi
if ! command -v protoc >/dev/null; then
	echo "generate: protoc is missing: run hack/install-packages.sh" >&2
	exit 1
fi
echo "generate: ${protos[*]}"
PATH="$PWD/bin/tools:$PATH" protoc -I . \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	"${protos[@]}"
