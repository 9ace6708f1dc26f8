# `make demo` and `make test` need only Python 3.11 and make; the first one makes the environment.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
# The parts of the package that are type-checked.
TYPED := $(wildcard offseg_d2/layers offseg_d2/modeling/offset_learning.py \
	offseg_d2/solver offseg_d2/checkpoint offseg_d2/doctor.py \
	offseg_d2/commands/setup_env.py)

.PHONY: help demo test test-extras test-slurm test-gpu lint setup doctor matrix clean

help:
	@echo "make demo    train a small model, evaluate it and draw its predictions (CPU, minutes)"
	@echo "make test    lint and the default tests"
	@echo "make test-extras  the tests of export, web page and site, whose packages it installs"
	@echo "make test-slurm  the tests on a real SLURM, which they start on this machine"
	@echo "make test-gpu  the tests on this machine's GPUs"
	@echo "make setup   only make the environment $(VENV)"
	@echo "make lint    ruff and mypy"
	@echo "make doctor  versions, CUDA, dataset folders, and what to do about problems"
	@echo "make matrix  install and use the project in fresh environments: PYTHONS=..., TORCH=..."
	@echo "make clean   remove the environment and caches (trained models stay)"

setup:
	@test -n "$(PYTHON)" || { echo "Set-up failed: no Python 3 was found." \
		"Debian: apt-get install -y python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)"

demo: setup
	@$(BIN)/python tools/make_demo.py

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy $(TYPED)

# One process per core, each with one thread: much faster than one process with all threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The tests that `make test` skips without the optional packages; locked as the others are.
test-extras: setup
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/extras.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal \
		tests/export tests/web tests/docs

# Without SLURM's programs this fails, instead of skipping: who calls it wants it run.
test-slurm: setup
	OFFSEG_REQUIRE_SLURM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/integration

# Installs nothing: `make test-gpu BIN=/usr/bin` takes the Python of an environment that exists.
test-gpu:
	$(BIN)/python -m pytest -m gpu tests/gpu

doctor: setup
	@$(BIN)/python -m offseg_d2.doctor

# Each environment takes some GB, and is deleted afterwards.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
TORCH ?= 2.6.0 newest
matrix:
	$(PYTHON) tests/matrix.py --pythons $(PYTHONS) --torch $(TORCH)

clean:
	rm -rf "$(VENV)" "$(VENV).incomplete" build dist *.egg-info .setup.lock \
		.pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
