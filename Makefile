.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEV := $(VENV)/.dev
BENCHES := budgets events pages run_overhead scrape sync
LEDGER := $(CURDIR)/.cache/demo/ledger.db

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/pip:
	python3 -m venv $(VENV)

$(STAMP): pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[server]'
	@touch $@

$(DEV): pyproject.toml $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --group dev
	@touch $@

run: $(STAMP) ## Meter a bundled real sample and serve page, /metrics and API at http://127.0.0.1:9464
	@mkdir -p $(dir $(LEDGER))
	SPENDMETER_LEDGER=$${SPENDMETER_LEDGER:-sqlite:///$(LEDGER)} SPENDMETER_METRICS_ZERO_FIRST=$${SPENDMETER_METRICS_ZERO_FIRST:-0} \
	SPENDMETER_METRICS_SETTLE=$${SPENDMETER_METRICS_SETTLE:-0} $(PY) -m spendmeter.demo

test: $(DEV) parts ## Install what the tests need and run them all
	$(PY) -m pytest -n 2 --dist loadfile

check: $(DEV) lint types test ## Exactly what CI runs

parts: ## Install the real parts of the tests: Prometheus, Chromium, PostgreSQL, npm, the Collector
	@scripts/parts.sh

fmt: $(DEV) ## Format the code
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

lint: $(DEV) ## Ruff and the import contracts
	$(VENV)/bin/ruff check . && $(VENV)/bin/lint-imports --no-cache

types: $(DEV) ## mypy --strict
	$(VENV)/bin/mypy

e2e: $(DEV) parts ## Only the end-to-end tests
	$(PY) -m pytest -m e2e

gen: $(DEV) ## Write the generated reference pages
	$(PY) scripts/gen.py

docs: $(DEV) ## Build the documentation site into .cache/site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

otelcol: ## Build the small OpenTelemetry Collector that the tests run
	@scripts/build_otelcol.sh

bench: $(DEV) ## Print the benchmark tables
	@for b in $(BENCHES); do $(PY) benchmarks/$$b.py || exit 1; done

.PHONY: help run test check parts fmt lint types e2e gen docs otelcol bench
