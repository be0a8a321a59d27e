"""One progress bar: live for a person, one line of summary in a report; of many processes, the first shows it."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def in_report() -> bool:
    """True while a notebook runs headless for a report (the runner sets CAPTURE_REPORT=1)."""
    return os.environ.get("CAPTURE_REPORT") == "1"


def first_process() -> bool:
    """True in the one process that prints: of those that `accelerate launch` started, number 0."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Prints a line at once, in the first process alone."""
    if first_process():
        print(line, flush=True)


def progress(iterable: Iterable[Item], label: str, total: int | None = None, note: Callable[[], str] = str
             ) -> Iterator[Item]:
    """Iterates with a live bar on a terminal or in a notebook; prints one summary line in a report or a log.

    `note` gives what is said beside the bar and at the end of the line: losses, say.
    """
    if not first_process():
        yield from iterable
        return
    if not in_report() and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        bar = tqdm(iterable, desc=label, total=total, leave=False, mininterval=0.5)
        for item in bar:
            yield item
            bar.set_postfix_str(note(), refresh=False)
        return
    started, count = time.perf_counter(), 0
    for count, item in enumerate(iterable, start=1):  # noqa: B007 (count is read after the loop)
        yield item
    last = f"; {note()}" if count and note() else ""
    say(f"{label}: {count:,} in {time.perf_counter() - started:.1f} s{last}")
