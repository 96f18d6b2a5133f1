# The verbs of this repository. They need Python 3.11+, and for the local stack Maven and Go; Java comes with the Python
# dependencies. No root, no global installs: missing tools go into the cache folder.
# Written for GNU make 3.81 (macOS) and 4, and for any POSIX sh.

UV_VERSION := 0.13.9

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-interop test-nightly fuzz lint bench clean uv stack-tools

# Kept in step with cli/stack/fetch.py (cache_directory).
CACHE := $(shell \
	if [ -n "$$FOLKMOOT_CACHE" ]; then echo "$$FOLKMOOT_CACHE"; \
	elif [ "$$(uname)" = Darwin ]; then echo "$$HOME/Library/Caches/folkmoot"; \
	else echo "$${XDG_CACHE_HOME:-$$HOME/.cache}/folkmoot"; fi)
# "--version": a version manager's shim may be on the PATH without an installed version behind it.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo "$(CACHE)/uv-$(UV_VERSION)/bin/uv")
RUN := "$(UV)" run --frozen
# Eleven processes import torch or Faust at each start; compiling them once takes 20 s and saves that much each time.
export UV_COMPILE_BYTECODE := 1
# Our own modules likewise, whatever the shell says: some twenty processes import them.
unexport PYTHONDONTWRITEBYTECODE
# Types of dependencies are the same in every checkout; mypy knows a file by its hash.
export MYPY_CACHE_DIR := $(CACHE)/mypy

help: ## Show this help
	@echo 'Folkmoot. Usage: make <verb>'
	@echo
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo 'First run: downloads about 190 MB of jars and builds MinIO (about 3 minutes); later ones start in seconds.'
	@echo 'Kept in: $(CACHE)'

demo: uv stack-tools ## Start the local stack, train a federated model, audit it
	@$(RUN) moot demo

# Two processes: one for what shares the stack, one for the rest (tests/conftest.py).
test: uv stack-tools ## Run all tests (ARGS="-k name" selects some)
	@$(RUN) pytest -n 2 $(ARGS)

test-interop: uv ## Run one part of test: independent verifiers accept the log and reject forgeries
	@$(RUN) pytest tests/interop $(ARGS)

test-nightly: uv stack-tools ## Run the deep forms of tests, then ten minutes of fuzzing
	@$(RUN) pytest -n 2 -m "(nightly or hypothesis) and not full" --hypothesis-profile=nightly $(ARGS)
	@$(RUN) python -m tests.simulation.full
	@$(MAKE) fuzz SECONDS=$(or $(SECONDS),600)

fuzz: uv ## Feed malformed bytes to every parser of untrusted input for two minutes (SECONDS=600)
	@$(RUN) --group fuzz python -m tests.fuzz --seconds $(or $(SECONDS),120) $(ARGS)

lint: uv ## Check formatting, lint, types and the import rules
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) mypy
	@$(RUN) lint-imports

bench: uv stack-tools ## Measure throughput and latency on the local stack
	@$(RUN) moot bench $(ARGS)

clean: ## Remove build products and tool caches of this checkout (not the cache folder)
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Does nothing if uv is on the PATH or was installed here before. An interrupted installation leaves no uv behind and
# is simply repeated.
uv:
	@if [ ! -x "$(UV)" ]; then \
		python=; \
		for candidate in python3 python3.14 python3.13 python3.12 python3.11; do \
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				python=$$candidate; break; \
			fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo 'Python 3.11 or newer is missing.' >&2; \
			echo '  Debian/Ubuntu: sudo apt install python3 python3-venv    macOS: brew install python' >&2; \
			exit 1; \
		fi; \
		echo "Installing uv $(UV_VERSION) into $(CACHE) (once)"; \
		"$$python" -m venv "$(CACHE)/uv-$(UV_VERSION)" || { \
			echo 'The venv module is missing.  Debian/Ubuntu: sudo apt install python3-venv' >&2; exit 1; }; \
		"$(CACHE)/uv-$(UV_VERSION)/bin/python" -m pip install --quiet --disable-pip-version-check \
			'uv==$(UV_VERSION)' || { \
			echo 'uv could not be installed: check the connection to the Python package index.' >&2; exit 1; }; \
	fi

stack-tools:
	@missing=; \
	command -v mvn >/dev/null || { missing=1; \
		echo 'Maven is missing.  Debian/Ubuntu: sudo apt install maven    macOS: brew install maven' >&2; }; \
	command -v go >/dev/null || { missing=1; \
		echo 'Go is missing.     Debian/Ubuntu: sudo apt install golang-go    macOS: brew install go' >&2; }; \
	[ -z "$$missing" ]
