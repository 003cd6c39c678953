# softiommu: `make run` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
GUESTS := .guests
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd -P)

ifneq ($(CURDIR),$(ROOT))
# `make -f elsewhere/Makefile test` means the same as `make -C elsewhere test`.
.PHONY: help run test guests lint bench clean
help run test guests lint bench clean:
	@"$(MAKE)" --no-print-directory -C "$(ROOT)" $@
else

.PHONY: help run test guests lint bench clean

help:
	@echo "make run     set up, and run an example program on a machine in user space"
	@echo "make test    set up, and run the tests"
	@echo "make guests  prepare what guests boot, of Debian's packages"
	@echo "make lint    types, style, and which module may import which"
	@echo "make bench   measure"
	@echo "make clean   remove the environment and the guests"

run: $(VENV)/run.stamp
	$(BIN)/softiommu run --machine vtd -- $(BIN)/python examples/first_dma.py

test: $(VENV)/test.stamp
	$(BIN)/pytest -n 2

# Its packages come by the machine's apt. What is made stays until guests/ changes.
guests: $(GUESTS)/versions $(GUESTS)/qemu11/versions

$(GUESTS)/versions: $(filter-out guests/qemu11.py,$(wildcard guests/*.py)) guests/init | $(BIN)/python
	$(BIN)/python guests/prepare.py $(GUESTS)

# QEMU 11, for nesting: with everything it loads, in a folder of its own.
$(GUESTS)/qemu11/versions: guests/qemu11.py guests/packages.py | $(BIN)/python
	$(BIN)/python guests/qemu11.py $(GUESTS)/qemu11

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test.stamp
	@for script in bench/*.py; do echo "== $$script" >&2; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(GUESTS)

# Half an environment is worse than none: what fails here leaves nothing behind.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "softiommu needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) -V 2>&1)" >&2; \
	  echo "hint: name another one, as in: make PYTHON=python3.12 run" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "hint: on Debian and Ubuntu, the venv module is in the package python3-venv" >&2; exit 1; }

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -e .
	@$(BIN)/python -m compileall -q src/softiommu
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet -e '.[test,lint]'
	@touch $@

endif
