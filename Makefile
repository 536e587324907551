# For a newcomer `make quickstart` and `make test`, for the working day `make check`. All
# set up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Versions of the lock of this Python, where there is one; without hashes, which pip does
# not take beside a project in its own folder. LOCK= takes the newest in pyproject.toml's
# ranges.
LOCK ?= $(wildcard tpu_setup/locks/test-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt)
PINNED := $(if $(LOCK),--constraint $(VENV)/constraints.txt)

.PHONY: help quickstart miniature check quick test suite lint format locks clean

help:
	@echo "make quickstart  set up $(VENV); SFT, own samples, pairs, MPO of a tiny InternVL (CPU)"
	@echo "make miniature   the paper's claim on 2 cores: five methods, five seeds (55 min)"
	@echo "make check       linters, type checker and the tests that are quick (3 minutes)"
	@echo "make test        set up $(VENV), run linters, type checker and all tests"
	@echo "make lint        ruff and pyright only"
	@echo "make format      let ruff rewrite the code"
	@echo "make locks       tpu_setup/locks again: newest versions in pyproject.toml's ranges"
	@echo "make clean       remove $(VENV), build (compiled programs too), runs/quickstart"

$(VENV)/.base: pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCK),sed -nE 's/^([A-Za-z0-9._-]+==[^ \]+).*/\1/p' $(LOCK) >$(VENV)/constraints.txt)
	$(BIN)/python -m pip install --quiet $(PINNED) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet $(PINNED) --editable '.[test]'
	@touch $@

quickstart: $(VENV)/.base
	$(BIN)/python scripts/miniature.py --config=configs/miniature.py:quickstart --workdir=runs/quickstart

miniature: $(VENV)/.base
	$(BIN)/python scripts/miniature.py --config=configs/miniature.py --workdir=runs/miniature

# Side by side: the type checker uses one core, and tests wait now and then.
check: $(VENV)/.test
	$(MAKE) -j2 lint quick

quick: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test: $(VENV)/.test
	$(MAKE) -j2 lint suite

# Three on two cores: many of them wait, for a heartbeat or a time-out.
suite: $(VENV)/.test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

locks: $(VENV)/.base
	$(BIN)/python -m pip install --quiet uv
	UV=$(BIN)/uv tpu_setup/locks/make.sh

clean:
	rm -rf $(VENV) build runs/quickstart
