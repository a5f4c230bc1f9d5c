# Every verb there is; CI calls the same ones.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CONFIG ?= development
OTHERS := tests --ignore=tests/faults --ignore=tests/deploy
# Where an image forbids to keep bytecode, every start of a service would compile it anew, and every worker all the tests.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The key of this machine's development service; pre-shared, so that a second run can print the line again.
.env: | $(INSTALLED)
	@touch $@ && chmod 600 $@

run: $(INSTALLED) .env ## Set up everything and start the service with the development configuration
	@grep -q '^METRICS_API_KEY_DEFAULT=' .env || \
	  $(BIN)/python -c 'import secrets; print("METRICS_API_KEY_DEFAULT=dev_" + secrets.token_urlsafe(32))' >> .env
	@set_in() { sed -n "s/^$$1=//p" .env | tr -d "\"'" | tail -n 1; }; \
	key=$$(set_in METRICS_API_KEY_DEFAULT); \
	port=$${METRICS_SERVICE_PORT:-$$(set_in METRICS_SERVICE_PORT)}; at=http://localhost:$${port:-8890}; \
	shown=$${OTEL_PROMETHEUS_PORT:-$$(set_in OTEL_PROMETHEUS_PORT)}; \
	database=$${SQLITE_DB_PATH:-$$(set_in SQLITE_DB_PATH)}; \
	printf 'Push a first metric, from another terminal:\n\n%s\n\nSee it counted, and find it stored:\n\n%s\n%s\n\n' \
	  "curl -X POST $$at/metrics -H 'Content-Type: application/json' -H 'X-API-Key: $$key' -d '{\"service\": \"test\", \"metrics\": [{\"type\": \"auth_request\", \"value\": 1.0}]}'" \
	  "curl -s http://localhost:$${shown:-9465}/metrics | grep ^mcp_auth_requests_total" \
	  "curl -X POST $$at/flush -H 'X-API-Key: $$key'; sqlite3 $${database:-dev_metrics.db} 'SELECT * FROM metrics'"
	@exec $(BIN)/metrics-service run --config $(CONFIG) --env-file .env

test: $(INSTALLED) ## Set up everything and run the tests
	$(BIN)/pytest $(OTHERS) --numprocesses auto --dist worksteal

deploy: $(INSTALLED) ## Check what deploys the service with the tools that will read it (Debian's packages)
	$(BIN)/pytest tests/deploy --numprocesses auto --dist loadfile --no-loadscope-reorder

faults: $(INSTALLED) ## Kill, damage and starve a real service, and count what is left
	@rm -f build/figures.txt
	FIGURES=build/figures.txt $(BIN)/pytest tests/faults -m "not alone" --numprocesses auto --dist loadfile --no-loadscope-reorder
	FIGURES=build/figures.txt $(BIN)/pytest tests/faults -m alone

soak: $(INSTALLED) ## The long form of the same: hundreds of kills and power cuts, an hour or more
	@rm -f build/soak.txt build/figures.txt
	@# All of it, whatever fails on the way.
	export SOAK=1 FIGURES=build/figures.txt; failed=0; \
	TMPDIR=/dev/shm $(BIN)/pytest tests/pipeline/test_journal_model.py --numprocesses 2 --timeout 7200 || failed=1; \
	$(BIN)/pytest tests/faults -m "not alone" --timeout 7200 --numprocesses auto --dist loadfile --no-loadscope-reorder || failed=1; \
	$(BIN)/pytest tests/faults -m alone --timeout 7200 || failed=1; \
	exit $$failed

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure against the bare server and bare SQLite (needs wrk)
	$(BIN)/python -m bench

sbom: ## Write what the service is made of to sbom.json, as CycloneDX (needs the network)
	$(PYTHON) -m venv build/sbom && build/sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	build/sbom/bin/cyclonedx-py requirements requirements.lock --output-file sbom.json

watch: $(INSTALLED) ## Run the tests whenever a file changes
	$(BIN)/watchfiles "$(BIN)/pytest -q -x $(OTHERS)" pipeline plugins config tests

docs: $(INSTALLED) ## Write the generated pages of docs/ anew
	$(BIN)/python -m docs.generate

.PHONY: help run test deploy faults soak lint bench sbom watch docs
