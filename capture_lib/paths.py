"""Where things lie, and how a file is written so that no half of it is ever seen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to (a file or a folder); it takes its place on success only."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    remove(beside)
    try:
        yield beside
        if path.is_dir():  # a folder cannot be renamed over a folder that holds files
            shutil.rmtree(path)
        beside.replace(path)
    finally:
        remove(beside)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
