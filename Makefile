PYTHON ?= python3
VENV ?= .venv
ONNXRUNTIME ?= cpu
JOBS ?= auto
READY = $(VENV)/ready
# One thread a process (tests/conftest.py) and a process a core; each takes about 1 GiB, so 8 at most unless JOBS says more
PYTEST = $(VENV)/bin/python -m pytest -n $(JOBS) --maxprocesses $(if $(filter auto,$(JOBS)),8,$(JOBS)) --dist worksteal

.PHONY: demo test test-all check clean

demo: $(READY)  ## distill the embedded digits into ten images, and score them
	$(VENV)/bin/ncfmkit distill digits --baselines random,herding,whole

test: $(READY)  ## the tests that are marked neither slow nor gpu
	$(PYTEST)

test-all: $(READY)  ## every test that needs no GPU
	$(PYTEST) -m 'not gpu'

check: $(READY)  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ncfmkit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[$(ONNXRUNTIME),dev]'
	touch $@

clean:
	rm -rf $(VENV)
