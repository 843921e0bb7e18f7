# Everything a newcomer needs: `make demo` and `make test` set up what they use in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARALLEL ?= -n auto --dist loadfile
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help demo test test-all check bench clean

help:
	@echo "make demo      train, compare and report on MovieLens-100K (about ten minutes)"
	@echo "make test      the tests"
	@echo "make test-all  the slow tests too"
	@echo "make check     ruff, mypy, import rules"
	@echo "make bench     quality against the goals (hours on two cores)"

# jax-privacy is an oracle for tests of audits: one module of it is used, which needs none of what the package asks for.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("silorec needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps jax-privacy
	touch $@

demo: $(VENV)/.installed
	$(BIN)/silorec simulate ml-100k

test: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m ''

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/silorec bench quality

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
