# make run    set up .venv once and serve on port 5092
# make test   lint, types, tests
# make cluster  the tests that start a Ray cluster with models: replicas that are killed, archives
# make check  lint, types, and the tests that need no server and no browser: some 3 minutes
# make bench  time the service relative to the bare model; MODEL=english: with the small English model
# make cpu    time fp32, bf16 and int8 on this CPU, with random weights of the full-size model's shape
# make gpu    test a GPU in 8 minutes: correctness, speed, memory, HTTP; DRY_RUN=1 runs it on a CPU
# make connections  normal clients while 300 slow ones are connected
# make realtime  live sessions at the speed of speech: delay of words, and error rates
# make fuzz   100,000 damaged recordings and as many damaged requests
# make fire   soak test: an hour of mixed load with injected faults
# make fuzz-api  2,000 generated requests and more; check the responses against /openapi.json
# make fidelity  compare every word of the 12-minute recordings, over chunk lengths, overlaps and formats
# make accuracy  word error rates on recordings of people, by source: in one pass and in chunks
# make diarization  who spoke: error rates on simulated conversations
# make keywords  names and terms recognised with and without keywords[], and what a list costs
# make clients  run the recipes of docs/clients.md with the clients' packages, 1.2 GB; needs Python 3.12
# make screenshots  take the pictures of docs/screenshots again
# make audit  check the packages of constraints.txt for known vulnerabilities, at pypi.org
# make licences  check that the licence of every installed package allows use and redistribution
# make sbom   list every installed package in sbom.json, as CycloneDX

PYTHON ?= python3
# Test processes. Many tests wait for servers, so more processes than cores.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
# The packages of the clients that docs/clients.md describes, in an environment of their own.
CLIENTS_VENV := .venv-clients
CLIENTS_PYTHON ?= python3.12
NODE_CLIENT := tests/node/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tools that inspect packages are in an environment of their own, so that they do not inspect themselves.
AUDIT_VENV := .venv-audit
AUDIT := $(AUDIT_VENV)/bin
# Excluded: a test tool whose metadata names no licence; its file LICENSE is MIT's.
UNNAMED_LICENCES := axe-playwright-python
# "NVIDIA" stands for the terms of the CUDA libraries: read them before you redistribute an image (docs/supply-chain.md).
ALLOWED_LICENCES := MIT;Apache;BSD;ISC;MPL;Python;PSF;Zope;Artistic;LGPL-2.1;LGPL-3.0;NVIDIA

.PHONY: run test cluster check lint bench cpu gpu connections realtime fuzz fire fuzz-api fidelity accuracy diarization keywords clients screenshots audit licences sbom clean

run: $(VENV)/.runtime
	@exec $(BIN)/python app.py

# Files run in parallel, each in one process, as its tests share servers.
test: lint $(NODE_CLIENT)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25 -m "not cluster"

cluster: lint
	@$(BIN)/python -m pytest -m cluster

check: lint
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not integration"

lint: $(VENV)/.development
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

bench: $(VENV)/.development
	@$(BIN)/python -m benchmarks.bench $(if $(MODEL),--model $(MODEL))

cpu: $(VENV)/.development
	@$(BIN)/python -m benchmarks.cpu

gpu: $(VENV)/.development
	@$(BIN)/python -m benchmarks.gpu $(if $(DRY_RUN),--dry-run) $(if $(OUTPUT),--output "$(OUTPUT)")

screenshots: $(VENV)/.development
	@$(BIN)/python -m pytest tests/page/test_page_journey.py --screenshots
	@PYTHONPATH=. $(BIN)/python tests/animation.py

clients: $(VENV)/.development $(CLIENTS_VENV)/.installed $(NODE_CLIENT)
	@$(BIN)/python -m pytest tests/clients

fuzz-api: export SCHEMATHESIS_EXAMPLES ?= 150
fuzz-api: export SCHEMATHESIS_MIN ?= 2000
fuzz-api: export SCHEMATHESIS_SEED ?= $(shell date +%s)
fuzz-api: $(VENV)/.development
	@$(BIN)/python -m pytest --timeout 3600 tests/openapi/test_schemathesis.py

fidelity: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fidelity

accuracy: $(VENV)/.development
	@$(BIN)/python -m benchmarks.accuracy

diarization: $(VENV)/.development
	@$(BIN)/python -m benchmarks.diarization

keywords: $(VENV)/.development
	@$(BIN)/python -m benchmarks.keywords

fuzz: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fuzz

fire: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fire

realtime: $(VENV)/.development
	@$(BIN)/python -m benchmarks.realtime $(if $(MODEL),--model $(MODEL))

connections: $(VENV)/.development
	@$(BIN)/python -m benchmarks.connections

# --strict: a package that could not be looked up is a failure, otherwise an audit without a network would succeed.
audit: $(AUDIT_VENV)/.installed
	@$(AUDIT)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

# Parts of licence names match; of several licences, one is enough.
licences: $(AUDIT_VENV)/.installed $(VENV)/.runtime
	@$(AUDIT)/pip-licenses --python=$(BIN)/python --partial-match --allow-only="$(ALLOWED_LICENCES)" \
		--ignore-packages $(UNNAMED_LICENCES) --format=markdown --order=license

sbom: $(AUDIT_VENV)/.installed $(VENV)/.runtime
	@$(AUDIT)/cyclonedx-py environment --output-reproducible --output-file sbom.json $(BIN)/python
	@echo "sbom.json lists $$(grep -c '"purl"' sbom.json) packages"

$(AUDIT_VENV)/.installed: requirements-audit.txt
	@$(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-audit.txt
	@touch $@

$(CLIENTS_VENV)/.installed: tests/clients/requirements.txt
	@$(CLIENTS_PYTHON) -m venv $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed")'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } 2>/dev/null \
		|| { echo "$(PYTHON) can't make a virtual environment: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.txt constraints.txt
	@echo "installing the packages of requirements.txt into $(VENV): some minutes, once"
	@$(PIP) --requirement requirements.txt
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.txt requirements-ray.txt
	@$(PIP) --requirement requirements-dev.txt --requirement requirements-ray.txt
	@touch $@

# Without Node, or if npm reaches no registry, the tests of OpenAI's Node package are skipped.
$(NODE_CLIENT): tests/node/package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --prefix tests/node --loglevel=error >/dev/null && touch $@ \
			|| echo "npm ci in tests/node failed: its tests are skipped"; \
	fi

clean:
