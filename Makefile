PYTHON ?= python3
BIN := .venv/bin
COUNT ?= 2000
SEED ?= 0

.PHONY: help demo test soak lint docs bench

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: .venv/installed  ## labelgen, train and eval on demo data rendered here, into demo/
	$(BIN)/vssl demo

test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest

soak: .venv/installed  ## damaged and hostile input in numbers, prints what it counted: COUNT=2000 SEED=0
	$(BIN)/python tests/soak_shards.py --count $(COUNT) --seed $(SEED)

lint: .venv/installed  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed  ## print the tables of README.md and docs/ anew
	$(BIN)/python docs/tables.py
	$(BIN)/python -m trainer.papers > docs/papers.md

bench: .venv/installed  ## print the tables of measurements
	$(BIN)/python benchmarks/flow.py
	$(BIN)/python benchmarks/labelgen.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/train.py

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
