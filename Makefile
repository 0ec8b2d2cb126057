# `make` lists the targets. Everything installed lies in .venv; nothing else on the machine is changed.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO ?= full
MODEL ?= smollm2
PYTEST_ARGS ?= -n 2 --dist loadfile
BENCH ?= perplexity

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# This checkout is what runs, also where .venv was installed from another one or copied with its folder.
export PYTHONPATH := $(CURDIR)
# Where something else keeps a core busy, threads of PyTorch that spin for each other cost minutes: here they spin less,
# at no cost on an idle machine (12 tokens of SmolLM2 beside a busy process: 5.6 s, with this 2 s; alone 0.5 s both).
export GOMP_SPINCOUNT ?= 20000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test test-all test-mlir check format docs demo adapter bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with what sleepc, its tests and its benchmarks need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sleepc needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@# Debian ships venv without ensurepip: pip can then be put into the new environment from outside.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet --no-input pip; } \
		|| { echo "Python's venv and pip modules are missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV), which takes a minute or two"
	@# The CPU wheel of torch is a tenth of the CUDA one. A convenience: without that index the pinned install below decides.
	@command -v nvidia-smi >/dev/null || timeout 600 $(BIN)/python -m pip install --quiet --no-input --retries 0 --timeout 5 --no-deps --index-url $(TORCH_INDEX) \
		"$$(grep '^torch==' constraints.txt)" >/dev/null 2>&1 || echo "(no CPU index for torch: taking it from the default index)"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[dev]'
	@touch $@

# Two processes share the tests: more threads of PyTorch and of ONNX Runtime in each would wait for each other, busily.
test test-all test-mlir: export OMP_NUM_THREADS ?= 1

test: $(READY) ## Run the tests, without the slow ones and those for a GPU
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow and not gpu"

test-all: $(READY) ## Run all tests, with branch coverage
	$(BIN)/python -m pytest $(PYTEST_ARGS) --cov --cov-report=term-missing:skip-covered

test-mlir: $(VENV)/.mlir ## Run the tests of the target mlir, slow ones too (a quarter of an hour; installs 0.7 GB into .venv)
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/backends/mlir tests/conformance -k mlir

$(VENV)/.mlir: $(READY)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[mlir]'
	@touch $@

check: $(READY) ## Check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(READY) ## Put imports and lines in order
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(VENV)/.docs ## Build the pages and the API as a searchable site, build/site (strict: a broken link fails it)
	NO_MKDOCS_2_WARNING=1 PATH="$(BIN):$$PATH" $(BIN)/python -m mkdocs build

$(VENV)/.docs: $(READY)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(READY) ## Convert a real model and talk to it across sleeps (DEMO=short is faster; MODEL=gemma3 is another)
	$(BIN)/python examples/demo.py --setting $(DEMO) --model $(MODEL)

adapter: $(READY) ## Train the demo's adapter again, first without keep (three hours on two cores; goes on where it was stopped)
	$(BIN)/python benchmarks/distil_smollm2.py --work build/adapter/first --adapter build/adapter/first.safetensors
	$(BIN)/python benchmarks/distil_smollm2.py --keep 128 --begin build/adapter/first.safetensors --tokens 120000 \
		--work build/adapter/second --adapter build/adapter/second.safetensors
	$(BIN)/python benchmarks/distil_smollm2.py --keep 128 --begin build/adapter/second.safetensors --set planted=0.55 \
		--set studied=0.2 --set weigh=2 --set seed=1 --work build/adapter/third --adapter examples/smollm2.adapter.safetensors

bench: $(READY) ## Run a benchmark of benchmarks/ (BENCH=perplexity, decode_cpu, convert_memory, onnx_cpu, gpu; ARGS=...)
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

clean: ## Remove .venv and what the tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
