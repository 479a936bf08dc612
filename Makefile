# make run    set up .venv once and serve on port 5092
# make test   lint, types, tests
# make bench  time the whole service beside the bare model, as ratios
# make fuzz-api  2,000 generated requests and more, each answer as /openapi.json describes it
# make fidelity  every word of the 12-minute recordings, over chunk lengths, overlaps and formats

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test lint bench fuzz-api fidelity screenshots clean

run: $(VENV)/.runtime
	@exec $(BIN)/python app.py

test: lint
	@$(BIN)/python -m pytest

lint: $(VENV)/.development
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

bench: $(VENV)/.development
	@$(BIN)/python -m benchmarks.bench

screenshots: $(VENV)/.development
	@$(BIN)/python -m pytest tests/test_page_journey.py --screenshots

fuzz-api: export SCHEMATHESIS_EXAMPLES ?= 250
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

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
