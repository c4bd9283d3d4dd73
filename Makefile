# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test examples test-slow test-gpu test-matrix mutants lint format coverage files docs docs-check bench bench-check bench-gpu bench-methods release-check clean

quickstart: $(VENV)/.demo
	$(BIN)/zograd quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow and not gpu"

# Every example in full: each claim holds, and the numbers are those of its page. Minutes.
examples: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/examples -m slow -k full_run

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

# The default suite of the language-model door against the oldest supported transformers, in an environment of its own.
test-matrix: .venv-floor/.dev
	.venv-floor/bin/python -m pytest -n 4 --dist worksteal -m "not slow and not gpu"

# Known faults, put into a copy of the code one at a time: does a test notice each? Some minutes.
mutants: $(VENV)/.dev
	$(BIN)/python tools/mutants.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/coverage.md from docs/coverage.yaml.
coverage: $(VENV)/.dev
	$(BIN)/python tools/coverage.py

# A line for each file: the first line of its docstring.
files: $(VENV)/.dev
	$(BIN)/python tools/files.py

# The site, in build/site. It needs no network, and a warning is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Pages of the site in a headless Chromium, pictures of them in build/pictures. Fails where something is missing.
docs-check: docs
	$(BIN)/python tools/site_check.py build/site build/pictures

bench: $(VENV)/.demo
	$(BIN)/zograd bench step
	$(BIN)/zograd bench step --batch-size 2 --seq-len 32
	$(BIN)/zograd bench memory
	$(BIN)/zograd bench exact

# Ratios of times against the bounds for this kind of processor, a minute on a quiet machine. No test depends on them.
bench-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.check

# A model of 8 billion weights on a CUDA device: minutes. Without one it says so.
bench-gpu: $(VENV)/.demo
	$(BIN)/python -m benchmarks.gpu

# The menu at equal evaluations: hours. Results that docs/methods/results.jsonl has already are not computed again.
bench-methods: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.methods --problems a,b,c,d,e --jobs 2 --page

# Builds sdist and wheel of what git has, checks both, and uses them in fresh environments, with and without a compiler.
release-check: $(VENV)/.release
	$(BIN)/python tools/release_check.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt setup.py $(wildcard src/zograd/native.h src/zograd/*/_native.cpp) | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt setup.py $(wildcard src/zograd/native.h src/zograd/*/_native.cpp) | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/.release: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[release]"
	touch $@

.venv-floor/.dev: pyproject.toml constraints-floor.txt setup.py $(wildcard src/zograd/native.h src/zograd/*/_native.cpp)
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e ".[dev]"
	touch $@

clean:
	rm -rf build .venv-floor src/*.egg-info src/zograd/*/_native*.so src/zograd/*/_native*.pyd
