# Two commands do everything on a machine with Python 3.11 and git: make demo, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# Tests wait for processes of their own most of the time: one or two a core keep it busy.
SIDE_BY_SIDE := -n 4
# Those that need the machine for themselves: only their files are collected again.
ALONE = $(shell grep -rl --include='*.py' 'mark\.alone' tests)
FAST := not slow and not needs_cluster
QUICK := $(FAST) and not integration

# A thousand processes start below the tests, and each would compile the project and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-integration test-all lint mypy pyright layers docs bench wheel clean

help:
	@echo "make demo      the fixes at work on this machine, figures before and after"
	@echo "make test      the units, the properties, and each fix on its real framework"
	@echo "make test-integration   agents, servers, upstream's own suites, the oldest supported versions"
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
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(QUICK) and not alone"
	$(BIN)/python -m pytest -q -m "$(QUICK) and alone" $(ALONE)

test-integration: setup
	@# Each part runs whatever became of the one before; the exit status is that of the worst.
	@status=0; \
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(FAST) and integration" || status=$$?; \
	$(BIN)/nox -t quick || status=$$?; \
	exit $$status

test-all: setup
	@status=0; \
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(FAST) and not alone" || status=$$?; \
	$(BIN)/python -m pytest -m "not ($(FAST)) or alone" || status=$$?; \
	$(BIN)/nox || status=$$?; \
	exit $$status

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target mypy pyright layers

mypy: setup
	$(BIN)/mypy

pyright: setup
	$(BIN)/pyright

layers: setup
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
