# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PACKAGES := $(wildcard udm_text continuous)
OFFLINE := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# Installing with --no-compile leaves compiling to the first import, which must then be allowed to keep the result.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-image docs test test-slow check format clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  PYTHON=python3.12 picks the interpreter; PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'"
	@echo "  spares the download of the CUDA libraries on a machine without a GPU."

demo: .venv/demo.stamp ## train a small model and generate with it
	$(BIN)/udm demo

demo-image: .venv/images.stamp ## train on digits, then draw, restore and measure
	$(BIN)/udm image demo

docs: .venv/docs.stamp ## the documentation as a site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: .venv/dev.stamp ## run the fast tests, on the CPU and without network
	$(OFFLINE) $(BIN)/python -m pytest -n auto --dist loadfile --timeout 300

test-slow: .venv/dev.stamp ## run every test, the slow ones too
	$(OFFLINE) $(BIN)/python -m pytest -n auto --dist loadfile --timeout 1800 -m "slow or not slow"

check: .venv/dev.stamp ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

format: .venv/dev.stamp ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, caches and prepared data
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist site data/*/dataset
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# install,EXTRAS: create the environment and install, silently unless it fails.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "udm-text needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing udm-text[$(1)] into .venv, once; some minutes ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) \
		-c constraints.txt -e '.[$(1)]' > .venv/install.log 2>&1 || { cat .venv/install.log >&2; exit 1; }
endef

.venv/demo.stamp: pyproject.toml constraints.txt
	$(call install,train)
	@touch $@

.venv/images.stamp: pyproject.toml constraints.txt
	$(call install,train$(comma)images)
	@touch .venv/demo.stamp $@

.venv/docs.stamp: pyproject.toml constraints.txt
	$(call install,train$(comma)docs)
	@touch .venv/demo.stamp $@

.venv/dev.stamp: pyproject.toml constraints.txt
	$(call install,dev$(comma)train)
	@touch .venv/demo.stamp .venv/images.stamp $@

comma := ,
