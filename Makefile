# `make demo` and `make test` do all of the set-up themselves: Python >= 3.10, gcc and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
RIVALS := .venv-rivals
LOWEST_PYTHON ?= 3.10
CONFIG ?= configs/digits_js.json
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 --dist worksteal

.PHONY: setup demo test test-slow test-all test-versions faults rivals rehearsal lint clean

setup: $(VENV)/.installed

# Editable, so Python edits need no reinstall; C++ edits do, and modules that come or go, which change their folder.
SOURCES := pyproject.toml $(shell find csrc -type f) $(shell find fdpo_fast -name __pycache__ -prune -o -type d -print)

$(VENV)/.installed: $(SOURCES) constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[train,eval,dev]'
	$(BIN)/python -m compileall -q fdpo_fast
	touch $@

# Rounds make their own pairs, and their page is before and after.
ROUNDS = $(shell grep -qs '"rounds"' $(CONFIG) && echo yes)

demo: setup
ifeq ($(ROUNDS),)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m deepspeed.launcher.runner fdpo_fast/train.py --config $(CONFIG) --resume
	$(BIN)/fdpo demo --config $(CONFIG)
else
	$(BIN)/fdpo rounds --config $(CONFIG)
endif

test: setup
	$(PYTEST)

# What takes longer, but has its place in CI; `make test-all` leaves nothing out but what needs a GPU.
test-slow: setup
	$(PYTEST) -m "slow and not gpu"

test-all: setup
	$(PYTEST) -m "not gpu"

# The lowest versions that pyproject.toml admits, on the lowest Python: 6 GB, since old releases of torch bring CUDA.
# LOWEST_PYTHON may be a path; uv fetches a version that it does not find.
$(LOWEST)/.installed: $(SOURCES) | setup
	$(BIN)/pip install -q uv
	$(BIN)/uv venv -q --clear --python $(LOWEST_PYTHON) $(LOWEST)
	$(BIN)/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[train,eval,dev]'
	touch $@

test-versions: setup $(LOWEST)/.installed
	$(BIN)/python -m benchmarks.versions lowest=$(LOWEST)/bin/python newest=$(BIN)/python

# Other libraries' optimizers over this environment's packages; one of them is imported as bitsandbytes, before ours.
$(RIVALS)/.installed: $(VENV)/.installed
	$(BIN)/python -m venv --clear $(RIVALS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(RIVALS)/packages
	cp $(RIVALS)/packages "$$($(RIVALS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ours.pth"
	$(RIVALS)/bin/pip install -q --no-deps torchao torch-optimi bitsandbytes-cpu-fork
	touch $@

rivals: $(RIVALS)/.installed
	$(BIN)/python -m benchmarks.rivals --python $(RIVALS)/bin/python

# Whatever can happen to a run's files and configuration, and random calls of loss and optimizer: half an hour.
faults: setup
	$(BIN)/python -m tests.faults

rehearsal: setup
	$(BIN)/python -m benchmarks.gpu --rehearse

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -name "*.h" -o -name "*.cpp")

clean:
	rm -rf $(VENV) $(LOWEST) $(RIVALS) build runs
