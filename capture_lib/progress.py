"""One progress bar: live for a person, one line of summary in a report."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def in_report() -> bool:
    """True while a notebook runs headless for a report (the runner sets CAPTURE_REPORT=1)."""
    return os.environ.get("CAPTURE_REPORT") == "1"


def progress(iterable: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Iterates with a live bar on a terminal or in a notebook; prints one summary line in a report or a log."""
    if not in_report() and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        yield from tqdm(iterable, desc=label, total=total, leave=False, mininterval=0.5)
        return
    started, count = time.perf_counter(), 0
    for count, item in enumerate(iterable, start=1):  # noqa: B007 (count is read after the loop)
        yield item
    print(f"{label}: {count:,} in {time.perf_counter() - started:.1f} s", flush=True)
