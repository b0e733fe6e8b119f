# Everything sets itself up: `make run` and `make test` work from a fresh clone.
# TORCH_INDEX: a package index to take torch from, for machines whose default index carries CUDA builds
#   only and that have no NVIDIA GPU:  make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup run check test test-te test-export docs lab clean
.DEFAULT_GOAL := help

help:
	@echo "make run      the nano preset, from raw text to a model you can chat with, in runs/nano"
	@echo "make lab      JupyterLab on the notebooks; begin with index.ipynb"
	@echo "make test     every check (20 to 30 minutes)"
	@echo "make check    the quick ones, for people who edit: notebooks and package agree, links, quick tests (2 minutes)"
	@echo "make test-export  exports in llama.cpp, onnxruntime, transformers, and in Node.js and Chromium if they are installed"
	@echo "make test-te  the TransformerEngine backend against its real Python, kernels emulated, in .venv-te (no GPU needed)"
	@echo "make docs     the site: the notebooks as they are, searchable, in build/site"
	@echo "make setup    only install, into .venv"

setup: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "elite112m needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) install --quiet -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(PIP) install --quiet -c constraints.txt -e '.[dev,docs,track]'
	@touch $@

run: setup
	$(BIN)/elite112m run nano --out runs/nano

check: setup
	$(BIN)/python -m pytest tests -n 2 -m "not processes and not notebooks"

test: setup
	$(BIN)/python -m pytest tests -n 2

# Exports in other programs: llama.cpp, onnxruntime, transformers; with Node.js transformers.js, with Chromium the page.
test-export: setup
	$(BIN)/python -m pytest tests/sharing -n 2 -rs

docs: setup
	$(BIN)/python docs/build_site.py build/site

# TransformerEngine without its compiled parts: its wheel of shared libraries (276 MB) is unpacked without them.
TE := 2.20.2
TE_PIP := .venv-te/bin/python -m pip --disable-pip-version-check
test-te: .venv-te/installed
	OMP_NUM_THREADS=1 PYTHONPATH=. .venv-te/bin/python -m pytest tests/te_cpu/check_te.py

.venv-te/installed: tests/te_cpu/requirements.txt constraints.txt
	test -x .venv-te/bin/python || $(PYTHON) -m venv .venv-te
	$(if $(TORCH_INDEX),$(TE_PIP) install --quiet -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(TE_PIP) install --quiet -c constraints.txt -r tests/te_cpu/requirements.txt
	$(TE_PIP) install --quiet --no-deps transformer_engine==$(TE)
	$(TE_PIP) download --quiet --no-deps -d .venv-te/wheel transformer_engine_cu13==$(TE)
	.venv-te/bin/python tests/te_cpu/unpack.py .venv-te/wheel/*.whl
	rm -rf .venv-te/wheel
	@touch $@

lab: setup
	$(BIN)/jupyter lab --notebook-dir=nbs --ip=127.0.0.1 index.ipynb

clean:
	rm -rf .venv .venv-te build *.egg-info
