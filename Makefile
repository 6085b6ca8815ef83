# Every target sets itself up in .venv: it needs Python 3.11 or newer, and nothing else. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
TYPES := $(PY) -m mypy --strict --no-error-summary curate
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# the first of these that is 3.11 or newer; `make PYTHON=/path/to/python demo` for another
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

DEMO := curate-demo
CORPUS ?=
PHOTOS ?=
ROWS ?=
PATCHES ?=
SECONDS ?= 60
TARGETS ?=

.PHONY: help demo test test-slow lint quick-lint bench fuzz weights ldm-weights check-fresh clean
.NOTPARALLEL: # one pip at a time in one environment
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/run.stamp ## the main job on the sample photographs, CPU only, in a few minutes
	@$(BIN)/curate demo $(DEMO)

# Types are checked beside the tests, which leave a processor idle now and then; what mypy says comes last. Bytecode is
# written even where the environment forbids it: tests start many processes, and each would compile curate.
test: quick-lint ## every check that CI runs: style, types, layers, schemas, tests
	@said=$$(mktemp) && trap 'rm -f "$$said"; kill $$types 2>/dev/null' EXIT && trap 'exit 1' INT TERM && types=; \
	echo "$(TYPES) &"; $(TYPES) >"$$said" 2>&1 & types=$$!; \
	echo "$(PY) -m pytest -n 2"; PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n 2; tests=$$?; \
	wait $$types; typed=$$?; cat "$$said"; exit $$((tests | typed))

test-slow: $(VENV)/slow.stamp ## the tests that take minutes
	$(PY) -m pytest -m slow

lint: quick-lint ## style, types, layers, schemas, docs/commands.md
	$(TYPES)

quick-lint: $(VENV)/dev.stamp
	$(PY) -m ruff check -q .
	$(PY) -m ruff format -q --check .
	$(BIN)/lint-imports --no-logo
	$(PY) -m curate.schema --check
	$(PY) docs/commands.py --check

bench: $(VENV)/run.stamp ## measure how fast every step is on this machine: make bench PHOTOS=folder ROWS="ingest score"
	$(PY) benchmarks/bench.py $(ROWS) $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(PATCHES),--patches $(PATCHES))
	$(if $(ROWS),,$(PY) benchmarks/training.py)

fuzz: $(VENV)/fuzz.stamp ## inputs made wrong for all that parses: make fuzz SECONDS=60 TARGETS="manifest image_png"
	$(PY) fuzz/run.py --seconds $(SECONDS) $(TARGETS)

weights: $(VENV)/run.stamp ## train the bundled SRCNN weights again: make weights CORPUS="photos more-photos"
	@test -n "$(CORPUS)" || { echo "make weights needs CORPUS=folder/of/photographs" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" sh pipelines/srcnn_weights.sh weights-output $(CORPUS)

ldm-weights: $(VENV)/run.stamp ## train the bundled latent diffusion model again: make ldm-weights SET5=Set5 CORPUS="photos"
	@test -n "$(CORPUS)" -a -n "$(SET5)" || { echo "make ldm-weights needs SET5=folder CORPUS=folder/of/photographs" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" sh pipelines/ldm_weights.sh ldm-weights-output $(SET5) $(CORPUS)

check-fresh: ## test and demo in a fresh clone of the last commit, with an environment of its own
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && git clone -q . "$$dir/curate" && make -C "$$dir/curate" test demo

clean: ## remove what make made, except .venv
	rm -rf $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find curate tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments: again only when what they are made from has changed.
$(VENV)/dev.stamp: EXTRA := [dev]
$(VENV)/dev.stamp: HOW := --no-compile # what the tests import is compiled as they do; the rest is most of it
$(VENV)/slow.stamp: EXTRA := [dev,browser]
$(VENV)/fuzz.stamp: EXTRA := [fuzz]
$(VENV)/run.stamp $(VENV)/dev.stamp $(VENV)/slow.stamp $(VENV)/fuzz.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "curate needs Python 3.11 or newer; found none. make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "curate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)" >&2; exit 1; }
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip -q --disable-pip-version-check install $(HOW) -c constraints.txt -e ".$(EXTRA)"
	@touch $@
