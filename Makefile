# Needs Python 3.10+ with pip and venv, and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all test-oldest compatibility test-browser lint types screenshots gallery bench bench-doctors bench-tab cost bench-rates bench-spikes clean

demo: $(STAMP)  ## train a small CNN on handwritten digits with NonFiniteGuard, ZClip and GradientMonitor
	$(BIN)/python examples/vision.py

test: lint types  ## everything that decides whether a change is good
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)  ## what is too long for `make test`: all planted faults and healthy runs, FSDP1 in all its forms; about 10 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2

test-browser: $(STAMP)  ## the "Gradients" tab in a real browser; needs Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser -n 2 --dist loadfile

CORE := tests/functional tests/policies tests/distributed $(addprefix tests/callbacks/test_,$(addsuffix .py,\
	logged_values_float64 grid rules stale_gradients resume guard_matrix rates_paths loggers))

test-oldest:  ## the core of the suite with the oldest versions that pyproject.toml lets in
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . pytest numpy
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(CORE) -o filterwarnings=default -k "not test_validating_from"

compatibility: $(STAMP)  ## write docs/compatibility.md from the table that the tests run
	PYTHONPATH=tests $(BIN)/python -m modes.table

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

screenshots: $(STAMP)  ## train, and take the pictures of docs/gradients-tab.md; needs Chromium; about 2 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/screenshots.py

gallery: $(STAMP)  ## run the examples, and take the pictures of docs/gallery.md; needs Chromium; about 6 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gallery.py

# In an environment of its own, with the packages that are measured beside. timm without what it depends on: its torchvision
# must fit torch to the build, and only one file of it is loaded.
bench:  ## what callbacks cost, beside the alternatives: results, docs/performance.md; about 20 minutes, nothing else meanwhile
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks --save

bench-doctors:  ## other packages that diagnose training runs and our report on the same planted runs; about 5 minutes
	$(PYTHON) -m venv .venv-doctors
	.venv-doctors/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' torchmortem==0.1.1 training-doctor==0.1.0
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 .venv-doctors/bin/python -W ignore benchmarks/doctors.py

bench-tab: $(STAMP)  ## how long the "Gradients" tab takes until the verdict, until everything, to paint; needs Chromium; about a minute
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tab.py

cost: $(STAMP)  ## write tests/cost.json anew: how many operations a step of each callback takes
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m helpers.cost_table

bench-rates: $(STAMP)  ## final loss against initial learning rate, plain and with each rule; about 11 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning_rates.py --plots docs

bench-spikes: $(STAMP)  ## twenty planted blow-ups, five seeds, five ways: results, and the table of docs/training-spikes.md
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m benchmarks.spikes --save --page

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv .venv-bench .venv-doctors dist build
