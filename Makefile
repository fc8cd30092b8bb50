PYTHON ?= python3
BIN := .venv/bin
COUNT ?= 2000
SEED ?= 0
KILLS ?= 20

.PHONY: help demo test test-all soak lint docs site bench

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: .venv/installed  ## label demo videos rendered here, pretrain on them, compare with random weights, into demo/
	$(BIN)/vssl demo

test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: .venv/installed  ## also run the slow tests: the wheel, a stand-in for a GPU, every command of docs/papers/
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m ""

soak: .venv/installed  ## test many damaged and hostile inputs and kills, print the counts: COUNT=2000 KILLS=20 SEED=0
	$(BIN)/python -m tests.soak_shards --count $(COUNT) --seed $(SEED)
	$(BIN)/python -m tests.soak_doors --count $(COUNT) --seed $(SEED)
	$(BIN)/python -m tests.soak_processes --count $(KILLS) --seed $(SEED)

lint: .venv/installed  ## check style, types and the links of the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: .venv/installed  ## update the tables of README.md and docs/, and docs/papers/
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/papers.py

site: .venv/installed  ## build the documentation into site/, to be opened in a browser: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed  ## print the tables of measurements
	$(BIN)/python benchmarks/flow.py
	$(BIN)/python benchmarks/labelgen.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/scale.py

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
