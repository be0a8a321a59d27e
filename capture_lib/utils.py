"""What every room needs: paths, the error for wrong input, files written whole, locks, progress, the device."""

import ctypes
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from traceback import format_exception
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"
UNFINISHED = ".capture-"  # how the names of folders begin that are gone when what they hold is written
DISK_ERROR = re.compile(  # of safetensors, torch and NumPy
    r"os error \d|inline_container|PytorchStreamWriter|iostream error|requested and \d+ written|writing element")
BINARY = {b"PK\3\4": "a spreadsheet or a zip archive", b"PAR1": "parquet", b"ARROW1": "feather", b"\x1f\x8b": "gzip"}
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "opencv-python-headless", "scikit-learn")


class InputError(ValueError):
    """A user's input is wrong: one line a fault, with file, line or field, and what to do."""

    faults: tuple[str, ...] = ()  # all of them, where the lines are the first ones


def raise_faults(faults: list[str]) -> None:
    """Raise one InputError with a line for each fault, the first 20 of them; do nothing without faults."""
    more = [f"… and {len(faults) - 20:,} more faults of this kind"] if len(faults) > 20 else []
    if faults:
        error = InputError("\n".join([*faults[:20], *more]))
        error.faults = tuple(faults)
        raise error


def explain(error: BaseException) -> tuple[str, int]:
    """Return one line on what stopped a command, or one a fault of its input, and the exit code."""
    if isinstance(error, InputError | FloatingPointError):  # the second: a loss without a value
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; what was done is kept; the same command goes on (`run` with --resume)", 130
    last = str(error).strip().rpartition("\n")[2]  # of what a worker process says
    if isinstance(error, OSError):
        return f"{error.filename}: " * bool(error.filename) + (error.strerror or last or type(error).__name__), 2
    if isinstance(error, MemoryError):
        return "not enough memory; a smaller --profile needs less", 2
    with NamedTemporaryFile("w", prefix="capture-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.writelines(format_exception(error))
    return f"{type(error).__name__}: {last[:300]} (a fault of this program; its traceback is in {file.name})", 70


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8, or UTF-16 with its mark; InputError names a line that is neither."""
    try:
        if Path(file).is_char_device() or Path(file).is_block_device():  # some of them never end
            raise InputError(f"{file}: is a device; name a file")
        raw = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))  # without its mark, an encoding is never guessed
    text = raw.decode("utf-16", errors="replace") if marked else raw.decode("utf-8-sig", errors="surrogateescape")
    wrong = re.search("[\x00\udc80-\udcff]", text)  # a zero, as in UTF-16, or a byte that did not decode
    if wrong:
        line = text.count("\n", 0, wrong.start()) + 1
        kinds = [kind for begin, kind in BINARY.items() if raw.startswith(begin)]
        what = kinds[0] if kinds else "GBK, Latin-1, UTF-16 without its mark?"
        raise InputError(f"{file}, line {line}: not UTF-8 ({what}); save it as text in UTF-8")
    return text


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path of the same name beside the file `path` to write to; it takes the file's place on success only."""
    claim_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path), TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as beside:
        yield Path(beside) / path.name
        (Path(beside) / path.name).replace(path)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what a library raises where it cannot write, on a full disk for example, into an OSError with the target."""
    try:
        yield
    except Exception as error:
        own = isinstance(error, OSError) and error.errno and UNFINISHED in str(error.filename or UNFINISHED)
        if isinstance(error, InputError) or not own and not DISK_ERROR.search(str(error)):
            raise
        said = os.strerror(error.errno) if own else "cannot be written; is the disk full?"
        raise OSError(error.errno if own else errno.ENOSPC, said, str(target)) from error


def claim_file(path: Path, *marks: bytes) -> None:
    """Raise InputError where a folder or a device stands, or a file that begins with no mark of ours (patterns)."""
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device"
        raise InputError(f"{path}: a {kind} stands where a file is to be written; name another file")
    begins = re.compile(b"(\xef\xbb\xbf)?(%b)" % b"|".join(marks), re.DOTALL)
    if marks and path.is_file() and not begins.match(path.read_bytes()):
        raise InputError(f"{path}: is there already, and no such command made it; name another file")


def write_json(file: Path, content: object) -> None:
    """Write readable JSON at once; NaN is refused."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)  # before anything is opened
    with write_atomically(file) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_object(file: Path) -> dict:
    """Return the JSON object in a file; an empty one where there is no file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, TypeError):
        raise InputError(f"{file}: not a JSON object; remove it and run again") from None


def hub_folder(name: str | Path, files: list[str]) -> Path:
    """Return the folder that is named, or the one into which files (patterns) of the hub's model were fetched."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=files))
    except Exception as error:  # of many kinds, some of many lines
        raise InputError(f"{name}: neither a folder nor a model that the Hugging Face hub gives "
                         f"({type(error).__name__}); give a folder with {files}") from None


def remove(path: Path) -> None:
    """Remove a file or a folder that we made, if there is one; of a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))  # while the main process trains a detector
    # some pretext tasks leave weights unused, the same in every step
    gradients = DistributedDataParallelKwargs(static_graph=True)
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience, gradients])


def wait_for_everyone() -> None:
    """Return when all processes have come here."""
    if process_count() > 1:
        accelerator().wait_for_everyone()


@contextmanager
def one_at_a_time(lock: Path, work: str) -> Iterator[None]:
    """Do the block while no other command does it: wait for the one that holds the lock file, and say what it does."""
    if not is_main_process():  # of many processes, the main one locks
        yield
        return
    from filelock import FileLock, Timeout
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = FileLock(lock)  # the system takes it away from a process that ends, however it does
    try:
        holder.acquire(blocking=False)
        holder.release()
    except Timeout:
        print(f"waiting for another process that {work} …", file=sys.stderr, flush=True)
    with holder:
        yield


@contextmanager
def process_map(workers: int, chunk: int = 1) -> Iterator[Callable[..., Iterator]]:
    """Yield a `map` by so many processes, which take `chunk` items at a time; by this process if `workers` is 0."""
    if not workers:
        yield map
        return
    context = get_context("spawn")  # a fork of a process that runs torch may hang
    with ProcessPoolExecutor(workers, context, initializer=begin_to_work) as pool:
        yield partial(pool.map, chunksize=chunk)


def begin_to_work() -> None:
    """Let a process of `process_map` take one core, and end with the one that started it."""
    import cv2
    cv2.setNumThreads(1)
    end_with_parent()


def end_with_parent() -> None:
    """Let Linux end this process with the one that started it, though that may be killed."""
    with suppress(AttributeError):  # another system has no such call
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if not parent_process().is_alive():  # it was killed before
        os.kill(os.getpid(), signal.SIGTERM)


def in_report() -> bool:
    """Return True while a notebook runs headless for a report."""
    return os.environ.get("CAPTURE_REPORT") == "1"


def say(line: str) -> None:
    """Print a line at once, in the main process alone."""
    if is_main_process():
        print(line, flush=True)


def progress(iterable: Iterable, label: str, total: int | None = None, note: Callable[[], str] = str) -> Iterator:
    """Iterate with a live bar for a person; print one line in a report or a log. `note` returns what to add to it."""
    watched = not in_report() and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if watched and is_main_process():
        from tqdm import tqdm
        bar = tqdm(iterable, desc=label, total=total, leave=False, mininterval=0.5)
        for item in bar:
            yield item
            bar.set_postfix_str(note(), refresh=False)
        return

    # a log or a report
    started, count = time.perf_counter(), 0
    for item in iterable:
        count += 1
        yield item
    last = f"; {note()}" if count and note() else ""
    say(f"{label}: {count:,} in {time.perf_counter() - started:.1f} s{last}")


def pick_device() -> "torch.device":
    """Return the GPU where there is one, of several this process's; otherwise the CPU."""
    import torch
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, so that a stage gives the same whatever ran before it."""
    import numpy as np
    import torch
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def origin() -> dict:
    """Return commit (a plus: with changes), versions and machine; more threads sum in another order."""
    import importlib.metadata
    import platform
    import subprocess

    import torch

    describe = "git describe --always --abbrev=12 --dirty=+"
    commit = subprocess.run(describe, shell=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"commit": commit or "unknown", "versions": versions | {"python": platform.python_version()},
            "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
                         "threads": torch.get_num_threads(), "gpus": gpus}}
