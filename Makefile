# Needs Python 3.10+ with pip and venv, and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo docs tutorial test test-all test-oldest test-newest test-deepspeed compatibility test-browser release-check lint lint-js types screenshots gallery bench bench-doctors bench-tab cost bench-rates bench-spikes bench-clip-find bench-shadows study study-report clean

demo: $(STAMP)  ## train a small CNN on handwritten digits with NonFiniteGuard, ZClip and GradientMonitor
	$(BIN)/python examples/vision.py

test: lint types  ## everything that decides whether a change is good
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)  ## what is too long for `make test`: all planted faults and healthy runs, FSDP1 in all its forms; about 10 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

test-browser: $(STAMP)  ## the "Gradients" tab in a real browser; needs Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "browser and not slow" -n 2 --dist loadfile

# All that trains or computes. What a version cannot do is skipped with the reason: tests/helpers/left_out.py. torch from PyPI
# takes some 5 GB, and a minute or two; PYTHON=python3.12 takes another Python.
CORE := $(addprefix tests/,functional policies schedules steps fit callbacks dashboard distributed)
BESIDE := pytest pytest-timeout pytest-xdist hypothesis numpy 'jsonargparse[signatures]' pytorch_optimizer scikit-learn

test-oldest:  ## the core of the suite with the oldest versions that pyproject.toml lets in; Python up to 3.12
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . $(BESIDE) 'setuptools<81'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(CORE) -n 2 --dist loadfile -rs -o filterwarnings=default

test-newest:  ## the same with the newest versions that there are
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable . torch lightning tensorboard torchmetrics $(BESIDE)
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest $(CORE) -n 2 --dist loadfile -rs -o filterwarnings=default

# In an environment of its own; nothing is compiled.
test-deepspeed:  ## GradientMonitor under DeepSpeed's ZeRO 1 to 3, on two processes of the CPU; about 8 minutes
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt torch
	DS_BUILD_OPS=0 .venv-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed]'
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/python -m pytest tests/zero tests/fit/test_engine_steps.py

compatibility: $(STAMP)  ## write docs/compatibility.md from the table that the tests run
	PYTHONPATH=tests $(BIN)/python -m modes.table

# Every name of our own must be found (-n), and a warning is an error. Needs no network once Sphinx is installed.
docs: .venv/.docs  ## the site: build/docs/index.html; about 20 seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -n -W --keep-going -b html docs build/docs

tutorial: $(STAMP)  ## run the code of docs/tutorial.md, and take its pictures; needs Chromium; about half a minute
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tutorial.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-js:  ## the panels' JavaScript with eslint, which npx asks npm for; nothing else needs node
	npx --yes eslint@9.39.1 lightning_calib/panels

types: $(STAMP)
	$(BIN)/mypy

release-check:  ## build, twine check, the wheel in environments of its own, which are removed; before a release; about 3 minutes
	$(PYTHON) benchmarks/release_check.py

screenshots: $(STAMP)  ## train, and take the pictures of docs/gradients-tab.md; needs Chromium; about 2 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/screenshots.py

gallery: $(STAMP)  ## run the examples and what goes wrong, and take the pictures of docs/gallery.md; needs Chromium; about 8 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gallery.py

# In an environment of its own, with the packages that are measured beside. timm without what it depends on: its torchvision
# must fit torch to the build, and only one file of it is loaded.
bench:  ## what callbacks cost, beside the alternatives: results, docs/performance.md; about 20 minutes, nothing else meanwhile
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks --save

bench-doctors:  ## other packages that diagnose training runs and our report on the same planted runs; about 8 minutes
	$(PYTHON) -m venv .venv-doctors
	.venv-doctors/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' torchmortem==0.1.1 training-doctor==0.1.0
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 .venv-doctors/bin/python -W ignore benchmarks/doctors.py

bench-tab: $(STAMP)  ## how long the "Gradients" tab takes until the verdict, until everything, to paint; needs Chromium; about a minute
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tab.py

cost: $(STAMP)  ## write tests/cost.json anew: how many operations a step of each callback takes
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m helpers.cost_table

bench-rates: $(STAMP)  ## final loss against initial learning rate, plain and with each rule; about 11 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning_rates.py --plots docs

bench-clip-find: $(STAMP)  ## fits with what clip_find suggests, beside a grid: the table of docs/how-to/clip-value.md; about 3 minutes
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m benchmarks.clip_find --page

bench-spikes: $(STAMP)  ## twenty planted blow-ups, five seeds, five ways: results, and the table of docs/training-spikes.md
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m benchmarks.spikes --save --page

bench-shadows: $(STAMP)  ## what shadows predict beside real second runs, and what they cost: the tables of docs/how-to/shadow.md; about 8 minutes
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m benchmarks.shadows --page

# DATA=DIR for the real sets, QUICK=1 for five minutes to see that it runs, SEEDS=B for the second set.
study: $(STAMP)  ## where clipping helps: runs what benchmarks/results/study.csv does not have yet, on two processes; half an hour a set
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.study $(if $(QUICK),--quick) $(if $(DATA),--data-dir $(DATA)) $(if $(SEEDS),--seeds $(SEEDS))

study-report: $(STAMP)  ## docs/evidence.md and its plots from the results of `make study`
	$(BIN)/python -m benchmarks.study.report

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

.venv/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-* dist build
