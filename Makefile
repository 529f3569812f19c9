# `make demo` and `make test` set up all they need by themselves, on a fresh Debian machine too.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
ORACLE := $(CURDIR)/.venvs/oracle
INVOKE := $(BIN)/invoke
export LEAN_ORACLE_PYTHON ?= $(ORACLE)/bin/python
# Test processes with two OpenMP threads each would wait for one another on a machine of two cores.
export OMP_NUM_THREADS ?= 1
# Many tests wait for processes and links: a worker more than there are cores took 18 % less time of them.
PYTEST := -n $(shell expr $$(nproc) + 1)

.PHONY: help demo setup test test-all reliability check clean

help:  ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .make/laptop .make/tools  ## the whole loop on this machine: sync, verify, pack, serve, measure, pull
	$(INVOKE) demo

setup: .make/test .make/tools .make/oracle  ## everything the tests need

test: setup  ## the tests, without the slow ones
	$(BIN)/python -m pytest $(PYTEST) -m "not slow"

test-all: test .make/browser  ## every test: after the others, the slow ones
	$(BIN)/python -m pytest $(PYTEST) -m slow

reliability: setup  ## every fault and security test, and docs/reliability.md from them
	FAULT_TABLE=docs/reliability.md $(BIN)/python -m pytest $(PYTEST) -m "fault or security"

check: .make/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

.make/laptop: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[ui]
	@mkdir -p .make && touch $@

.make/test: .make/laptop
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[host,test,ui]
	@mkdir -p .make && touch $@

# The peers and oracles live apart: transformers mistakes our `kernels` for another package of that name.
.make/oracle: tests/oracle/requirements.txt constraints.txt
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	@mkdir -p .make && touch $@

# rsync and sshd are the transport's peers; only root can install them, others are told.
.make/tools:
	@missing=""; \
	command -v rsync >/dev/null || missing="$$missing rsync"; \
	command -v ssh >/dev/null || missing="$$missing openssh-client"; \
	[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null || missing="$$missing openssh-server"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	  else echo "not installed:$$missing (install them for the full transport and its tests)"; fi; \
	fi
	@mkdir -p .make && touch $@

# For the page's test alone. The distribution's build: it brings its own libraries, and its security updates.
.make/browser:
	@if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
	      || echo "chromium cannot be installed here: the page's test in a browser will be skipped"; \
	  else echo "not installed: chromium (install it for the page's test in a browser)"; fi; \
	fi
	@mkdir -p .make && touch $@

clean:  ## stop the embedded host and remove what make and the host made
	-@[ -x $(INVOKE) ] && $(INVOKE) remote.down
	rm -rf .make .venv .venvs .lean build *.egg-info
