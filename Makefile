# make run    set up .venv once and serve on port 5092
# make test   lint, types, tests
# make bench  time the whole service beside the bare model, as ratios; MODEL=english: with the small English model
# make cpu    time fp32, bf16 and int8 on this processor, with random weights as large as the real ones
# make gpu    a GPU in 8 minutes: correctness, speed, memory, HTTP; DRY_RUN=1 walks through it on a CPU
# make connections  healthy clients beside 300 slow ones
# make realtime  live sessions at the speed of speech: delay of words, and what the text is worth
# make fuzz   100,000 damaged recordings and as many damaged requests
# make fire   an hour of mixed load while the server is killed, starved and lied to
# make fuzz-api  2,000 generated requests and more, each answer as /openapi.json describes it
# make fidelity  every word of the 12-minute recordings, over chunk lengths, overlaps and formats
# make accuracy  word error rates on recordings of people, by source: one pass beside chunks
# make screenshots  take the pictures of docs/screenshots anew
# make audit  look for known vulnerabilities of what constraints.txt pins; asks pypi.org
# make licences  check that every installed package may be used and passed on
# make sbom   list every installed package in sbom.json, as CycloneDX

PYTHON ?= python3
# Processes that run tests. Many tests wait for servers and clocks, so more than there are cores.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
NODE_CLIENT := tests/node/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tools that look at packages have an environment of their own: they would else be part of what they look at.
AUDIT_VENV := .venv-audit
AUDIT := $(AUDIT_VENV)/bin
# Not looked at: a tool of the tests whose metadata names no licence; its file LICENSE is MIT's.
UNNAMED_LICENCES := axe-playwright-python
# "NVIDIA" are the terms of the CUDA libraries: read them before you pass on an image (docs/supply-chain.md).
ALLOWED_LICENCES := MIT;Apache;BSD;ISC;MPL;Python;PSF;Zope;Artistic;LGPL-2.1;NVIDIA

.PHONY: run test lint bench cpu gpu connections realtime fuzz fire fuzz-api fidelity accuracy screenshots audit licences sbom clean

run: $(VENV)/.runtime
	@exec $(BIN)/python app.py

# Files side by side, each in one process: its tests share servers.
test: lint $(NODE_CLIENT)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

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

fuzz-api: export SCHEMATHESIS_EXAMPLES ?= 150
fuzz-api: export SCHEMATHESIS_MIN ?= 2000
fuzz-api: export SCHEMATHESIS_SEED ?= $(shell date +%s)
fuzz-api: $(VENV)/.development
	@$(BIN)/python -m pytest --timeout 3600 tests/openapi/test_schemathesis.py

fidelity: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fidelity

accuracy: $(VENV)/.development
	@$(BIN)/python -m benchmarks.accuracy

fuzz: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fuzz

fire: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fire

realtime: $(VENV)/.development
	@$(BIN)/python -m benchmarks.realtime $(if $(MODEL),--model $(MODEL))

connections: $(VENV)/.development
	@$(BIN)/python -m benchmarks.connections

# --strict: a package that could not be looked up is a failure. Without it an audit that reached nobody "finds" nothing.
audit: $(AUDIT_VENV)/.installed
	@$(AUDIT)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

# Part of a licence's name is enough; where there is a choice, one of them is.
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

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } 2>/dev/null \
		|| { echo "$(PYTHON) can't make a virtual environment: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.txt constraints.txt
	@echo "installing the packages of requirements.txt into $(VENV): some minutes, once"
	@$(PIP) --requirement requirements.txt
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.txt
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

# Without Node, or where npm finds no registry, the tests of OpenAI's package for it are skipped.
$(NODE_CLIENT): tests/node/package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --prefix tests/node --loglevel=error >/dev/null && touch $@ \
			|| echo "npm ci in tests/node failed: its tests are skipped"; \
	fi

clean:
