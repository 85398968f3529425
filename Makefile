# `make up` starts everything; `make` alone lists what else there is.
.DEFAULT_GOAL := help
.PHONY: help up down boot-unit lint test bench chaos
SHELL := /bin/sh

UV := uv==0.13.9
# The system's own Python: the release must not depend on one in somebody's home directory.
PYTHON := $(firstword $(wildcard /usr/bin/python3) python3)
BIN := .venv/bin

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

up: .venv/.ready ## install what is missing, start the instance, wait until it answers; safe to repeat
	@sh install/debian.sh
	@release=$$(sh install/release.sh) && exec "$$release/bin/pgherd" up $(UP)

down: .venv/.ready ## stop the instance and every service; the data stays
	@$(BIN)/pgherd down

boot-unit: .venv/.ready ## start the instance when this machine boots
	@$(BIN)/pgherd boot-unit install

lint: .venv/.ready-dev ## ruff, mypy and the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, then every test but the long ones; installs what they need
	@sh install/debian.sh tests
	@sh install/postgresql.sh 17 18
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 --ignore tests/chaos

bench: .venv/.ready-dev ## measure, write docs/benchmarks.md
	@sh install/debian.sh tests
	$(BIN)/python -m tests.bench

chaos: .venv/.ready-dev ## the long tests: kill everything, everywhere; fill a host; repositories in S3
	@sh install/debian.sh tests
	$(BIN)/pytest -s tests/chaos
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 --repository s3 -m repository

# The Debian package that brings `venv` may be missing as well.
.venv/bin/uv:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || sh install/debian.sh
	@rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV)

.venv/.ready: uv.lock pyproject.toml .venv/bin/uv
	@$(BIN)/uv --quiet sync --frozen --inexact --compile-bytecode --no-default-groups
	@touch $@

.venv/.ready-dev: uv.lock pyproject.toml .venv/bin/uv
	@$(BIN)/uv --quiet sync --frozen --inexact --compile-bytecode
	@touch $@ .venv/.ready
