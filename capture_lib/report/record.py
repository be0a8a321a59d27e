"""Make the committed records: `python -m capture_lib.report.record PROFILE …` runs profiles and keeps what came out.

A record is a report in `reports/reference/PROFILE`, without pages and rankings; `reports/RESULTS.md` has the tables,
`reports/scale.svg` the picture of scale that README shows.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from capture_lib.report import NUMBERED, site
from capture_lib.report.figures import brackets
from capture_lib.utils import NOTEBOOKS, REPORTS, ROOT, InputError, explain, read_object, write_atomically

REFERENCE = REPORTS / "reference"
RESULTS = REPORTS / "RESULTS.md"
SCALE = REPORTS / "scale.svg"
COLUMNS = (("standard", "mAP@10"), ("standard", "mAR@10"), ("released", "mAP@10"), ("instance", "mAP@10"))


def main(profiles: list[str]) -> int:
    """Run profiles, keep their records, write the results; return the exit code, 2 for a checkout with changes."""
    from capture_lib.report.execute import STOPPED, run_notebooks
    try:
        commit = clean_commit()
        for profile in profiles:
            run_notebooks(profile, None, REPORTS / profile, resume=True)
        for profile in profiles:
            check(REPORTS / profile, commit)
            keep(REPORTS / profile, REFERENCE / profile)
        for file, text in ((RESULTS, results()), (SCALE, scale())):
            with write_atomically(file) as beside:
                beside.write_text(text, encoding="utf-8")
        print(f"{RESULTS} and {REFERENCE}: {', '.join(profiles)} at commit {commit}")
        return 0
    except STOPPED as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        line, code = explain(error)
        print(f"record: {line}", file=sys.stderr)
        return code


def clean_commit() -> str:
    """Return the commit of the checkout; InputError: a tracked file differs from it."""
    describe = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if not commit or commit.endswith("+"):
        raise InputError(f"{ROOT}: a record is made of a commit, but files differ from it; commit them first")
    return commit


def check(report: Path, commit: str) -> None:
    """Raise InputError where a report is not whole, of another commit, or a notebook differs from what was run."""
    for source in sorted(NOTEBOOKS.glob(NUMBERED)):
        executed = report / "notebooks" / source.name
        if not executed.is_file():
            raise InputError(f"{report}: {source.name} was not run")
        made = read_object(report / "metrics" / f"{source.stem}.json").get("provenance", {}).get("commit")
        if made != commit:
            raise InputError(f"{report}: {source.stem} was run at commit {made}, not {commit}; remove {report}")
        if code_of(executed) != code_of(source):
            raise InputError(f"{executed}: differs from {source}; remove it and run it again")


def code_of(notebook: Path) -> list[str]:
    """Return the code of a notebook, without the parameters that a run injects."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell.source for cell in cells
            if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]


def keep(report: Path, record: Path) -> None:
    """Copy figures, times and executed notebooks of a report to a record, and build its index."""
    beside = record.with_name(f".{record.name}")
    shutil.rmtree(beside, ignore_errors=True)  # of an interrupted process
    shutil.copytree(report / "metrics", beside / "metrics")
    shutil.copytree(report / "notebooks", beside / "notebooks", ignore=shutil.ignore_patterns("*.html"))
    shutil.copy(report / "timings.json", beside)
    for file in (beside / "notebooks").iterdir():  # not where they were run
        text = file.read_text(encoding="utf-8").replace(str(report), f"reports/{report.name}")
        text = text.replace("](../", "](../../../../")  # links from notebooks/, now three folders deeper
        file.write_text(text, encoding="utf-8")
    site.build(beside)
    shutil.rmtree(record, ignore_errors=True)
    beside.rename(record)


def results() -> str:
    """Return the tables of all records as Markdown."""
    records = {}
    for folder in sorted(REFERENCE.glob("[!.]*")):
        metrics = site.read_metrics(folder)
        if metrics:
            records[folder.name] = {"metrics": metrics, "groups": site.grouped(site.methods_of(metrics)),
                                    "timings": read_object(folder / "timings.json")}
    photos = {file.stem: read_object(file) for file in sorted((REFERENCE / "photos").glob("*.json"))}
    size = read_object(REFERENCE / "size.json")
    here, elsewhere = (pd.read_csv(REFERENCE / name) for name in ("cpu/figures.csv", "cpu-elsewhere.csv"))
    both = elsewhere.merge(here, on=["notebook", "figure", "method", "definition"], suffixes=("_elsewhere", ""))
    pages = site.environment(Path(__file__).with_name("templates"))
    pages = pages.overlay(autoescape=False, keep_trailing_newline=True)  # Markdown
    pages.filters["brackets"] = brackets
    template = pages.get_template("RESULTS.md.j2")
    return template.render(records=records, photos=photos, size=size, columns=COLUMNS, words=site.in_words,
                           machines=both.fillna("").to_dict("records"))


def scale() -> str:
    """Return the SVG that notebook 06 of the record of profile cpu drew of the scale of the training."""
    book = nbformat.read(REFERENCE / "cpu" / "notebooks" / "06_ablations.ipynb", as_version=4)
    cell = next(cell for cell in book.cells if "scale" in cell.metadata.get("tags", []))
    return next(output.data["image/svg+xml"] for output in cell.outputs if "data" in output)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
