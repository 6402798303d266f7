# Needs make, Python 3.11 or newer with its venv module, and a package registry. Nothing else.
# The environment is made once; it is made anew only when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Two processes, one arithmetic thread each (tests/conftest.py). `make unit WORKERS=0` runs in one process.
WORKERS ?= 2
# Environments of other frameworks for `make bench-peers`, and an interpreter for those that ask for Python 3.12.
PEERS ?= .peers
PYTHON312 ?=
PEERS_ARGS ?=
PROFILE_ARGS ?=
PYTEST_ARGS ?=
# What runs at the same time prints when it ends, each as one piece; make before 4.0 cannot do that and mixes it.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo deploy-demo test lint types unit coverage slow docs dist dist-demo bench bench-peers profile format clean distclean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make the environment in .venv

demo: $(STAMP) ## Fine-tune the bundled model across simulated clients
	$(BIN)/fedelta run recipes/demo.toml

deploy-demo: $(STAMP) ## Run a server and two sites on this machine, and one experiment over them
	$(BIN)/python -m fedelta.deployment.demo recipes/deploy-digits.toml

test: $(STAMP) ## Run every check at the same time: format, lint, types, tests
	@echo "format, lint, types and tests run at the same time, and each prints when it ends: the tests in some minutes"
	@$(MAKE) --no-print-directory --keep-going -j3 $(SYNC) lint types unit

lint: $(STAMP) ## Check format and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## Check types
	$(BIN)/mypy

# A worker that is done takes tests from the end of the other's: neighbours, which share fixtures, stay together.
unit: $(STAMP) ## Run the tests; PYTEST_ARGS="-k lora" narrows them
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

coverage: $(STAMP) ## Run the tests with coverage, and fail where too little is covered
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

slow: $(STAMP) ## Run the tests marked slow
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

docs: $(STAMP) ## Build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(STAMP) ## Build wheel and sdist into dist/ and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*

dist-demo: dist ## Install the wheel into a new environment of PYTHON and run the demo there
	$(eval FRESH := $(shell mktemp -d))
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(FRESH) && bin/fedelta run demo
	rm -rf $(FRESH)

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python benchmarks/bench.py

bench-peers: $(STAMP) ## Run fedelta and other frameworks on the same work; PEERS_ARGS="--quick" takes 3 minutes
	$(BIN)/python benchmarks/peers/environments.py $(PEERS) --python312 "$(PYTHON312)"
	$(BIN)/python -m benchmarks.peers --cache $(PEERS) $(PEERS_ARGS)

profile: $(STAMP) ## Profile a round; PROFILE_ARGS="W1" chooses another work
	$(BIN)/python -m benchmarks.flame $(PROFILE_ARGS)

format: $(STAMP) ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Delete caches and build results; keep the environment and runs/
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov
	find src tests benchmarks pretraining -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Delete the environment too
	rm -rf $(VENV)

# torch goes first and exactly as constrained: given a choice of builds, the resolver then settles on it before
# anything that depends on torch can ask for another.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: fedelta needs Python 3.11 or newer, \
	this is " + sys.version.split()[0] + "\nhint: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -qq -c constraints.txt torch
	$(PIP) install -qq -c constraints.txt -e '.[dev]'
	@touch $@
