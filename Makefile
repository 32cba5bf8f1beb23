# Two commands do everything on a machine with Python 3.11 and git: make demo, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test test-all lint docs bench wheel clean

help:
	@echo "make demo      the fixes at work on this machine, figures before and after"
	@echo "make test      the test-suite"
	@echo "make test-all  also the long fault, version and Windows matrices"
	@echo "make lint      format, lint, types, layers"
	@echo "make docs      build the documentation into site/"
	@echo "make bench     every benchmark, as one table; TRACES='a.csv b.csv' for the memory policy"

setup: $(READY)

$(READY): pyproject.toml .ci/setup
	@PYTHON="$(PYTHON)" bash .ci/setup
	@touch $@

demo: setup
	@$(BIN)/mlops-ext demo

test: setup
	$(BIN)/python -m pytest -m "not slow and not needs_cluster"
	$(BIN)/nox -t quick

test-all: setup
	$(BIN)/python -m pytest
	$(BIN)/nox

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/python benchmarks/run_all.py $(if $(TRACES),--traces $(TRACES))

wheel: setup
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf .venv .nox build dist site
