# Two commands do everything on a fresh machine with Python 3.10+: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PYTEST_ARGS ?=
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint no-extras install clean help

help:
	@echo "make demo      set up, then run the study on real recordings (no download)"
	@echo "make test      set up, then lint, types, doctests, tests, the run without extras"
	@echo "make test-slow set up, then the slow tests and benchmarks"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps ./examples/third_party_plugin
	@touch $@

install: $(VENV)/.installed

demo: install
	OMP_NUM_THREADS=2 $(BIN)/lightning-synth study -c examples/configs/study/demo.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint no-extras
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not benchmark" $(PYTEST_ARGS)
	$(BIN)/python -m pytest examples/third_party_plugin $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "benchmark and not slow" tests $(PYTEST_ARGS)

test-slow: install
	$(BIN)/python -m pytest -m "slow" $(PYTEST_ARGS)

# A second environment without any extra: import, listing, and errors that name the extra.
$(VENV)-bare/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-bare
	$(VENV)-bare/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-bare/bin/python -m pip install --quiet $(TORCH) -c constraints.txt
	$(VENV)-bare/bin/python -m pip install --quiet . pytest pytest-timeout -c constraints.txt
	@touch $@

no-extras: $(VENV)-bare/.installed
	$(VENV)-bare/bin/python -m pytest -q --rootdir tests/no_extras tests/no_extras -p no:cacheprovider

clean:
	rm -rf $(VENV) $(VENV)-bare build *.egg-info
