# Every verb works on a bare machine: the first one makes .venv.
# `make help` lists them.

PYTHON ?= python3
PRESET ?= cpu
WORKERS ?= auto

RUN := .venv/bin/python
# Tests start many processes, which would each compile our sources anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(RUN) -m pytest \
  --numprocesses=$(WORKERS) --maxprocesses=8 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: clean demo docs format help lint lock peers test test-slow types
.PRECIOUS: out/peers/%/.stamp

help:  ## List the verbs.
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

demo: .venv/.stamp  ## Train, merge and report on this machine, in minutes.
	$(RUN) -m experiments.reproduce --table=arithmerge --preset=cpu \
	  --workdir=out/arithmerge-cpu

table-%: .venv/.stamp  ## Make the table of that name; PRESET=smoke|cpu|all|full.
	$(RUN) -m experiments.reproduce --table=$* --preset=$(PRESET) \
	  --workdir=out/$*-$(PRESET)

test: .venv/.stamp  ## Run the tests and the examples in docstrings.
	$(PYTEST) -m 'not slow'

test-slow: .venv/.stamp  ## Run all tests, the slow ones too.
	$(PYTEST)

lint: .venv/.stamp  ## Check format, style and types.
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyrefly check

types: .venv/.stamp  ## Check types alone.
	$(RUN) -m pyrefly check

format: .venv/.stamp  ## Rewrite files in the house format.
	$(RUN) -m ruff check --fix --exit-zero --quiet .
	$(RUN) -m ruff format .

docs: .venv/.stamp  ## Make the tables in the pages from the code.
	$(RUN) -m docs.tables

lock: .venv/.stamp  ## Resolve versions anew; UPGRADE=--upgrade for the newest.
	@$(RUN) -c "import uv" 2>/dev/null || $(RUN) -m pip install --quiet uv
	$(RUN) -m uv lock $(UPGRADE)
	$(RUN) .ci/strip_lock.py uv.lock
	$(RUN) -m uv export --quiet --frozen --format=requirements-txt --no-hashes \
	  --no-emit-project --no-annotate --no-header --output-file=requirements.lock

peers: .venv/.stamp out/peers/mergekit/.stamp out/peers/fusion-bench/.stamp  ## Compare merges with mergekit and FusionBench.
	$(PYTEST) tests/peers
	$(RUN) -m third_party.peers.time_merges

out/peers/%/.stamp: third_party/peers/%.txt
	$(PYTHON) -m venv out/peers/$*
	out/peers/$*/bin/pip install --quiet --requirement $<
	@touch $@

# nanoGPT is no package: its source lies in its environment.
out/peers/nanogpt/.stamp: third_party/peers/nanogpt.txt
	$(PYTHON) -m venv out/peers/nanogpt
	out/peers/nanogpt/bin/pip install --quiet --requirement $<
	test -d out/peers/nanogpt/nanoGPT || git clone --quiet \
	  https://github.com/karpathy/nanoGPT out/peers/nanogpt/nanoGPT
	git -C out/peers/nanogpt/nanoGPT checkout --quiet \
	  3adf61e154c3fe3fca428ad6bc3818b27a3b8291
	@touch $@

clean:  ## Remove what was installed and cached; results in out/ stay.
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv, where it is on the PATH, installs the same pins faster than pip.
.venv/.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Arithmerge needs Python 3.11 or newer, but $(PYTHON) is not;" \
	    "name one that is: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@if command -v uv >/dev/null; then install='uv pip install'; \
	  export VIRTUAL_ENV="$(CURDIR)/.venv"; \
	  else install="$(RUN) -m pip install"; fi; \
	  echo "Installing the locked versions into .venv"; \
	  $$install --quiet --requirement requirements.lock && \
	  $$install --quiet --no-deps --editable .
	@touch $@
