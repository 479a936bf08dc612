# make run    set up .venv once and serve on port 5092
# make test   lint, types, tests
# make bench  time the whole service beside the bare model, as ratios
# make fuzz-api  2,000 generated requests and more, each answer as /openapi.json describes it
# make fidelity  every word of the 12-minute recordings, over chunk lengths, overlaps and formats

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE_CLIENT := tests/node/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test lint bench fuzz-api fidelity clean

run: $(VENV)/.runtime
	@exec $(BIN)/python app.py

test: lint $(NODE_CLIENT)
	@$(BIN)/python -m pytest

lint: $(VENV)/.development
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

bench: $(VENV)/.development
	@$(BIN)/python -m benchmarks.bench

fuzz-api: export SCHEMATHESIS_EXAMPLES ?= 150
fuzz-api: export SCHEMATHESIS_LEAST ?= 2000
fuzz-api: export SCHEMATHESIS_SEED ?= $(shell date +%s)
fuzz-api: $(VENV)/.development
	@$(BIN)/python -m pytest --timeout 3600 tests/test_schemathesis.py

fidelity: $(VENV)/.development
	@$(BIN)/python -m benchmarks.fidelity

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
	rm -rf $(VENV) tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
