# Setting up, testing and rehearsing. `make` alone says what there is.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -o pipefail -c

UV_VERSION := 0.13.9
# The uv on PATH, or else our own. A virtual environment that happens to be active is not ours to fill.
UV := $(shell command -v uv || echo .uv/bin/uv)
unexport VIRTUAL_ENV

.PHONY: help
help:  ## say what there is
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1 \2/p' Makefile | while read -r name text; do \
		printf '  %-14s%s\n' "$$name" "$$text"; done

.PHONY: setup
setup: packages .venv/.installed  ## install everything the other targets need; quick when there is nothing to do
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "$(READY)",:)
READY := Ready. Next: make test, or make rehearse.

.PHONY: test
test: lint  ## lint, then every test this machine can run; the last lines name what it cannot
	@$(MAKE) --jobs 3 --keep-going cloud1 cloud2 others

.PHONY: lint
lint: setup  ## ruff and mypy
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

.PHONY: rehearse
rehearse: setup  ## bootstrap a Prefect server in a cloud on this machine (Linux, root)
	@.venv/bin/python -m rehearsal run

.PHONY: down
down:  ## take that cloud and the laptop's Prefect down, and the second one of the tests
	@if [ -x .venv/bin/python ]; then failed=0; for number in 2 1; do \
		REHEARSAL=$$number .venv/bin/python -m rehearsal down || failed=1; done; exit $$failed; fi

.PHONY: bench
bench: setup .bench/.installed  ## measure it against what a user would pick instead, in about an hour
	@.venv/bin/python -m tests.bench
	@.bench/bin/python -m tests.bench.plot docs/bench.json docs/bench.svg

.PHONY: requirements
requirements: $(UV)  ## lock again, after a change in pyproject.toml
	@$(COMPILE) pyproject.toml --group dev --output-file $(or $(OUT),requirements.txt)
	@$(COMPILE) --group bench --output-file $(or $(OUT:%=%.bench),tests/bench/requirements.txt)
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make requirements" --quiet

.PHONY: lock
lock: $(UV)  ## lock what a server installs: PROGRAM=prefect VERSION=3.8.8, or PROGRAM=uv
	@test -n "$(LOCKED_$(PROGRAM))" -a -n "$(VERSION)" || { echo "make lock PROGRAM=prefect|uv VERSION=N.N.N"; exit 2; }
	@printf '%s\n' $(LOCKED_$(PROGRAM)) | $(UV) pip compile - --python-version 3.11 \
		--python-platform x86_64-manylinux_2_36 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate --quiet --output-file $(or $(OUT),flows/locks/$(PROGRAM)-$(VERSION).txt)
# The newest prefect-shell that fits, and the bounds that pyproject.toml explains.
LOCKED_prefect = prefect==$(VERSION) prefect-shell $(BOUNDS)
BOUNDS = $(shell sed -nE "s/^ *\"((fastapi|sqlalchemy)<[^\"]*)\",.*/'\1'/p" pyproject.toml)
LOCKED_uv = uv==$(VERSION)

# How test does it: the tests on a cloud mostly wait, so there are two; those that need none give way

ON_CLOUD_1 := tests/story/test_drift.py tests/story/test_google.py

.PHONY: cloud1 cloud2 others
cloud1:
	@REHEARSAL=1 .venv/bin/pytest -m rehearsal --verbose --durations 20 $(ON_CLOUD_1) 2>&1 \
		| sed --unbuffered 's/^/cloud 1: /'

cloud2:
	@REHEARSAL=2 .venv/bin/pytest -m rehearsal --verbose --durations 20 $(ON_CLOUD_1:%=--ignore=%) 2>&1 \
		| sed --unbuffered 's/^/cloud 2: /'

others:
	@nice .venv/bin/pytest -m "not rehearsal" 2>&1 | sed --unbuffered 's/^/others:  /'

# How setup does it

.PHONY: packages
packages:
	@./setup.sh

.uv/bin/uv: | packages
	@echo "setup: installing uv $(UV_VERSION) into .uv"
	@python3 -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/bin/python: | $(UV)
	@$(UV) venv --quiet --clear .venv
	@echo "setup: made .venv with $$(.venv/bin/python --version)"

.bench/.installed: tests/bench/requirements.txt | $(UV)
	@$(UV) venv --quiet --clear .bench
	@echo "setup: installing what bench compares with into .bench"
	@$(UV) pip sync --quiet --compile-bytecode --python .bench --require-hashes $<
	@touch $@

.venv/.installed: .venv/bin/python requirements.txt pyproject.toml | $(UV)
	@echo "setup: installing what requirements.txt locks into .venv"
	@$(UV) pip sync --quiet --compile-bytecode --python .venv --require-hashes requirements.txt
	@$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@
