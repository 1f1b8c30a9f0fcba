# `make serve` needs python 3.11 and nothing else. Every ATLAS_* variable, of the environment or of make's command line,
# reaches the server: make serve PORT=8123 ATLAS_STORE=redis://127.0.0.1:6379/0
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from: empty is pip's own index (on Linux the CUDA build); the CPU build: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=
# Processes that the tests are shared among: more than the two cores that CI has, as tests wait more than they compute.
WORKERS ?= 3

PORT_AND_HOST := $(if $(filter command,$(origin PORT)),ATLAS_PORT=$(PORT)) $(if $(filter command,$(origin HOST)),ATLAS_HOST=$(HOST))
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-evaluators check format ci train-demo gpu-check

help: ## say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(PIP_INSTALL) --index-url $(TORCH_INDEX) torch)
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev,bench]'
	@touch $@

serve: $(VENV)/.installed ## install what is missing and run the server (PORT=, HOST=, ATLAS_*=, ARGS='--flags')
	$(PORT_AND_HOST) exec $(VENV)/bin/python -m server $(ARGS)

test: $(VENV)/.installed-for-tests ## run the tests; those marked slow and gpu have targets of their own
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow and not gpu' $(ARGS)

test-slow: $(VENV)/.installed-for-tests ## run the soaks and the long state machines
	$(VENV)/bin/python -m pytest -m 'slow and not gpu' --timeout 3600 $(ARGS)

test-evaluators: $(VENV)/.installed-for-tests ## install lm-eval and guidellm (800 MB) and let them measure a server
	$(PIP_INSTALL) --editable '.[evaluators]'
	$(VENV)/bin/python -m pytest tests/foreign/test_lm_eval.py tests/foreign/test_guidellm.py $(ARGS)

check: $(VENV)/.installed-for-tests ## formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-for-tests ## rewrite the files the way `make check` wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

ci: check test ## what CI runs

# Two processes of one thread each; memory that is freed is kept, for a step's tensors are the next step's.
TRAIN_ENV := OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

train-demo: $(VENV)/.installed ## train the shipped model (CORPUS=folder of text files, OUT=folder, PROCESSES=2)
	@test -n '$(CORPUS)' || { echo 'say where the text is: make train-demo CORPUS=DIR'; exit 2; }
	$(TRAIN_ENV) $(VENV)/bin/torchrun --standalone --nproc-per-node $(or $(PROCESSES),2) -m atlas_model.training \
	    --corpus '$(CORPUS)' --out '$(or $(OUT),runs/atlas-demo)' $(ARGS)

gpu-check: $(VENV)/.installed-for-tests ## on a CUDA machine, in ten minutes: equality with the CPU, the tests marked gpu, speed
	$(VENV)/bin/python -m bench gpu_check $(ARGS)
