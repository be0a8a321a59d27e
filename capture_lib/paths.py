"""Where things lie, and how a file is written so that no half of it is ever seen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capture_lib.faults import InputError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside the file `path` to write to; it takes the file's place on success only.

    Raises:
        InputError: `path` is a folder, which would be lost; nothing is written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder stands where a file is to be written; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
