# `make` lists the targets. Every target but help, lock and clean makes .venv when it is missing or out of date.

PYTHON ?= python3
MODEL ?=
FAULTS ?=

VENV  := .venv
RUN   := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# What `make lock` holds fixed beyond pyproject.toml.
PINS := torch==2.13.0 transformer-lens==3.9.0

# The stamp holds the folder it was made in: a .venv that was moved, or whose Python is gone, counts as missing.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(RUN) -c '' 2>/dev/null && test "$$(cat $(STAMP))" = "$$(pwd -P)" && echo whole),whole)
$(shell rm -f $(STAMP))
endif
endif

.PHONY: help install demo test test-browser test-faults notebooks lint bench data organisms lock clean
.DEFAULT_GOAL := help

help:
	@echo 'make install   make .venv from requirements.lock (PYTHON=python3.12 to choose an interpreter)'
	@echo 'make demo      the paper on two bundled models, with a report, into demo-out/ (MODEL=name: on another model)'
	@echo 'make test      lint, then run the tests'
	@echo 'make test-browser  the tests of reports in a real browser; installs Chromium where it can'
	@echo 'make test-faults  runs killed, disks filled, files damaged; writes fault-campaign.md (FAULTS="--kills 10": its options)'
	@echo 'make notebooks run the notebooks and keep their outputs'
	@echo 'make lint      ruff and the type checker'
	@echo 'make bench     time attribution, tracing and edits against textbook loops; compare rules of integration'
	@echo 'make data      write the minimal pairs and the organisms'"'"' training text anew, and check all data'
	@echo 'make organisms write that text and train the organisms anew (half an hour)'
	@echo 'make lock      resolve pyproject.toml into requirements.lock anew'
	@echo 'make clean     remove .venv, caches and demo-out/'

install: $(STAMP)

# Without a stamp an earlier installation may be half made: begin from nothing. With one, only bring it up to date.
$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "kn_lens needs Python 3.10 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 | tail -n 1). Name one with: make PYTHON=python3.12" >&2; exit 1; }
	@if test -f $(STAMP); then rm -f $(STAMP); else "$(PYTHON)" -m venv --clear $(VENV); fi
	$(RUN) -m pip --disable-pip-version-check install -r requirements.lock
	$(RUN) -m pip --disable-pip-version-check install --no-deps --no-build-isolation -e .
	@pwd -P > $(STAMP)

demo: install
ifeq ($(MODEL),)
	$(VENV)/bin/kn-lens reproduce tiny-causal --out demo-out/tiny-causal
	$(VENV)/bin/kn-lens reproduce tiny-masked --out demo-out/tiny-masked
	$(VENV)/bin/kn-lens report demo-out/tiny-causal demo-out/tiny-masked --out demo-out/comparison.html
else
	$(VENV)/bin/kn-lens reproduce "$(MODEL)" --out "demo-out/$(notdir $(MODEL:/=))"
endif

test: lint
	$(RUN) -m pytest

# Chromium comes from the system's packages; where they cannot be installed the tests say what is missing and skip.
test-browser: install
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  apt-get install -y -q chromium || sudo -n apt-get install -y -q chromium || \
	  echo 'No Chromium, and it cannot be installed here: install chromium or google-chrome' >&2
	$(RUN) -m pytest -rs tests/report tests/plots/test_export.py

# Some faults need root (small disks are mounted); without it the table says what was not tried.
test-faults: install
	$(RUN) -m tests.faults.campaign $(FAULTS)

notebooks: install
	$(RUN) notebooks/execute.py

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright

bench: install
	$(RUN) benchmarks/attribution.py
	$(RUN) benchmarks/tracing.py
	$(RUN) benchmarks/rome.py
	$(RUN) benchmarks/quadrature.py

data: install
	$(RUN) -m kn_lens.organisms.minimal_pairs
	$(RUN) -m kn_lens.organisms.build --corpora
	$(RUN) -m kn_lens.prompts.check data

organisms: install
	$(RUN) -m kn_lens.organisms.build

# The CUDA packages that some builds of torch need are left to torch's own metadata, so that one lock serves all builds.
lock:
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	"$(PYTHON)" -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip --disable-pip-version-check install -q uv; \
	printf '%s\n' $(PINS) > "$$tmp/pins"; \
	if test -f requirements.lock; then cp requirements.lock "$$tmp/lock"; fi; \
	"$$tmp/venv/bin/uv" pip compile -q --universal --python-version 3.10 --extra dev --constraint "$$tmp/pins" \
	  --no-config --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --output-file "$$tmp/lock" pyproject.toml; \
	grep -Ev '^(nvidia|cuda|triton)([-=]|$$)' "$$tmp/lock" > "$$tmp/lock.plain"; \
	cp "$$tmp/lock.plain" requirements.lock
	@echo 'requirements.lock is written; make install brings .venv up to it'

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache demo-out dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
