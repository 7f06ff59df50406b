# likestream. `make` prints the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO := cargo
# One profile for all targets, so that no crate is compiled twice.
BUILD := $(CARGO) build --locked --release
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEVSTACK := $(TARGET)/release/devstack

# Tests spend most of their time waiting for servers, so run two per core.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))

# Keep the source tree free of Python caches.
export PYTHONDONTWRITEBYTECODE := 1

LIKES ?= 1000000
DUPLICATES ?= 5
SEED ?=
MINUTES ?= 10
REDIS ?= one
ROWS ?=
RUNS ?= 3
SERVERS ?=
IMAGE ?= likestream:local
FUZZ_SECONDS ?= 60

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: # Install Redis, Postgres, PgBouncer and a linker if they are missing
	@tests/stack/install.sh

.PHONY: build
build: install ## Build all programs (release profile) into target/release
	$(BUILD)

# Without --package, features are unified over the whole workspace as in `build`, so that no crate is compiled twice.
.PHONY: build-stack
build-stack: install # Build the programs of a stack, without bench
	$(BUILD) $(addprefix --bin ,ingest consumer likesctl devstack)

.PHONY: demo
demo: build-stack ## Send likes to a private stack and verify that none is lost or duplicated (LIKES=1000000 DUPLICATES=5)
	@$(DEVSTACK) demo --likes $(LIKES) --duplicates $(DUPLICATES)

# Unit tests are built without optimisation. Tests with paused time need a tokio feature that the programs must not have;
# in the release profile it would cause a full rebuild. If nextest is installed, it runs the tests of all crates in
# parallel.
UNIT_TESTS := $(CARGO) $(if $(shell command -v cargo-nextest),nextest run,test) --locked --workspace --lib --bins --test layout

.PHONY: test
test: build ## Run unit tests and integration tests against real servers
	$(UNIT_TESTS)
	$(CARGO) test --locked --release --package likestream-tests --test integration

.PHONY: check
check: install ## Check formatting, run clippy and unit tests (under a minute with a warm build)
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(UNIT_TESTS)

.PHONY: test-matrix
test-matrix: build ## Run the core of the integration tests with each supported Redis, Valkey and Postgres (SERVERS=valkey-9.1)
	@SERVERS=$(SERVERS) tests/stack/matrix/run.sh $(abspath $(TARGET))/matrix \
		$(CARGO) test --locked --release --package likestream-tests --test integration --

.PHONY: chaos
chaos: build-stack ## Inject faults under load and verify every like (SEED=7 MINUTES=10 REDIS=one|cluster)
	@$(DEVSTACK) chaos $(if $(SEED),--seed $(SEED)) --duration $(MINUTES)m --redis $(REDIS)

.PHONY: bench
bench: build ## Run the benchmarks and compare with the limits of the machine (ROWS=drain,ingest RUNS=3)
	@$(TARGET)/release/bench --runs $(RUNS) $(if $(ROWS),--rows $(ROWS),--out bench)

.PHONY: test-http
test-http: build ## Test ingest against its OpenAPI document, and the clients in docs/examples
	@tests/http/install.sh $(abspath $(TARGET))/http
	@$(DEVSTACK) run -- $(abspath $(TARGET))/http/venv/bin/python -m pytest tests/http

.PHONY: image
image: ## Build the container image with docker or buildah (IMAGE=likestream:local)
	@deploy/image/build.sh $(IMAGE)

.PHONY: test-image
test-image: build ## Build and run the container image, and test compose.yaml
	@tests/image/install.sh $(abspath $(TARGET))/image
	@# buildah needs root, or root in a user namespace.
	@$$([ $$(id -u) = 0 ] || echo buildah unshare) $(TARGET)/image/venv/bin/python -m pytest tests/image

.PHONY: test-monitoring
test-monitoring: build ## Test alerts, dashboards and the KEDA query with a real Prometheus
	@tests/monitoring/install.sh $(abspath $(TARGET))/monitoring
	@$(TARGET)/monitoring/venv/bin/python -m pytest tests/monitoring

.PHONY: chart-test
chart-test: build ## Test the Helm chart against the Kubernetes schemas and the programs
	@tests/chart/install.sh $(abspath $(TARGET))/chart
	@$(TARGET)/chart/venv/bin/python -m pytest tests/chart

.PHONY: chart-files
chart-files: ## Regenerate the README of the chart and deploy/manifests
	@tests/chart/install.sh $(abspath $(TARGET))/chart
	@$(TARGET)/chart/venv/bin/python tests/chart/documents.py

.PHONY: docs
docs: ## Build the documentation as a book into target/book, and check every link
	@tests/stack/node_modules.sh $(abspath $(TARGET))/docs tests/docs
	@tests/docs/links.sh $(abspath $(TARGET))/docs
	@deploy/cargo_tool.sh $(abspath $(TARGET)) mdbook 0.5.4 --no-default-features --features search
	@tests/docs/book.sh $(abspath $(TARGET))/tools/bin/mdbook $(abspath $(TARGET))/book

.PHONY: fuzz
fuzz: install ## Fuzz the decoders (FUZZ_SECONDS=60 per target)
	@deploy/cargo_tool.sh $(abspath $(TARGET)) cargo-fuzz 0.13.2
	@# cargo-fuzz has no --locked option.
	@$(CARGO) metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	@# cargo-fuzz needs unstable compiler flags.
	@for target in decode like_request; do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(TARGET)/fuzz $(TARGET)/tools/bin/cargo-fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target \
			$(TARGET)/fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

.PHONY: supply-chain
supply-chain: install ## Check licences, sources and advisories of the dependencies
	@tests/supply_chain.sh $(abspath $(TARGET))

.PHONY: sbom
sbom: install ## Write a CycloneDX SBOM of each program into target/sbom
	@deploy/sbom.sh $(abspath $(TARGET))

.PHONY: up down status logs
up: build-stack ## Start a local stack and leave it running
	@$(DEVSTACK) up
# These use an existing devstack program, so that they work even if the code does not compile.
down: $(DEVSTACK) ## Stop the stack and remove its data
	@$(DEVSTACK) down
status: $(DEVSTACK) ## Show the state of the stack
	@$(DEVSTACK) status
logs: $(DEVSTACK) ## Follow the logs of the stack
	@$(DEVSTACK) logs --follow
$(DEVSTACK):
	@$(MAKE) build-stack

.PHONY: lint
lint: install ## Check formatting, run clippy and ruff (warnings are errors)
	@tests/stack/venv.sh $(TARGET)/lint/venv tests/lint/requirements.txt
	$(TARGET)/lint/venv/bin/ruff format --check tests deploy
	$(TARGET)/lint/venv/bin/ruff check tests deploy
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all
