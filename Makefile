# `make reports` and `make test` are all that a newcomer needs; both make .venv first.
PYTHON ?= python3
PROFILES ?= cpu thorough
BIN := .venv/bin

.PHONY: reports smoke test lab lint bench record lock clean

reports: .venv/installed
	$(BIN)/capture run --profile cpu

smoke: .venv/installed # everything in miniature
	$(BIN)/capture run --profile smoke

test: .venv/installed-test # by two processes
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

lint: .venv/installed-test
	$(BIN)/ruff check capture_lib tests notebooks
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb
	$(BIN)/python -m pytest -q tests/notebooks/lint_form.py

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench.py

record: .venv/installed # from a clean clone: runs the profiles, keeps what README and RESULTS.md quote
	$(BIN)/python -m capture_lib.report.record $(PROFILES)

lock: .venv/installed-test
	(echo '# Exact versions of a tested environment (Linux x86-64), used as pip constraints; written by `make lock`.'; \
	 $(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools) > requirements.lock

clean: # what pip and the tests made; catalogs below data/ and reports below reports/ stay, for yours may be among them
	if [ -f .venv/installed ]; then rm -rf .venv; fi
	rm -rf .pytest_cache .ruff_cache
	find capture_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@
