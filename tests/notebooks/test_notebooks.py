"""The notebooks: their exercises check themselves, and all of them run: on the world, on little, on real photos."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from books import BOOKS, code, exercises, solved

from capture_lib.experiments.evaluation_files import read_rankings
from capture_lib.experiments.run import Run
from capture_lib.report.site import pictures
from capture_lib.retrieval.metrics import per_query

# ---- exercises


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell binds, and names that it takes from the cells before."""
    bound, free, later = set(), set(), set()
    for line in ast.parse(source).body:
        nodes = list(ast.walk(line))
        inner = {node.arg for node in nodes if isinstance(node, ast.arg)} | {
            name.id for node in nodes if isinstance(node, ast.comprehension) for name in ast.walk(node.target)
            if isinstance(name, ast.Name)}
        own = inner | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        own |= {(name.asname or name.name).split(".")[0] for node in nodes
                if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names}
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        if isinstance(line, ast.FunctionDef):  # its body runs when it is called
            later |= used - own
            own = {line.name}
        else:  # what an assignment reads was there before
            free |= used - bound - (inner if isinstance(line, ast.Assign | ast.AugAssign) else own)
        bound |= own - inner
    return bound, free | (later - bound)


def cells_needed(cells: list[str], wanted: str) -> list[str]:
    """Those of the cells, in order, on which what the last piece of code takes from them rests, directly or not."""
    needed, kept = names_in(wanted)[1], []
    for source in reversed(cells):
        bound, free = names_in(source)
        if bound & needed:
            needed = needed - bound | free
            kept.append(source)
    return kept[::-1]


def lines_printed(source: str, names: dict) -> list[str]:
    """The marks that a cell prints, one for each line that has one."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "cell", "exec"), names)  # noqa: S102 (our own notebooks)
    return re.findall(r"^[✓✗]", printed.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("stem", BOOKS)
def test_solutions_pass_their_own_checks(smoke_run: Run, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As it is, each exercise prints ✗; with its solution in place, ✓. Of the notebook, only what they need is run."""
    monkeypatch.setenv("CAPTURE_REPORT", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = [cell.source for cell in code(BOOKS[stem])]
    found = exercises(BOOKS[stem])
    before = cells[1:cells.index(found[0][0])]  # without the parameters
    names = {"__name__": stem, "profile": "smoke", "catalog": "", "out": str(tmp_path), "seed": 0}
    rest = {cell for pair in found for source in (pair[0], solved(*pair)) for cell in cells_needed(before, source)}
    lines_printed("\n".join(cell for cell in before if cell in rest), names)
    for asked, solution in found:
        for source, mark in ((asked, "✗"), (solved(asked, solution), "✓")):
            assert mark in (marks := lines_printed(source, names)) and (mark == "✗" or "✗" not in marks), source


# ---- executed


def figures_of(out: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (out / "metrics").glob("*.json")}


@pytest.mark.parametrize("stem", BOOKS)
def test_executed_on_the_world(smoke_report: Path, stem: str):
    executed = nbformat.read(smoke_report / "notebooks" / f"{stem}.ipynb", as_version=4)
    assert not [kind for cell in code(executed) for output in cell.outputs for kind in output.get("data", {})
                if "widget" in kind], "a view of a kernel that is gone"
    page = (smoke_report / "notebooks" / f"{stem}.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=[\"']http|@import", page), "opens offline"
    assert len(page) < 1_700_000
    assert '<code class="math">' not in page, "a formula that is not drawn"
    tagged = [cell for cell in executed.cells if "picture" in cell.metadata.get("tags", [])]
    assert bool(pictures(executed.cells)) == bool(tagged), "a cell with the tag shows no picture"
    provenance = figures_of(smoke_report)[stem]["provenance"]
    assert provenance["profile"] == "smoke" and provenance["seed"] == 0
    assert {"parameters", "commit", "versions", "hardware", "wall_time_s"} <= set(provenance)


def test_the_site_leads_to_everything(smoke_report: Path):
    index = (smoke_report / "index.html").read_text(encoding="utf-8")
    for stem in BOOKS:
        assert f"notebooks/{stem}.html" in index
    assert "figures.html" in index and (smoke_report / "figures.html").is_file()


def test_the_figures_that_a_reviewer_needs(smoke_report: Path):
    methods = figures_of(smoke_report)["05_retrieval"]["methods"]
    names = {"capture/instance", "capture/image", "capture-chosen/instance", "image-only", "text-only", "late-fusion",
             "chance"}
    assert names <= set(methods)
    for method in methods.values():
        for definition in ("released", "standard"):
            for figure in ("mAP@10", "mAR@100", "Prec@100"):
                value = method[definition][figure]
                assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert (smoke_report / "rankings" / "capture-instance.txt").is_file()
    table = pd.read_csv(smoke_report / "figures.csv")
    assert set(table["notebook"]) == set(BOOKS) and names <= set(table["method"])


def test_rankings_score_the_same_from_disk(smoke_report: Path, smoke_run: Run):
    """The rankings that notebook 05 wrote, read back, give the figure that it recorded."""
    catalog = smoke_run.catalog
    gallery = catalog.split("gallery")
    queries = catalog.split("test").set_index("sample_id")
    places = {sample: row for row, sample in enumerate(gallery["sample_id"])}
    read = read_rankings(smoke_report / "rankings" / "image-only.txt", queries.index, places)
    scores = per_query([[places[item] for item in ranking] for ranking in read.values()],
                       [queries.loc[query, "labels"] for query in read], list(gallery["labels"]))
    recorded = figures_of(smoke_report)["05_retrieval"]["methods"]["image-only"]["standard"]["mAP@10"]["value"]
    assert scores["standard", "mAP@10"].mean() == pytest.approx(recorded, abs=1e-12)


def test_executed_on_three_photos_whose_text_stays_text(tiny_report: Path):
    assert set(figures_of(tiny_report)) == set(BOOKS)
    pages = {page.name: page.read_text(encoding="utf-8") for page in tiny_report.rglob("*.html")}
    assert len(pages) == len(BOOKS) + 2
    assert not [name for name, page in pages.items() if '<script>alert("x")' in page]
    assert "&lt;script&gt;alert" in pages["01_data.html"]


def test_executed_on_real_photos_without_anything_else(real_report: Path):
    """No captions, labels, boxes and no gallery: all notebooks run, and nothing is invented."""
    figures = figures_of(real_report)
    assert set(figures) == set(BOOKS)
    assert not figures["05_retrieval"]["methods"] and not figures["06_ablations"]["methods"]
    assert all(claim["verdict"].startswith("not testable") for claim in figures["06_ablations"]["claims"])
