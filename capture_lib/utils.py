"""What every room needs: paths, the error for wrong input, files written whole, progress, the device."""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"
MAX_ERRORS_SHOWN = 20
MAX_WAIT = timedelta(days=7)  # the other processes wait while the main one trains a detector

Item = TypeVar("Item")


# ---- wrong input


class InputError(ValueError):
    """What a user handed in is wrong: one line a fault, with file, line or field, and what to do."""


def raise_faults(faults: list[str]) -> None:
    """Raise one InputError with a line for each fault, the first 20 of them; do nothing without faults."""
    if not faults:
        return
    lines = faults[:MAX_ERRORS_SHOWN]
    hidden = len(faults) - len(lines)
    if hidden:
        lines.append(f"… and {hidden:,} more faults of this kind")
    raise InputError("\n".join(lines))


# ---- files


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


def write_json(file: Path, content: object) -> None:
    """Write readable JSON at once; NaN is refused."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with write_atomically(file) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder that we made, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def display_path(path: Path) -> str:
    """Return a path as a reader wants it: below the repository where it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# ---- one process, or the many that `accelerate launch` starts


def process_count() -> int:
    """Return how many processes do this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Return True in the one process that prints and writes."""
    return process_index() == 0


@cache
def accelerator() -> "Accelerator":
    """Return accelerate's view of the processes, in float32 on the GPU of each or on the CPU."""
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState

    PartialState._reset_state()  # that of the process which this one was forked from, as in a notebook
    patience = InitProcessGroupKwargs(timeout=MAX_WAIT)
    # some pretext tasks leave weights unused, the same in every step
    gradients = DistributedDataParallelKwargs(static_graph=True)
    on_cpu = not torch.cuda.is_available()
    return Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience, gradients])


def wait_for_everyone() -> None:
    """Return when all processes have come here."""
    if process_count() > 1:
        accelerator().wait_for_everyone()


@contextmanager
def process_map(workers: int, chunk: int = 1) -> Iterator[Callable[..., Iterator]]:
    """Yield a `map` by so many processes of one OpenCV thread each; by this process if `workers` is 0.

    They are spawned, because a fork of a process that runs torch may hang.

    Args:
        chunk: items that a process takes at a time.
    """
    if not workers:
        yield map
        return
    import cv2

    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield partial(pool.map, chunksize=chunk)


# ---- progress


def in_report() -> bool:
    """Return True while a notebook runs headless for a report (the runner sets CAPTURE_REPORT=1)."""
    return os.environ.get("CAPTURE_REPORT") == "1"


def say(line: str) -> None:
    """Print a line at once, in the main process alone."""
    if is_main_process():
        print(line, flush=True)


def progress(
    iterable: Iterable[Item], label: str, total: int | None = None, note: Callable[[], str] = str
) -> Iterator[Item]:
    """Iterate with a live bar on a terminal or in a notebook; print one summary line in a report or a log.

    Args:
        note: returns what is said beside the bar and at the end of the line, such as the last losses.
    """
    if not is_main_process():
        yield from iterable
        return

    # a person is watching
    if not in_report() and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        from tqdm import tqdm

        bar = tqdm(iterable, desc=label, total=total, leave=False, mininterval=0.5)
        for item in bar:
            yield item
            bar.set_postfix_str(note(), refresh=False)
        return

    # a log or a report
    started = time.perf_counter()
    count = 0
    for item in iterable:
        count += 1
        yield item
    last = f"; {note()}" if count and note() else ""
    say(f"{label}: {count:,} in {time.perf_counter() - started:.1f} s{last}")


# ---- torch, imported only where it is used


def pick_device() -> "torch.device":
    """Return the GPU where there is one, of several this process's; otherwise the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, so that a stage gives the same whatever ran before it."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
