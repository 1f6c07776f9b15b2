PYTHON ?= python3
VENV ?= .venv
ONNXRUNTIME ?= cpu
READY = $(VENV)/ready

.PHONY: demo test check clean

demo: $(READY)  ## distill the embedded digits into ten images, and score them
	$(VENV)/bin/ncfmkit distill digits --baselines random,whole

test: $(READY)  ## the whole test suite but what is marked slow or gpu
	$(VENV)/bin/python -m pytest

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
