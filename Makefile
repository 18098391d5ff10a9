# `make demo` and `make test` do all of the set-up themselves: Python >= 3.10, gcc and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/digits_js.json

.PHONY: setup demo test lint clean

setup: $(VENV)/.installed

# Editable, so Python edits need no reinstall; C++ edits do, hence csrc among the prerequisites.
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[train,eval,dev]'
	touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m deepspeed.launcher.runner fdpo_fast/train.py --config $(CONFIG) --resume
	$(BIN)/fdpo demo --config $(CONFIG)

test: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build runs
