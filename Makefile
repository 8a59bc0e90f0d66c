# A fresh clone needs Python 3.11 or newer with venv, and network access once; each target sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed
# The platform on which torch's wheel depends on CUDA packages.
CUDA := platform_system == "Linux" and platform_machine == "x86_64"

# The stages of dvc.yaml run `python`; it must be the one in .venv.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# On a busy machine, threads that spin while they wait cost more time than they save.
export OMP_WAIT_POLICY := passive

.PHONY: help env demo test check docs bench lock clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' Makefile

env: $(STAMP)  ## install the locked versions into .venv

demo: env  ## build the sample data set, pre-train on it, and show how many labels that saves
	$(VENV)/bin/dvc repro
	$(VENV)/bin/python -m pipeline.report data/sample/dataset runs/sample
	$(VENV)/bin/python -m geokr.evaluate classification --params workflows/sample.yaml --out evaluations/sample

test: env  ## run the tests
	@command -v chromium > /dev/null || echo "chromium is missing: no report is opened in a browser"
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -q

check: env  ## lint, format and type check; build the documentation
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

docs: env  ## show the documentation on http://127.0.0.1:8000
	$(VENV)/bin/mkdocs serve

bench: env  ## compare the speed with peers
	$(VENV)/bin/python -m benchmarks

lock:  ## rewrite requirements.lock from the ranges in pyproject.toml
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet --progress-bar off '.[train,evaluate,mlflow,wandb,torchgeo,dev,bench,s3]' 'setuptools>=77'
	build/lock/bin/pip freeze --all --exclude pip --exclude geokr > build/freeze
	sed -n '/^#/p' requirements.lock > build/requirements.lock
	LC_ALL=C sort -f build/freeze | sed -E '/^nvidia-ml-py=/!s/^(cuda-|nvidia-|triton=).*/& ; $(CUDA)/' >> build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean:  ## remove the sample's outputs and the tools' caches, but not .venv
	rm -rf data/sample runs/sample runs/sample.* evaluations/sample dvc_plots build .dvc/tmp \
	  .mypy_cache .pytest_cache .ruff_cache

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"{sys.executable} is Python {sys.version.split()[0]}; GeoKR needs 3.11 or newer: make PYTHON=...")'
	@echo "Installing into $(VENV): some minutes, 6.5 GB"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --progress-bar off -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
