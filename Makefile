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

# Worlds that were drawn and reports that a run made, told by their marks. A folder that holds anything else, such as
# a note of yours among the figures, is left as it is and named.
define CLEAN
import json, re, shutil
from pathlib import Path
OURS = r"(.*/)?\.lock|(.*/)?\.capture-[^/]+/.*|"
WORLD = OURS + (r"world\.json|catalog\.parquet|missing\.csv|parts/\d{3}\.json|stages/\..*\.lock|"
                r"images/\d{3}/(train|val|test|gallery)-\d{6}\.jpg")
REPORT = OURS + (r"\.capture-report|timings\.json|index\.html|figures\.(html|csv)|metrics/\d\d_[a-z]+\.json|"
                 r"notebooks/\d\d_[a-z]+(\.failed)?\.(ipynb|html)")

def of_stage(file):
    for stage in file.parents:
        if (stage / "stage.json").is_file():
            record = (stage / "stage.json").read_text()
            files = json.loads(record)["files"] if '"files"' in record else None  # an unfinished one is all ours
            return file.name == "stage.json" or files is None or file.relative_to(stage).as_posix() in files
    return False

def is_ranking(file):
    return file.parent.name == "rankings" and all(file.with_suffix(end).is_file() for end in (".txt", ".parquet"))

def clean(folder, names, is_ours):
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink() or not file.is_dir() and not re.fullmatch(names, name) and not is_ours(file):
            print(f"{folder}: left as it is, for it holds {name}")
            return
    shutil.rmtree(folder)

for mark in sorted(Path("data").glob("world-*/world.json")):
    if mark.with_name("catalog.parquet").is_file() and not mark.parent.is_symlink():
        clean(mark.parent, WORLD, of_stage)
for mark in sorted(Path("reports").glob("*/.capture-report")):
    if not mark.parent.is_symlink():
        clean(mark.parent, REPORT, is_ranking)
endef
export CLEAN

clean:
	if [ -f .venv/installed ]; then rm -rf .venv; fi
	rm -rf .pytest_cache .ruff_cache
	$(PYTHON) -c "$$CLEAN"
	find capture_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@
