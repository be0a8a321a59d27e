"""The notebooks as tests and lint see them: their code, and their exercises with solutions."""

import ast
import re

import nbformat

from capture_lib.report import NUMBERED
from capture_lib.utils import NOTEBOOKS

BOOKS = {file.stem: nbformat.read(file, as_version=4) for file in sorted(NOTEBOOKS.glob(NUMBERED))}


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in book.cells if cell.cell_type == "code"]


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
