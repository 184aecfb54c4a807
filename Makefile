# One word per command, the same at home and in CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# dvc starts the steps as `python -m ...`: the environment's Python must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run ui run-all check format test test-fast test-all faults bench techniques docs lock clean clean-all

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## make the environment in .venv from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Headstart needs Python 3.11 or later; set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	# torch first and alone: its wheels are large, and what follows then finds it in place.
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep -E '^(torch|torchvision)==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: install  ## run every experiment of params.yaml: data to registered model
	@headstart run

ui: install  ## Prefect's pages, MLflow's pages and a worker for this clone, until Ctrl-C
	@headstart ui

run-all: install  ## run one small experiment of every task, in clones of their own below .headstart/
	@examples/run-all

check: install  ## ruff, mypy --strict, import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: install  ## let ruff mend what it can
	ruff check --fix .
	ruff format .

test: install  ## the tests, end to end included
	pytest -m "not long and not faults" -n 2 --dist loadfile

test-fast: install  ## the unit tests alone, about a minute
	pytest -m "not slow and not flow and not long and not faults" -n 2

test-all: install  ## every test there is: PostgreSQL, an S3-compatible store, several workers, faults too
	pytest -n 2 --dist loadfile

faults: install  ## break it on purpose in every way docs/reliability.md lists
	pytest -m "faults or survives" -n 2 --dist loadfile

bench: install  ## speed: the orchestration over the steps' own time, training beside others
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock "fastai>=2.8"
	python -m benchmarks.orchestration
	python -m benchmarks.training

techniques: install  ## what every technique does on the two examples, in a cheap form
	dvc repro embed@digits embed@bbc-news
	python -m benchmarks.techniques --cheap

docs: install  ## write docs/params.md from the models of params.yaml, docs/reliability.md from the tests
	python docs/make_params.py
	python docs/make_reliability.py

lock: install  ## resolve the dependencies anew into requirements.lock
	uv pip compile pyproject.toml --extra dev --upgrade --no-header --no-emit-index-url \
		--python-version 3.11 --output-file requirements.lock

clean:  ## remove what the pipeline made; data of yours, DVC's cache and the registry stay
	rm -rf data work reports
	# Ledgers, histories and what was asked of a served model are not to be made again.
	find .headstart -mindepth 1 -maxdepth 1 ! -name ledger ! -name history ! -name aliases ! -name nightly \
		! -name recorded -exec rm -rf {} + 2>/dev/null || true
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info

clean-all: clean  ## also remove the environment, DVC's cache and the local MLflow store
	rm -rf $(VENV) .dvc/cache .dvc/tmp mlflow/mlflow.db mlflow/artifacts
