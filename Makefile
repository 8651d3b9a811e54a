# Everything runs in .venv, which `make setup` makes from the pinned requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FUZZ := $(VENV)/.fuzz
RELEASE := build/release-venv
LOG := $(VENV)/setup.log

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint format bench bench-quick bench-compare bench-growth fuzz release audit pins clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything needed (quiet, and nothing to do the second time)
	@:

demo: $(STAMP) ## three agents on this machine, one of them killed: the same events under the same numbers on each
	@$(BIN)/ocfcluster demo $(ARGS)

test: $(STAMP) ## all checks that can run on this machine, and what could not run and why
	@$(BIN)/python tests/run.py $(ARGS)

test-long: $(STAMP) ## the tests marked `long`: many rounds, many seeds
	@$(BIN)/python tests/run.py --long $(ARGS)

lint: $(STAMP) ## ruff, mypy and the import contracts alone
	@$(BIN)/python tests/run.py --only lint $(ARGS)

format: $(STAMP) ## let ruff lay out the code and mend what it safely can
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

bench: $(STAMP) ## throughput and latency of three hosts in network namespaces (needs root)
	@$(BIN)/python -m bench.run $(ARGS)

bench-quick: $(STAMP) ## did a change cost speed? against the newest tag and a floor in C, in 3 minutes (needs root)
	@$(BIN)/python -m bench.quick $(ARGS)

bench-compare: $(STAMP) ## the same work on ocfcluster and on other systems (needs root; see ARGS=--help)
	@$(BIN)/python -m bench.compare $(ARGS)

bench-growth: $(STAMP) ## how cost grows with nodes, subscribers, publishers, topics, sizes and loss (needs root)
	@$(BIN)/python -m bench.growth $(ARGS)

release: $(RELEASE)/.ready ## wheel, source distribution, bill of materials and checksums of HEAD in dist/, built twice and tested
	@$(RELEASE)/bin/python -m release.make $(ARGS)

audit: $(RELEASE)/.ready ## is all pinned, as installed, under known licences, and without known vulnerabilities?
	@$(RELEASE)/bin/python -m release.audit $(ARGS)

fuzz: $(FUZZ) ## feed every parser with inputs that coverage guides (ARGS=--help); 50 000 of each take some minutes
	@$(BIN)/python -m fuzz $(ARGS)

pins: ## pin the requirements anew (needs uv; ARGS=--upgrade for the newest versions)
	@command -v uv >/dev/null || { echo "make pins needs uv on the PATH" >&2; exit 1; }
	@requirements/compile.sh $(ARGS)

clean: ## remove .venv and all that was built, measured or cached here
	@rm -rf $(VENV) build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Nothing is built in isolation, so all that is installed is pinned by hash, the build backend too.
$(STAMP): requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	    echo "setup: there is no $(PYTHON); install Python 3.11 or newer (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "setup: Python 3.11 or newer is needed and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "setup: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: installing $$(grep -c == requirements/dev.txt) pinned packages"
	@{ $(BIN)/python -m pip install -q --no-input --disable-pip-version-check --require-hashes -r requirements/dev.txt \
	    && $(BIN)/python -m pip install -q --no-input --disable-pip-version-check --no-deps --no-build-isolation -e .; } \
	    >$(LOG) 2>&1 || { cat $(LOG) >&2; echo "setup: failed, see above" >&2; exit 1; }
	@touch $@
	@echo "setup: ready"

# The tools of a release have an environment of their own: nothing of theirs gets into what is tested or given away.
$(RELEASE)/.ready: requirements/release.txt
	@echo "setup: making $(RELEASE)"
	@mkdir -p build
	@$(PYTHON) -m venv --clear $(RELEASE)
	@$(RELEASE)/bin/python -m pip install -q --no-input --disable-pip-version-check --require-hashes -r requirements/release.txt
	@touch $@

# What only `make fuzz` needs; CI runs the same targets without it.
$(FUZZ): $(STAMP) requirements/fuzz.txt
	@echo "fuzz: installing $$(grep == requirements/fuzz.txt | cut -d' ' -f1)"
	@$(BIN)/python -m pip install -q --no-input --disable-pip-version-check --require-hashes -r requirements/fuzz.txt >$(LOG) 2>&1 \
	    || { cat $(LOG) >&2; echo "fuzz: failed, see above" >&2; exit 1; }
	@touch $@
