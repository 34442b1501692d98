# Needs Python 3.10+ with pip and venv, and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint types bench-clip bench-rates clean

demo: $(STAMP)  ## train a small CNN on handwritten digits with NonFiniteGuard, ZClip and GradientMonitor
	$(BIN)/python examples/vision.py

test: lint types  ## everything that decides whether a change is good
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench-clip: $(STAMP)  ## cost of clipping against torch; nothing else should run meanwhile
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/clip.py

bench-rates: $(STAMP)  ## final loss against initial learning rate, plain and with each rule; about 11 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning_rates.py --plots docs

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv dist build
