# make demo | test | test-all | fuzz | soak | bench | docs | lint | audit | format
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# tests and the demo call the launcher by name, so the environment's commands must come first
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-all fuzz soak bench docs lint audit format install
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	python shards/build.py synthetic --variant source --out data/drawn_source --overwrite
	python shards/build.py synthetic --variant target --out data/drawn_target --overwrite
	deepspeed pretrain/run.py --ds_config ds_configs/zero2.json

test: install
	python -m pytest -n 2 -m "not slow"

test-all: install
	python -m pytest -n 2

# damaged shards drawn by what they reach in the reader, for five minutes: `make fuzz FUZZ_SECONDS=60`
FUZZ_SECONDS ?= 300
fuzz: install
	python -m pip install --quiet --editable '.[fuzz]'
	mkdir -p data/fuzz
	python -m tests.fuzz -max_total_time=$(FUZZ_SECONDS) data/fuzz tests/fuzz/corpus

# random kills on random layouts for an hour, beside a run that is left alone: `make soak SOAK_MINUTES=5`
SOAK_MINUTES ?= 60
soak: install
	python -m tests.soak.soak --minutes $(SOAK_MINUTES)

# about half an hour: `make bench BENCH="--data data/hm --weights WEIGHTS --recbole PYTHON"`
bench: install
	python -m benchmarks $(BENCH)

# the site, into site/; `mkdocs serve` shows it while one writes
docs: install
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lint: install
	ruff check .
	ruff format --check .
	mypy
	python -m pytest tests/test_layers.py

# known vulnerabilities of what is installed; fails where the database knows a package not or cannot be asked
audit: install
	test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit)
	python -m pip freeze --exclude-editable > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)-audit/installed.txt

format: install
	ruff check --fix .
	ruff format .
