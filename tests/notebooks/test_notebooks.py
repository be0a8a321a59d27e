"""The notebooks: their one form, their exercises, and every one of them executed, on the world and on real photos."""

import ast
import contextlib
import io
import json
import re
import statistics
from pathlib import Path

import drawn
import nbformat
import pandas as pd
import pytest

from capture_lib import cli
from capture_lib.catalog.table import write_catalog
from capture_lib.report.pictures import TAG, pictures_of
from capture_lib.utils import NOTEBOOKS

FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
BOOKS = {file.stem: nbformat.read(file, as_version=4) for file in FILES}
STEMS = list(BOOKS)
PARAMETERS = {"profile": "str", "catalog": "str", "out": "str", "seed": "int"}
HEADER = ["Goal", "Question", "In the paper", "Cost", "Needs", "Before", "After"]
VOICES = ("> **Paper.** ", "> **Released code.** ")  # whatever is quoted is theirs; plain text is ours
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MAKERS = re.compile(r"\bstages\.(composites|ablated|trained_\w+|region_store|pretrained|embedded)\(|Searcher\.open\(|"
                    r"comparison\.(judgements|compared)\(")


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text_of(book: nbformat.NotebookNode) -> str:
    """All the text of a notebook, without code and without what is fenced."""
    return FENCED.sub("", "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown"))


def headings(book: nbformat.NotebookNode) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text_of(book), re.MULTILINE)]


def section(book: nbformat.NotebookNode, title: str) -> str:
    """The text under a heading of level 2."""
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text_of(book), re.MULTILINE | re.DOTALL)[1]


def linked(text: str) -> list[str]:
    """The notebooks that a text links to."""
    return re.findall(r"\]\((\w+)\.ipynb", text)


@pytest.mark.parametrize("stem", BOOKS)
def test_stripped(stem: str):
    book = BOOKS[stem]
    assert book.metadata.kernelspec.name == "python3" and "widgets" not in book.metadata
    assert all(not cell.outputs and cell.execution_count is None for cell in code(book))


@pytest.mark.parametrize("stem", BOOKS)
def test_header(stem: str):
    """The first cell: title, goal, question, place in the paper, what it costs from nothing and afterwards, the way."""
    lines = BOOKS[stem].cells[0].source.splitlines()
    assert lines[0].startswith(f"# {stem[:2]} · ")
    assert lines[2].startswith("**Goal.** ")
    source = BOOKS[stem].cells[0].source
    assert re.findall(r"^(?:- )?\*\*([^*]+)\.\*\*", source, re.MULTILINE) == HEADER
    cost = re.search(r"\*\*Cost\.\*\* (.+?)(?=^- )", source, re.MULTILINE | re.DOTALL)[1]
    cost = " ".join(cost.split())
    assert all(word in cost for word in ("2 cores", "`smoke`", "on its own", "after the other notebooks", "`cpu`"))


@pytest.mark.parametrize("stem", BOOKS)
def test_sections(stem: str):
    """Parameters, numbered sections, summary, exercises, next; one title, and no level is left out."""
    found = headings(BOOKS[stem])
    assert [level for level, _ in found].count(1) == 1 and found[0][0] == 1
    assert all(after - before <= 1 for (before, _), (after, _) in zip(found, found[1:], strict=False))
    assert max(level for level, _ in found) <= 3
    first, *inner, summary, exercises, last = [title for level, title in found if level == 2]
    assert (first, summary, exercises, last) == ("Parameters", "Summary", "Exercises", "Next")
    numbers = [re.match(r"(\d+) · ", title) for title in inner]
    assert len(inner) >= 3 and sum(map(bool, numbers)) >= len(inner) - 1
    assert all(int(number[1]) == place for place, number in enumerate(numbers, start=1) if number)


@pytest.mark.parametrize("stem", BOOKS)
def test_every_part_of_the_form(stem: str):
    """Maths, the smallest example, the library's own code, a shape check, and how to read what comes out."""
    text, source = text_of(BOOKS[stem]), "\n".join(cell.source for cell in code(BOOKS[stem]))
    assert text.count("$$") >= 2 and text.count("$$") % 2 == 0
    for label in ("**Smallest example.** ", "**Shape check.** ", "**Reading.** "):
        assert re.search(rf"^{re.escape(label)}", text, re.MULTILINE), label
    assert "inspect.getsource(" in source, "code is displayed from its source"
    assert f'run.record("{stem}"' in re.sub(r"\(\s+", "(", BOOKS[stem].cells[-1].source)


@pytest.mark.parametrize("stem", BOOKS)
def test_the_two_voices_are_apart(stem: str):
    quotes = re.findall(r"(?:^>.*\n?)+", text_of(BOOKS[stem]), re.MULTILINE)
    parts = [part for quote in quotes for part in re.split(r"^>\s*\n", quote, flags=re.MULTILINE)]
    assert parts and all(part.startswith(VOICES) for part in parts), [part[:40] for part in parts]


@pytest.mark.parametrize("stem", BOOKS)
def test_text_comes_before_code_and_cells_are_short(stem: str):
    cells = BOOKS[stem].cells
    runs = sum(a.cell_type == b.cell_type == "code" for a, b in zip(cells, cells[1:], strict=False))
    assert runs <= 2
    lengths = [len(cell.source.splitlines()) for cell in code(BOOKS[stem])]
    assert max(lengths) <= 30 and 4 <= statistics.median(lengths) <= 11
    long = [line for cell in cells for line in cell.source.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("stem", BOOKS)
def test_what_is_made_is_said_before(stem: str):
    """Cells that make stages stand behind a text that names what is made, and how long it takes."""
    told, found = "", set()
    for cell in BOOKS[stem].cells:
        if cell.cell_type == "markdown":
            told += cell.source + "\n\n"
        elif new := {match[0] for match in MAKERS.finditer(cell.source)} - found:
            assert "**Makes**" in told, new
            found |= new
    for said in re.findall(r"^\*\*Makes\*\*.*?(?=\n\n|\Z)", told, re.MULTILINE | re.DOTALL):
        assert re.search(r"where no earlier run has: .* \d+ (s|min)\b", said, re.DOTALL), said


@pytest.mark.parametrize("stem", BOOKS)
def test_parameters_are_typed_literals(stem: str):
    tagged = [cell for cell in code(BOOKS[stem]) if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in tagged] == [code(BOOKS[STEMS[0]])[0].source], "the same cell everywhere"
    nodes = ast.parse(tagged[0].source).body
    assert {node.target.id: node.annotation.id for node in nodes} == PARAMETERS
    assert all(isinstance(node.value, ast.Constant) for node in nodes)


@pytest.mark.parametrize("stem", BOOKS)
def test_links(stem: str):
    """Notebooks, their headings and files of the repository exist; from each notebook a link leads on, and one back."""
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text_of(BOOKS[stem])):
        file, _, anchor = link.partition("#")
        assert (NOTEBOOKS / (file or f"{stem}.ipynb")).exists(), link
        if anchor:
            there = BOOKS[Path(file).stem if file else stem]
            assert anchor in {title.replace(" ", "-") for _, title in headings(there)}, link
    header, number = BOOKS[stem].cells[0].source, STEMS.index(stem)
    before, after = (re.search(rf"\*\*{word}\.\*\* (.*?)(?=^- |\Z)", header, re.MULTILINE | re.DOTALL)[1]
                     for word in ("Before", "After"))
    assert linked(before)[:1] == STEMS[max(0, number - 1):number]
    if stem != STEMS[-1]:
        assert linked(section(BOOKS[stem], "Next"))[:1] == [STEMS[number + 1]]
    assert linked(after) and linked(section(BOOKS[stem], "Next"))


def reports_are_static(tree: ast.AST, guarded: bool = False, known: frozenset[str] = frozenset()) -> bool:
    """Whether widgets are made behind `in_report()` alone; functions named `known` make some."""
    if isinstance(tree, ast.FunctionDef):
        return True  # judged where it is called
    if isinstance(tree, ast.If | ast.IfExp) and "in_report()" in ast.unparse(tree.test):
        guarded = True
    made = isinstance(tree, ast.Call) and ast.unparse(tree.func).startswith(
        ("widget.", "widgets.", "ipywidgets.", *known))
    shown = isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith(".view")
    return (guarded or not (made or shown)) and all(
        reports_are_static(node, guarded, known) for node in ast.iter_child_nodes(tree))


@pytest.mark.parametrize("stem", BOOKS)
def test_a_report_needs_no_kernel_and_no_folder(stem: str):
    source = "\n".join(cell.source for cell in code(BOOKS[stem]))
    assert not re.search(r"\btqdm\b|\binteract(ive)?\(|os\.chdir|getcwd|Path\.cwd|^\s*[%!]", source, re.MULTILINE)
    assert not re.search(r"(open|Path|read_\w+|load)\(f?[\"'](?!/)", source), "depends on the working directory"
    tree = ast.parse(source)
    makers = frozenset(node.name for node in ast.walk(tree)
                       if isinstance(node, ast.FunctionDef) and "widgets." in ast.unparse(node.body))
    assert reports_are_static(tree, known=makers)


# ---------------------------------------------------------------------------------------------- exercises


def exercises(book: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """The code of each exercise, and of its solution."""
    first = next(n for n, cell in enumerate(book.cells) if re.search(r"^## Exercises$", cell.source, re.MULTILINE))
    pairs = zip(book.cells[first:], book.cells[first + 1:], strict=False)
    found = [(cell.source, after.source) for cell, after in pairs
             if cell.cell_type == "code" and "# your turn" in cell.source]
    return [(asked, re.search(r"```python\n(.*?)```", answer, re.DOTALL)[1]) for asked, answer in found]


def solved(asked: str, solution: str) -> str:
    """The code of an exercise with its solution in the place of the statement that is marked `# your turn`."""
    marked = next(n for n, line in enumerate(asked.splitlines(), start=1) if "# your turn" in line)
    stub = next(node for node in ast.parse(asked).body if node.lineno <= marked <= node.end_lineno)
    lines = asked.splitlines()
    return "\n".join([*lines[:stub.lineno - 1], solution, *lines[stub.end_lineno:]])


@pytest.mark.parametrize("stem", BOOKS)
def test_exercises_check_themselves(stem: str):
    text = "\n\n".join(cell.source for cell in BOOKS[stem].cells if cell.cell_type == "markdown")
    numbers = re.findall(r"^\*\*(\d+)\.\*\* ", text[text.index("\n## Exercises"):], re.MULTILINE)
    assert len(numbers) >= 3 and [int(n) for n in numbers] == list(range(1, len(numbers) + 1))
    found = exercises(BOOKS[stem])
    assert len(found) == len(numbers)
    assert text.count("<details><summary>Solution</summary>\n\n") == text.count("</details>") == len(numbers)
    for asked, solution in found:
        assert "✓" in asked and "✗" in asked and "raise" not in asked
        ast.parse(solved(asked, solution))


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
def test_solutions_pass_their_own_checks(stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


# ------------------------------------------------------------------------------------------------ executed


HOSTILE = '<script>alert("x")</script> '


def assert_text_stays_text(out: Path) -> None:
    pages = list(out.rglob("*.html"))
    assert len(pages) == len(BOOKS) + 2
    assert not [page.name for page in pages if HOSTILE.strip() in page.read_text(encoding="utf-8")]


def test_executed_on_three_photos(tmp_path: Path):
    """As little as a catalog can hold, with markup in its captions and labels."""
    catalog = drawn.make_catalog(tmp_path / "tiny", train=1, gallery=1, val=0, test=1)
    catalog.table["caption"] = [HOSTILE + caption for caption in catalog.table["caption"]]
    catalog.table["labels"] = [[HOSTILE + label for label in labels] for labels in catalog.table["labels"]]
    write_catalog(catalog.table, catalog.folder)
    out = tmp_path / "report"
    assert cli.main(["run", "--profile", "smoke", "--catalog", str(catalog.folder), "--out", str(out)]) == 0
    assert_text_stays_text(out)


def figures_of(out: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (out / "metrics").glob("*.json")}


@pytest.mark.parametrize("stem", BOOKS)
def test_executed_on_the_world(smoke_report: Path, stem: str):
    executed = nbformat.read(smoke_report / "notebooks" / f"{stem}.ipynb", as_version=4)
    assert not [kind for cell in code(executed) for output in cell.outputs for kind in output.get("data", {})
                if "widget" in kind], "a view of a kernel that is gone"
    page = (smoke_report / "notebooks" / f"{stem}.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=[\"']http|@import", page), "opens offline"
    assert len(page) < 1_500_000
    assert '<code class="math">' not in page, "a formula that is not drawn"
    tagged = [cell for cell in executed.cells if TAG in cell.metadata.get("tags", [])]
    assert len(pictures_of(executed)) == len(tagged), "a cell with the tag shows no picture"
    provenance = figures_of(smoke_report)[stem]["provenance"]
    assert provenance["profile"] == "smoke" and provenance["seed"] == 0
    assert {"parameters", "commit", "versions", "hardware", "wall_time_s"} <= set(provenance)


def test_the_site_leads_to_everything(smoke_report: Path):
    index = (smoke_report / "index.html").read_text(encoding="utf-8")
    for stem in BOOKS:
        assert f"notebooks/{stem}.html" in index
    assert "results.html" in index and (smoke_report / "results.html").is_file()


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


def test_rankings_score_the_same_from_disk(smoke_report: Path):
    """The rankings that notebook 05 wrote, read back, give the figure that it recorded."""
    from capture_lib.experiments.run import open_run
    from capture_lib.retrieval.metrics import per_query, read_rankings

    catalog = open_run("smoke").catalog
    gallery, queries = catalog.split("gallery"), catalog.split("test").set_index("sample_id")
    places = {sample: row for row, sample in enumerate(gallery["sample_id"])}
    read = read_rankings(smoke_report / "rankings" / "image-only.txt")
    scores = per_query([[places[item] for item in ranking] for ranking in read.values()],
                       [queries.loc[query, "labels"] for query in read], [row[0] for row in gallery["labels"]])
    recorded = figures_of(smoke_report)["05_retrieval"]["methods"]["image-only"]["standard"]["mAP@10"]["value"]
    assert scores["standard", "mAP@10"].mean() == pytest.approx(recorded, abs=1e-12)


@pytest.mark.parametrize("name", ["grocery", "fridge", "shop"])
def test_executed_on_real_photos(shared: Path, tmp_path: Path, name: str, capsys):
    """Catalogs without captions, gallery, boxes, labels or splits: all notebooks run, and nothing is invented.

    Every caption that is there carries a script, which must stay text in every page.
    """
    photos = shared / "photos" / name
    folder, out, hostile = tmp_path / name, tmp_path / "report", tmp_path / "table.csv"
    table = pd.read_csv(photos / "table.csv", dtype=str, keep_default_na=False)
    table["caption"] = [HOSTILE + caption if caption else "" for caption in table["caption"]]
    table.to_csv(hostile, index=False)
    assert cli.main(["catalog", "--table", str(hostile), "--images", str(photos), "--out", str(folder)]) == 0
    assert cli.main(["run", "--profile", "smoke", "--catalog", str(folder), "--out", str(out)]) == 0
    figures = figures_of(out)
    assert set(figures) == set(BOOKS)
    assert_text_stays_text(out)
    methods = figures["05_retrieval"]["methods"]
    assert set(methods) == ({"capture/instance", "capture/image", "capture-chosen/instance", "capture-chosen/image",
                             "image-only", "chance", "popularity"} if name == "grocery" else set())
