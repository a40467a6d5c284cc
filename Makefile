# Every target creates the environment it needs. Requires Python 3.11 or later (the pinned tools do) and a package registry.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# Two test processes. Each takes whole files, so that what the tests of a file share is made once.
PARALLEL := -n 2 --dist loadfile
BRIDGE := $(VENV)-bridge/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-fuzz test-distributed test-bridge lint format types bench bench-cold bench-cloud bench-prepare bench-scale cli-page screenshots docs release-check release clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

# torch is installed first, pinned: an unpinned torch required by another package may pull in gigabytes of CUDA.
$(VENV)/.train: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (some minutes if torch and Lightning must be downloaded)"
	@$(PIP) install -c constraints.txt --upgrade pip
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[train,report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@$(PIP) install -c constraints.txt -e '.[train,megatron,mixture,formats,ray,cloud,similar,report,grain,dev]'
	@touch $@

demo: $(VENV)/.train ## real genomes to a small trained model, end to end
	@$(BIN)/python demo/run.py

test: $(VENV)/.dev ## the tests, without the slow ones
	$(PYTEST) $(PARALLEL)

test-slow: $(VENV)/.dev ## the tests that take minutes
	$(PYTEST) $(PARALLEL) -m slow --timeout=900

test-fuzz: $(VENV)/.dev ## 20,000 changed inputs and databases; the first line says how to run them again
	$(BIN)/python tests/fuzz/fuzz.py --cases 20000 --seed $${SEED:-$$(date +%s)}

test-distributed: $(VENV)/.dev ## the order in real processes: ranks, workers, SIGKILL, Lightning, Megatron
	$(PYTEST) -m slow --timeout=900 tests/train/test_distributed.py tests/train/test_lightning_ranks.py

# A separate environment: Megatron Bridge excludes transformers 5. Its GPU packages are left out, see tests_bridge/gpu_only.py.
$(VENV)-bridge/.ready: pyproject.toml tests_bridge/requirements.txt
	@test -x $(VENV)-bridge/bin/python || $(PYTHON) -m venv $(VENV)-bridge
	@echo "setting up $(VENV)-bridge (some minutes if packages must be downloaded)"
	@$(BRIDGE) -m pip --quiet --disable-pip-version-check install -c tests_bridge/requirements.txt torch
	@$(BRIDGE) -m pip --quiet --disable-pip-version-check install -r tests_bridge/requirements.txt
	@$(BRIDGE) -m pip --quiet --disable-pip-version-check install --no-deps megatron-bridge==0.3.1 -e .
	@touch $@

test-bridge: $(VENV)-bridge/.ready ## the dataset provider under the real Megatron Bridge
	$(BRIDGE) -m pytest --timeout=300 tests_bridge

lint: $(VENV)/.dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## strict type check
	$(BIN)/mypy

bench: $(VENV)/.dev ## speed, as ratios of interleaved runs
	$(BIN)/python -m benchmarks

bench-cold: $(VENV)/.dev ## reads from the disk with an empty page cache (root; 90 minutes, 25 GB at once)
	$(BIN)/python -m benchmarks.cold --remove

bench-cloud: $(VENV)/.dev ## windows from a server that delays each request by 30 ms, with other loaders, and training (30 minutes, 4 GB)
	$(BIN)/python -m benchmarks.cloud
	$(BIN)/python -m benchmarks.cloud_training

bench-prepare: $(VENV)/.dev ## speed of build and precompute
	$(BIN)/python -m benchmarks --only prepare,precompute

bench-scale: $(VENV)/.dev ## 100 million windows, and a report on 100 million log rows: seconds, memory, disk (20 minutes, 20 GB)
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.report_scale

cli-page: $(VENV)/.dev ## docs/cli.md, from the commands
	@$(BIN)/python tests/helpers/cli_page.py

screenshots: $(VENV)/.dev ## the pictures of docs/inspect.md and docs/report.md
	$(BIN)/python demo/screenshots.py

docs: $(VENV)/.dev ## the documentation, in site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

release-check: $(VENV)/.dev ## sdist and wheel, installed alone in an empty environment and used there (1 to 2 minutes)
	$(BIN)/python tests/release/release_check.py

release: $(VENV)/.dev ## the same for a release: checks version, changelog and tag first, and writes dist/
	$(BIN)/python tests/release/release_check.py --release --out dist

clean: ## remove everything that the targets made, including the environments
	rm -rf $(VENV) $(VENV)-bridge .demo .bench site dist .pytest_cache .mypy_cache .ruff_cache
