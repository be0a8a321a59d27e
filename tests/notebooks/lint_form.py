"""The one form of all notebooks, checked by `make lint`: header, sections, two voices, lengths, links, exercises."""

import ast
import io
import re
import statistics
import tokenize
from pathlib import Path

import nbformat
import pytest
from books import BOOKS, code, exercises, solved

from capture_lib.utils import NOTEBOOKS

STEMS = list(BOOKS)
COURSE = [stem for stem in BOOKS if stem[0] != "A"]  # without the appendices
PARAMETERS = {"profile": "str", "catalog": "str", "out": "str", "seed": "int"}
HEADER = ["Goal", "Question", "In the paper", "Cost", "Needs", "Before", "After"]
VOICES = ("> **Paper.** ", "> **Released code.** ")  # whatever is quoted is theirs; plain text is ours
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MAKERS = re.compile(r"\bstages\.(composites|trained_\w+|region_store|pretrained)\(|open_searcher\(|"
                    r"comparison\.(evaluations|compared)\(")


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
    assert "`capture run` makes them before it, side by side" in cost or "2 cores" in cost


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
    sources = [cell.source for cell in code(BOOKS[stem])]
    assert max(len(source.splitlines()) for source in sources) <= 30
    assert 4 <= statistics.median(map(unwrapped, sources)) <= 11
    long = [line for cell in cells for line in cell.source.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long
    blocks = sources + FENCED.findall("\n\n".join(
        cell.source for cell in cells if cell.cell_type == "markdown"))
    cut = [line for block in blocks for line in block.splitlines() if len(line) > 105]
    assert not cut, "longer than a page is wide"


def unwrapped(source: str) -> int:
    """The lines of a cell if each statement stood on one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.NEWLINE for token in tokens)


def bound(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds for good, and those that its loops bind at each turn."""
    names, turns = set(), set()

    def visit(nodes: list[ast.stmt], into: set[str]) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                into.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                into |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.For):
                turns.update(stored(node.target))
                visit(node.body + node.orelse, turns)
            elif isinstance(node, ast.With | ast.If):
                into |= {name for item in getattr(node, "items", ()) for name in stored(item)}
                visit(node.body + getattr(node, "orelse", []), into)
            else:
                assert not isinstance(node, ast.While | ast.Try), "teach this test what it binds"
                into |= stored(node)

    visit(ast.parse(source).body, names)
    return names - {"_"}, turns - {"_"} - names


def stored(tree: ast.AST) -> set[str]:
    """The names that are bound below a node, but for those of comprehensions and functions."""
    inner = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
    below = set() if isinstance(tree, inner) else set().union(*map(stored, ast.iter_child_nodes(tree)))
    if isinstance(tree, inner):  # := binds outside of its comprehension
        below = {node.target.id for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)}
    return below | ({tree.id} if isinstance(tree, ast.Name) and isinstance(tree.ctx, ast.Store) else set())


@pytest.mark.parametrize("stem", BOOKS)
def test_a_cell_can_be_run_again(stem: str):
    """No name is bound in two cells, so what a cell reads is always what the cell before it made."""
    seen: dict[str, int] = {}
    cells = [bound(cell.source) for cell in code(BOOKS[stem])]
    for number, (names, _) in enumerate(cells):
        others = [kept | turns for other, (kept, turns) in enumerate(cells) if other != number]
        seen |= {name: number for name in names & set().union(*others)}
    assert not seen, "bound elsewhere too, by the code cell's number"


@pytest.mark.parametrize("stem", BOOKS)
def test_what_is_made_is_said_before(stem: str):
    """Cells that make stages stand behind a text that names what is made."""
    told, found = "", set()
    for cell in BOOKS[stem].cells:
        if cell.cell_type == "markdown":
            told += cell.source + "\n\n"
        elif new := {match[0] for match in MAKERS.finditer(cell.source)} - found:
            assert "**Makes**" in told, new
            found |= new
    for said in re.findall(r"^\*\*Makes\*\*.*?(?=\n\n|\Z)", told, re.MULTILINE | re.DOTALL):
        assert "where no earlier run has: " in " ".join(said.split()), said


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
    header = BOOKS[stem].cells[0].source
    before, after = (linked(re.search(rf"\*\*{word}\.\*\* (.*?)(?=^- |\Z)", header, re.MULTILINE | re.DOTALL)[1])
                     for word in ("Before", "After"))
    onward = linked(section(BOOKS[stem], "Next"))
    assert after and onward
    if stem in COURSE:  # an appendix stands beside the notebook that it is named in
        number = COURSE.index(stem)
        assert before[:1] == COURSE[max(0, number - 1):number]
        assert stem == COURSE[-1] or onward[0] == COURSE[number + 1]


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
