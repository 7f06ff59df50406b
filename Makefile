# likestream. `make` alone tells what there is to do.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO := cargo
# One profile for everything, so that nothing is compiled twice.
BUILD := $(CARGO) build --locked --release
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEVSTACK := $(TARGET)/release/devstack

# Tests mostly wait, for servers and for one another.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))

# Python leaves no caches beside its sources.
export PYTHONDONTWRITEBYTECODE := 1

LIKES ?= 1000000
DUPLICATES ?= 5
SEED ?=
MINUTES ?= 10
REDIS ?= one
ROWS ?=
RUNS ?= 3
IMAGE ?= likestream:local
FUZZ_SECONDS ?= 60

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: # Redis, Postgres, PgBouncer and a linker, where they are missing
	@tests/stack/install.sh

.PHONY: build
build: install ## Build all programs (release) into target/release
	$(BUILD)

# Without --package, features are unified over the whole workspace, as for `build`: nothing is compiled twice.
.PHONY: build-stack
build-stack: install # The programs of a stack, without bench
	$(BUILD) $(addprefix --bin ,ingest consumer likesctl devstack)

.PHONY: demo
demo: build-stack ## Send likes to a private stack and verify that none is lost or duplicated (LIKES=1000000 DUPLICATES=5)
	@$(DEVSTACK) demo --likes $(LIKES) --duplicates $(DUPLICATES)

# Unit tests run without optimisation: tests of paused time need a feature of tokio that the programs must not have, and
# which would have everything compiled again. nextest, where it is installed, runs them in parallel over all crates.
UNIT_TESTS := $(CARGO) $(if $(shell command -v cargo-nextest),nextest run,test) --locked --workspace --lib --bins --test layout

.PHONY: test
test: build ## Run all tests, against real servers that they start themselves
	$(UNIT_TESTS)
	$(CARGO) test --locked --release --package likestream-tests --test integration

.PHONY: check
check: install ## Formatting, clippy and unit tests: the fast loop, under a minute when warm
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(UNIT_TESTS)

.PHONY: test-valkey
test-valkey: build ## The integration tests on Valkey 8 in place of Redis
	server=$$(tests/stack/valkey.sh $(abspath $(TARGET))/valkey) && \
	REDIS_SERVER=$$server $(CARGO) test --locked --release --package likestream-tests --test integration

.PHONY: chaos
chaos: build-stack ## Inject faults of every kind under load and verify every like (SEED=7 MINUTES=10 REDIS=one|cluster)
	@$(DEVSTACK) chaos $(if $(SEED),--seed $(SEED)) --duration $(MINUTES)m --redis $(REDIS)

.PHONY: bench
bench: build ## Measure likestream beside the limits of the machine (ROWS=drain,ingest RUNS=3)
	@$(TARGET)/release/bench --runs $(RUNS) $(if $(ROWS),--rows $(ROWS),--out bench)

.PHONY: test-http
test-http: build ## What /openapi.json and docs/examples say against what ingest does
	@tests/http/install.sh $(abspath $(TARGET))/http
	@$(DEVSTACK) run -- $(abspath $(TARGET))/http/venv/bin/python -m pytest tests/http

.PHONY: image
image: ## Build the container image with docker or buildah (IMAGE=likestream:local)
	@deploy/image/build.sh $(IMAGE)

.PHONY: test-image
test-image: build ## The image really built of the programs, and run; compose.yaml and all that it names
	@tests/image/install.sh $(abspath $(TARGET))/image
	@# Root of a user namespace may do all that is done here.
	@$$([ $$(id -u) = 0 ] || echo buildah unshare) $(TARGET)/image/venv/bin/python -m pytest tests/image

.PHONY: test-monitoring
test-monitoring: build ## Alerts, dashboards and what KEDA asks, with a real Prometheus
	@tests/monitoring/install.sh $(abspath $(TARGET))/monitoring
	@$(TARGET)/monitoring/venv/bin/python -m pytest tests/monitoring

.PHONY: chart-test
chart-test: build ## The Helm chart against Kubernetes' schemas and the programs, and values that it must refuse
	@tests/chart/install.sh $(abspath $(TARGET))/chart
	@$(TARGET)/chart/venv/bin/python -m pytest tests/chart

.PHONY: chart-files
chart-files: ## Write the chart's README and deploy/manifests anew
	@tests/chart/install.sh $(abspath $(TARGET))/chart
	@$(TARGET)/chart/venv/bin/python tests/chart/documents.py

.PHONY: docs
docs: ## Build the documentation as a book into target/book, and check every link
	@tests/stack/node_modules.sh $(abspath $(TARGET))/docs tests/docs
	@tests/docs/links.sh $(abspath $(TARGET))/docs
	@deploy/cargo_tool.sh $(abspath $(TARGET)) mdbook 0.5.4 --no-default-features --features search
	@tests/docs/book.sh $(abspath $(TARGET))/tools/bin/mdbook $(abspath $(TARGET))/book

.PHONY: fuzz
fuzz: install ## Feed the decoders random bytes, FUZZ_SECONDS=60 each
	@deploy/cargo_tool.sh $(abspath $(TARGET)) cargo-fuzz 0.13.2
	@# cargo-fuzz has no --locked of its own.
	@$(CARGO) metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	@# The sanitizer's flags are not stable in Rust.
	@for target in decode like_request; do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(TARGET)/fuzz $(TARGET)/tools/bin/cargo-fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target \
			$(TARGET)/fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

.PHONY: supply-chain
supply-chain: install ## Check what comes from others: licences, sources, advisories
	@tests/supply_chain.sh $(abspath $(TARGET))

.PHONY: sbom
sbom: install ## Write what each program consists of, as CycloneDX, into target/sbom
	@deploy/sbom.sh $(abspath $(TARGET))

.PHONY: up down status logs
up: build-stack ## Start the same stack and leave it running
	@$(DEVSTACK) up
# A running stack can be inspected and stopped even if the code does not compile.
down: $(DEVSTACK) ## Stop the stack and remove its data
	@$(DEVSTACK) down
status: $(DEVSTACK) ## Show the state of the stack
	@$(DEVSTACK) status
logs: $(DEVSTACK) ## Show the logs of the stack and follow them
	@$(DEVSTACK) logs --follow
$(DEVSTACK):
	@$(MAKE) build-stack

.PHONY: lint
lint: install ## Check the formatting, run clippy, warnings denied, and ruff
	@tests/stack/venv.sh $(TARGET)/lint/venv tests/lint/requirements.txt
	$(TARGET)/lint/venv/bin/ruff format --check tests deploy
	$(TARGET)/lint/venv/bin/ruff check tests deploy
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all
