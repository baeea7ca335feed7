# Everything that is installed goes to .venv, build and two folders node_modules, once; `make clean`
# removes it. Debian's packages are the exception: `make test` and `make bench-tools` install them, if
# root runs it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PYTEST := $(BIN)/python -m gevent.monkey --module pytest
SUITE := PATH="$$PATH:/usr/sbin" $(PYTEST)

# Modules whose tests are long and add nothing to the coverage, and one part of the live tests: so all
# three parts take about the same time.
SLOW_MODULES := tests/test_access_matrix.py tests/test_twins.py
BESIDE := $(patsubst %,tests/live/test_%.py,access browser_access dashboard demo_page deploy docs_site \
	doctor examples malformed presence proxies publish readme reference request_ids schemathesis \
	snippets upgrades uploads)

RUN_READY := .venv/.requirements
DEV_READY := .venv/.requirements-dev
NODE_READY := tests/live/node_modules/.ready
PEERS_READY := build/peers/.ready
PEER_NODE_READY := bench/peers/node_modules/.ready
PEER_PACKAGES := libnginx-mod-nchan pushpin
BENCH := PATH="$$PATH:/usr/sbin" $(BIN)/python -m bench

# What the live tests start, each with the Debian package that brings it.
TOOLS := curl:curl chromium:chromium chromedriver:chromium-driver nginx:nginx node:nodejs npm:npm \
	cc:gcc,libc6-dev promtool:prometheus caddy:caddy systemd-analyze:systemd ip:iproute2

# An environment whose Python has gone, by an upgrade or a move, is made anew and filled again.
$(shell test -x $(BIN)/python || rm -rf .venv)

.DEFAULT_GOAL := help
.PHONY: help run test test-modules test-live test-beside test-long image chaos pictures check format clean tools
.PHONY: bench bench-quick bench-tools check-speed


help: ## show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

run: $(RUN_READY) ## serve on http://127.0.0.1:8000 with a private Valkey; ARGS="--port 8001 --workers 2"
	@exec $(BIN)/python -m service serve $(ARGS)

example-%: $(RUN_READY) ## start one of examples/: make example-chat, then open http://127.0.0.1:8011/
	@exec $(BIN)/python -m examples.$*

# The whole suite is three parts side by side, which mostly wait; a part of it can't reach the coverage
# of all, so that is not asked of it. What they need is there before (-o): else make may start two of
# them only when the third has ended.
test: $(DEV_READY) $(NODE_READY) ## run the tests and measure coverage; ARGS="-k hub" runs a part
	$(if $(ARGS),$(SUITE) $(ARGS),@$(MAKE) --no-print-directory -j3 -o $(DEV_READY) -o $(NODE_READY) \
		test-live test-modules test-beside)

test-modules: $(DEV_READY)
	$(SUITE) --cov --ignore tests/live $(addprefix --ignore=,$(SLOW_MODULES))

test-live: $(DEV_READY) $(NODE_READY)
	$(SUITE) tests/live $(addprefix --ignore=,$(BESIDE))

test-beside: $(DEV_READY) $(NODE_READY)
	$(SUITE) $(SLOW_MODULES) $(BESIDE)

test-long: $(DEV_READY) $(NODE_READY) ## run the tests that need minutes each
	$(SUITE) -m long --timeout 1800 $(ARGS)

image: $(DEV_READY) ## build the container's image, start it and ask it; needs docker or podman
	$(SUITE) -m long -rs --timeout 1800 tests/live/test_image.py

# Each run prints its seed; the same seed breaks the same things at the same times.
chaos: $(DEV_READY) ## break everything for half an hour under load; SECONDS=60 CLIENTS=200 SEED=7
	@exec $(BIN)/python -W error -m tests.chaos --seconds $(or $(SECONDS),1800) \
		--clients $(or $(CLIENTS),1000) $(if $(SEED),--seed $(SEED))

pictures: $(DEV_READY) ## take the pictures of docs/pictures anew, in six minutes; ARGS="--seconds 30"
	@exec $(BIN)/python -W error -m gevent.monkey --module tests.pictures $(ARGS)

# docs/benchmark.md says what is measured, and how.
bench: $(DEV_READY) ## compare with other servers, 90 minutes; ARGS="--tests A B --servers Pushline limit"
	@$(BENCH) $(ARGS)

bench-quick: $(DEV_READY) ## the same in three minutes, small and with few servers
	@$(BENCH) --size quick $(ARGS)

check-speed: $(DEV_READY) ## fail if Pushline has become 15 % slower; ARGS=--record sets what is normal
	@$(BIN)/python -m bench.speed $(ARGS)

bench-tools: tools $(PEERS_READY) ## install the servers that Pushline is compared with
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
		apt-get -qq update && \
		apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $(PEER_PACKAGES) >/dev/null; \
	else \
		echo "SKIPPED: as root, on Debian: apt-get install --no-install-recommends $(PEER_PACKAGES)"; \
	fi
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(PEER_NODE_READY); fi

check: $(DEV_READY) ## lint, formatting, types, security: looks, changes nothing
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m bandit --configfile pyproject.toml --quiet --recursive service
	$(BIN)/python -m tests.audit

format: $(DEV_READY) ## format the code and mend what ruff can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Named phony beside its rule: docs/ is also a folder.
.PHONY: docs
docs: $(DEV_READY) ## build the documentation as a site: build/docs/index.html
	@$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

clean: ## remove what was installed, caches and reports
	rm -rf .venv build tests/live/node_modules bench/peers/node_modules .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pushline needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "This Python lacks venv: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@rm -rf .venv
	$(PYTHON) -m venv .venv

$(RUN_READY): requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	@touch $@

$(DEV_READY): requirements-dev.txt $(RUN_READY)
	$(PIP) -r requirements-dev.txt
	@touch $@

$(PEERS_READY): bench/peers/requirements.txt | $(BIN)/python
	$(BIN)/python -m venv build/peers
	build/peers/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

$(PEER_NODE_READY): bench/peers/package-lock.json
	cd bench/peers && npm ci --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

# Not npm --prefix, which would look for npm's global settings (a company's certificates) there.
$(NODE_READY): tests/live/package-lock.json | tools
	@if command -v npm >/dev/null; then \
		echo "npm ci, in tests/live" && cd tests/live && \
		npm ci --no-audit --no-fund --no-update-notifier --loglevel=error && touch ../../$@; \
	else \
		echo "SKIPPED: no npm, so no tests with the EventSource of Node.js"; \
	fi

# RUNLEVEL=1 keeps Debian from starting nginx as a service of the machine.
tools:
	@PATH="$$PATH:/usr/sbin"; names= packages=; \
	for tool in $(TOOLS); do \
		command -v $${tool%%:*} >/dev/null && continue; \
		names="$$names $${tool%%:*}" packages="$$packages $$(echo $${tool#*:} | tr , " ")"; \
	done; \
	if [ -z "$$names" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "Installing for the live tests:$$packages"; \
		export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
		apt-get -qq update && \
		apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $$packages >/dev/null && exit 0; \
	fi; \
	echo "SKIPPED: the live tests that need$$names (Debian: apt-get install$$packages)"
