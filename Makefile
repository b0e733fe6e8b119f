# Everything sets itself up: `make run` and `make test` work from a fresh clone.
# TORCH_INDEX: a package index to take torch from, for machines whose default index carries CUDA builds
#   only and that have no NVIDIA GPU:  make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup run test lab clean
.DEFAULT_GOAL := help

help:
	@echo "make run    the nano preset, from raw text to a model you can chat with, in runs/nano"
	@echo "make test   every check"
	@echo "make lab    JupyterLab on the notebooks"
	@echo "make setup  only install, into .venv"

setup: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "elite112m needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) install --quiet -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: setup
	$(BIN)/elite112m run nano --out runs/nano

test: setup
	$(BIN)/python -m pytest tests -n 2

lab: setup
	$(BIN)/jupyter lab --notebook-dir=nbs --ip=127.0.0.1

clean:
	rm -rf .venv build *.egg-info
