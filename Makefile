# Bowline: what a developer and CI run. `make help` lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

# Seconds that `make test` spends on each fuzz target; 0 skips fuzzing.
FUZZTIME ?= 3
# Limit of one package's tests. They run under the race detector on real file
# systems, so it is generous; a deadlock still ends with a stack trace.
TEST_TIMEOUT ?= 30m
# What the tests run on, for instance `make test PKG=./driver/bow/...`.
PKG ?= ./...

# What `make image` calls the image.
IMAGE ?= bowline:$(VERSION)

# Options of the benchmark, for instance `make bench BENCH="--rounds 5"`, and a
# directory of the file system that it measures on.
BENCH     ?=
BENCH_DIR ?= .

TOOLS     := bin/tools
GENERATED := '*.pb.go' '*/zz_generated.*.go' 'crds/*.yaml' charts/bowline/README.md charts/bowline/templates/crds 'docs/reference/*.md'

.DEFAULT_GOAL := help
.PHONY: help build image deploy test apiserver test-cluster lint fuzz generate check-generated bench demo demo-device \
	test-storage clean cluster-up cluster-down packages

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/bowline and the kubectl plugin bin/kubectl-bowline
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/bowline ./cmd/kubectl-bowline

image: ## build the image bowline:VERSION and import it on the nodes of the local cluster
	hack/image/programs.sh bin/image sidecars
	hack/image/programs.sh bin/image bowline $(VERSION)
	$(GO) run ./hack/cluster build-image --tag $(IMAGE) --build-arg PROGRAMS=host --build-arg VERSION=$(VERSION) .

# The race detector makes the tests that try very many states ten times slower, so
# under it they try fewer, and all of them without it.
test: packages lint check-generated fuzz apiserver ## install what the tests need, then lint and run all of them (root)
	$(GO) test -race -short -count=1 -timeout $(TEST_TIMEOUT) $(PKG)
ifeq ($(PKG),./...)
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./driver/bow/... ./driver/blockdev/memdev ./test/device
	$(MAKE) test-cluster
endif

# The tests of the API and of the controllers skip without it.
apiserver:
	$(GO) run ./hack/cluster programs

test-cluster: ## run the tests of the cluster for development, and those of the driver in it; the first time builds a Kubernetes (root)
	$(GO) test -tags cluster -count=1 -timeout 45m ./test/cluster
	$(GO) test -tags cluster -count=1 -timeout 30m -parallel 4 ./test/e2e

# Which of them, a regular expression, for instance `make test-storage STORAGE=subPath`.
STORAGE ?=

test-storage: ## run Kubernetes' own tests of storage against the driver, on a cluster of their own (root)
	test/storage-e2e/run.sh '$(STORAGE)'

lint: $(TOOLS)/.built ## gofmt, go vet, staticcheck and the import rules
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard -- '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted with gofmt:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags cluster ./test/cluster ./test/docs ./test/e2e
	$(TOOLS)/staticcheck ./...
	$(TOOLS)/staticcheck -tags cluster ./test/cluster ./test/docs ./test/e2e
	$(GO) run ./hack/lint/imports

fuzz: ## run every fuzz target for FUZZTIME seconds
	hack/fuzz.sh $(FUZZTIME) $(PKG)

generate: $(TOOLS)/.built ## write the generated Go code anew
	hack/generate.sh

check-generated: generate ## fail if generated code is not what its source says
	@git diff --exit-code -- $(GENERATED) || { echo "generated code is out of date: run 'make generate' and add the result"; exit 1; }
	@new=$$(git ls-files --others --exclude-standard -- $(GENERATED)); \
	if [ -n "$$new" ]; then echo "generated, but not in git:"; echo "$$new"; exit 1; fi

bench: build ## measure against a raw loop device: ratios (root, 6 to 10 minutes; BENCH=--quick for half)
	@hack/install-packages.sh fio e2fsprogs mount
	bin/bowline device bench --history bench/history.jsonl $(BENCH) $(BENCH_DIR)

# What `make demo` shows: cluster, or device for the story without Kubernetes.
DEMO ?= cluster

demo: build ## a failed upgrade of a PostgreSQL is rolled back, on a Kubernetes on this machine (root; DEMO=device without)
ifeq ($(DEMO),device)
	hack/demo-device.sh
else
	hack/demo.sh
endif

demo-device: build ## checkpoint, wreck and roll back a PostgreSQL on one machine (root)
	hack/demo-device.sh

cluster-up: ## start a Kubernetes on this machine (root)
	$(GO) run ./hack/cluster up

deploy: image ## install the chart with this image into the local cluster, or update it there
	image='$(IMAGE)'; $(GO) run ./hack/cluster helm upgrade --install bowline charts/bowline \
		--namespace bowline-system --create-namespace --wait --timeout 5m \
		--set image.repository="$${image%:*}" --set image.tag="$${image##*:}"

cluster-down: ## stop it and remove what it left
	$(GO) run ./hack/cluster down

clean: ## remove what was built
	rm -rf bin

# Debian packages that the build and the tests use; does nothing where they
# are installed.
packages:
	@hack/install-packages.sh

# The pinned tools of hack/tools, built once for each change of their versions.
$(TOOLS)/.built: hack/tools/go.mod hack/tools/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C hack/tools -o $(CURDIR)/$(TOOLS)/ tool
	@touch $@
