# `make demo` and `make test` work on a fresh machine: each makes the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export TOKENIZERS_PARALLELISM := false
FAMILY ?= spectral
N ?= 60
SEED ?= 0

.PHONY: demo test slow lint mutants bench fuzz kill gallery docs pages dist help clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing rankwise and what it needs into $(VENV) (a few minutes the first time)"
	$(PIP) "torch==2.13.0"
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/rankwise adapt examples/demo.yaml

# a worker a core; the tests of a file share its fixtures, so they stay together
test: $(VENV)/installed
	$(BIN)/python -m pytest -n logical --dist loadfile

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/numpydoc lint $$(find src/rankwise -name '*.py')

# a sample of small faults in the mathematics of a family, and the share that its tests notice
mutants: $(VENV)/installed
	PYTHONPATH=src:tools OMP_NUM_THREADS=1 $(BIN)/python -m mutants $(FAMILY) --n $(N) --seed $(SEED)

bench: $(VENV)/installed
	$(BIN)/rankwise bench speed

# thousands of damaged inputs; `make fuzz N=500 SEED=3` for fewer, or others
fuzz: N = 5000
fuzz: SECONDS = 1500
fuzz: $(VENV)/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m attack.fuzz --n $(N) --seed $(SEED) --seconds $(SECONDS)

# commands killed at some moment, and two at once: the same command again gives the same
kill: N = 72
kill: $(VENV)/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m attack.kill --n $(N) --seed $(SEED)

# the pictures of docs/gallery.md, by the scripts that it shows
gallery: $(VENV)/installed
	cd docs/img/gallery && for script in ../../../examples/gallery/*.py; do ../../../$(BIN)/python $$script || exit 1; done

docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

# the built pages in headless Chromium, at a desk's width and a phone's
pages: $(VENV)/docs
	$(BIN)/python -m pytest -m slow tests/e2e/test_docs_in_browser.py

help:
	@echo "demo     a model adapted by several methods side by side, about 5 minutes"
	@echo "test     the tests; slow: those that take minutes"
	@echo "lint     ruff and pyright"
	@echo "mutants  small faults in a family's mathematics, and whether tests notice: FAMILY=$(FAMILY)"
	@echo "bench    speed against the tools that people use"
	@echo "fuzz     damaged inputs; kill: commands killed at any moment"
	@echo "gallery  the pictures; docs: the site, into site/; pages: its pages as a browser shows them"
	@echo "dist     wheel and source archive, and a try of the wheel in an environment of its own"

# what a release is made of: wheel and source archive build, and the wheel works alone with the least it needs
dist: $(VENV)/installed
	$(BIN)/python tools/release.py

clean:
	rm -rf $(VENV) site build dist
