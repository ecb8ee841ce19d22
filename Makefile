# Every target works from a fresh clone: setup is a dependency, and happens once a lock file.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
STACKS_READY := $(VENV)/.stacks-ready-$(shell cat requirements-stacks.lock | cksum | cut -d' ' -f1)

.PHONY: help setup setup-stacks up down demo test sim scenario conformance sdk-test test-kube test-stacks judges drills bench check lint types borders lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv with the locked dependencies

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed\n\nhint: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@rm -f $(VENV)/.ready-*
	@touch $@

# Some 1.2 GB that only the tests of stacks need, so they are not part of setup.
setup-stacks: setup $(STACKS_READY) ## the providers' Pulumi packages, into the same .venv

$(STACKS_READY): requirements-stacks.lock $(READY)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-stacks.lock
	@rm -f $(VENV)/.stacks-ready-*
	@touch $@

up: setup ## start the lab with examples/four-clouds.yaml and leave it running
	$(BIN)/yunhe up examples/four-clouds.yaml

down: setup ## stop the lab
	$(BIN)/yunhe down

demo: setup ## the main job: four clouds up, traffic, two failures, a verdict
	$(BIN)/python -m controlplane.drill.demo

# Most tests wait for a server's start or answer, so three at once keep two cores busy. Drills have objectives in
# seconds, and run alone. The conformance suite has a target of its own, and takes a third as long as all the rest.
test: setup ## the tests that fit in twelve minutes; `make sim`, `scenario` and `conformance` have the rest
	$(BIN)/python -m pytest -n 3 --dist loadscope $(addprefix --ignore tests/,e2e scenario sim judges conformance kube stacks)
	$(BIN)/python -m pytest tests/e2e

sim: setup ## whole cells under seeded faults, in virtual time
	$(BIN)/python -m pytest -n 3 --dist loadscope tests/sim

scenario: setup ## longer stories over a whole lab: a WAL switched, a side lost, transactions, users and passwords
	$(BIN)/python -m pytest tests/scenario

# The cloud's bucket, region and credentials: tests/conformance/judges/real.py says which variables hold them.
conformance: setup ## adapters and lab by judges nobody here wrote; CLOUD=aws …: the same suite over a real account
ifdef CLOUD
	YUNHE_CLOUD=$(CLOUD) $(BIN)/python -m pytest -rxXs tests/conformance/test_object_store.py \
		tests/conformance/test_object_store_append.py tests/conformance/test_object_store_streams.py \
		tests/conformance/test_volume_api.py tests/conformance/test_instances.py tests/conformance/test_dns.py
else
	@# First, and one after the other: a judge that is built in minutes must not run into a test's time-out.
	@for judge in azurite bind tgt versitygw; do tools/judges/$$judge.sh >/dev/null || true; done
	YUNHE_JUDGES=$(or $(JUDGES),all) $(BIN)/python -m pytest -n 3 --dist loadscope -rxXs tests/conformance
endif

# First, and outside of any test's time-out: the CLI is built in minutes, once.
test-stacks: setup-stacks ## Pulumi: the real CLI over the lab (needs Go, once), and components of each cloud
	@tools/pulumi/build.sh >/dev/null || true
	$(BIN)/python -m pytest -n 2 --dist loadscope tests/stacks

sdk-test: setup ## the edge SDK: Rust, C, C++ and Python clients against a ring (needs cargo, cc, c++)
	PYTHON=$(CURDIR)/$(BIN)/python sdk/test.sh

test-kube: setup ## what needs Kubernetes, on a real API server built from Go modules (skipped, loudly, without Go)
	@# First: builds of minutes must not run into a test's time-out.
	@for tool in kube helm; do tools/$$tool/build.sh >/dev/null || true; done
	$(BIN)/python -m pytest tests/kube

judges: setup ## Kafka clients and tools nobody here wrote (needs Java), into docs/compatibility.md
	$(BIN)/python -m tests.judges.table

drills: setup ## every drill in every WAL mode, RUNS seeds each (50); some eighty minutes
	YUNHE=$(BIN)/yunhe tools/drills.sh $(or $(RUNS),50)

bench: setup ## benchmarks, each paired with a peer or a limit
	$(BIN)/yunhe bench all

check: lint types borders ## lint, types and the borders of the tree

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

borders: setup
	$(BIN)/lint-imports

lock: ## remake the three lock files from pyproject.toml
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet pip-tools
	$(VENV)-lock/bin/pip-compile --quiet --extra dev --all-build-deps --allow-unsafe --strip-extras --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --output-file requirements.lock pyproject.toml
	$(VENV)-lock/bin/pip-compile --quiet $(addprefix --extra pulumi-,aliyun aws azure gcp kubernetes) --allow-unsafe \
		--strip-extras --generate-hashes --constraint requirements.lock --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --no-header --output-file requirements-stacks.lock pyproject.toml
	$(VENV)-lock/bin/pip-compile --quiet --extra operator --all-build-deps --allow-unsafe \
		--strip-extras --generate-hashes --constraint requirements.lock --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --no-header --output-file requirements-image.lock pyproject.toml
	rm -rf $(VENV)-lock

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
