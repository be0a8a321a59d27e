# `make reports` and `make test` are all that a newcomer needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reports smoke test lab lint bench lock clean

reports: .venv/installed
	$(BIN)/capture run --profile cpu

smoke: .venv/installed # everything in miniature
	$(BIN)/capture run --profile smoke

test: .venv/installed-test
	$(BIN)/python -m pytest

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

lint: .venv/installed-test
	$(BIN)/ruff check capture_lib tests notebooks
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb
	$(BIN)/python -m pytest -q tests/notebooks/lint_form.py

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench.py

lock: .venv/installed-test
	(echo '# Exact versions of a tested environment (Linux x86-64), used as pip constraints; written by `make lock`.'; \
	 $(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools) > requirements.lock

clean: # worlds that were drawn and reports that a run made, told by their marks; all else below data/ and reports/ stays
	rm -rf .venv .pytest_cache .ruff_cache
	for folder in data/world-*; do \
	  if [ -f "$$folder/world.json" ] && [ -f "$$folder/catalog.parquet" ]; then rm -rf "$$folder"; fi; done
	for mark in reports/*/.capture-report; do if [ -f "$$mark" ]; then rm -rf "$${mark%/*}"; fi; done
	find capture_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@
