"""Executing the notebooks headless: each leaves itself and a page of it under `out/notebooks/`.

The notebooks themselves write `out/metrics/*.json`; what stood there before is kept in `out/previous/`. The report
of both is made by `site`.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from capture_lib.catalog.table import read_catalog
from capture_lib.report import changes
from capture_lib.report.page import to_html
from capture_lib.report.results import duration
from capture_lib.utils import NOTEBOOKS, REPORTS, ROOT, InputError, write_atomically

MARK = ".capture-report"  # an empty file in every folder that a run made
PARAMETERS = {"profile": "str", "catalog": "str", "out": "str", "seed": "int"}  # of every notebook


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error: its name, the number of the cell as in `In [7]`, and the error."""

    def __init__(self, name: str, cell: int, error: str, kept: Path):
        self.name, self.cell, self.error, self.kept = name, cell, error, kept
        super().__init__(f"notebook {name}, cell {cell}: {error} (what ran is kept in {kept}; mend the "
                         "cause, then go on with `capture run --resume` and the same options)")


def run_notebooks(
    profile: str, catalog: Path | None, out: Path, seed: int = 0, only: str | None = None,
    resume: bool = False, notebooks: Path = NOTEBOOKS,
) -> None:
    """Executes the notebooks in order and writes `out/notebooks/NN_name.ipynb` and `.html`.

    Args:
        catalog: a catalog folder; None for the profile's own rendered world.
        only: what the name of a notebook starts with ("03"), to execute this one alone.
        resume: keep what an earlier run executed from the same parameters, catalog, notebooks and library.

    Raises:
        InputError: no such notebook or catalog, `out` can't be written to, or a notebook doesn't take the parameters.
        NotebookFailed: a cell raised; the notebooks before it are kept, those after it were not started.
    """
    out = Path(out).resolve()
    check_writable(out)
    check_ours(out)
    folder = str(Path(catalog).resolve()) if catalog else ""
    parameters = {"profile": profile, "catalog": folder, "out": str(out), "seed": seed}
    every = find_notebooks(notebooks)
    for file in every:
        check_parameters(file, parameters)
    prints = fingerprints(every, parameters, read_catalog(folder).fingerprint() if catalog else "")
    files = [file for file in every if file.stem.startswith(only or "")]
    if not files:
        raise InputError(f"{notebooks}: no notebook starts with {only!r}; name one by its number, such as 03")
    timings = read_timings(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    usual = read_timings(REPORTS / "reference" / profile) | timings  # of a machine like ours, until there are our own
    kept = [file for file in files if resume and is_done(out, file, timings, prints[file])]
    started = time.perf_counter()
    for number, file in enumerate(files, start=1):
        if file in kept:
            print(f"[{number}/{len(files)}] {file.stem} … kept from an earlier run")
            continue
        expected = usual.get(file.stem, {}).get("seconds")
        print(f"[{number}/{len(files)}] {file.stem}" + (f", usually {duration(expected)}" if expected else "") + " … ",
              end="", flush=True)
        try:
            changes.keep(out, file.stem)
            seconds = execute(file, parameters, out / "notebooks")
        except BaseException as stop:  # Ctrl-C too: what is said of it starts on a line of its own
            print("failed" if isinstance(stop, NotebookFailed) else "stopped", flush=True)
            raise
        ahead = [usual.get(later.stem, {}).get("seconds") for later in files[number:] if later not in kept]
        print(f"done in {duration(seconds)} ({pace(time.perf_counter() - started, ahead)})", flush=True)
        timings[file.stem] = {"seconds": round(seconds, 1), "fingerprint": prints[file]}
        with write_atomically(out / "timings.json") as beside:
            beside.write_text(json.dumps(timings, indent=1))


def find_notebooks(folder: Path) -> list[Path]:
    """The numbered notebooks of a folder in the order they are executed: the tour, 00, shows what the others made."""
    files = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"), key=lambda file: (file.name.startswith("00"), file.name))
    if not files:
        raise InputError(f"{folder}: no notebooks here; expected files such as 01_data.ipynb")
    return files


def check_writable(out: Path) -> None:
    """Raises InputError unless `out` is a folder that can be written to, or made; makes nothing."""
    nearest = next(folder for folder in (out, *out.parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest}: a file, not a folder; name another folder with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest}: cannot be written to; name another folder with --out")


def check_ours(out: Path) -> None:
    """Raise InputError where `out` holds files and no run made it; make nothing."""
    marks = (MARK, "timings.json", "metrics")  # the last two: of a run by an earlier version
    if out.is_dir() and any(out.iterdir()) and not any((out / mark).exists() for mark in marks):
        raise InputError(f"{out}: holds files that no run made, and a report would overwrite some; "
                         "name an empty folder with --out")


def check_parameters(file: Path, parameters: dict[str, str | int]) -> None:
    """Raises InputError unless a notebook takes the parameters with their types; papermill only warns."""
    try:
        known = papermill.inspect_notebook(str(file))
    except ValueError as error:
        raise InputError(f"{file}: {one_line(error)}; save it with the kernel python3") from None
    for name in parameters:
        if name not in known:
            raise InputError(f"{file}: unknown parameter {name!r}; write `{name}: {PARAMETERS[name]} = …` in "
                             "the cell tagged 'parameters'")
        found = known[name]["inferred_type_name"]
        if found != PARAMETERS[name]:
            raise InputError(f"{file}: parameter {name!r} is of type {found}; annotate it {PARAMETERS[name]}")


def fingerprints(files: list[Path], parameters: dict[str, str | int], catalog: str) -> dict[Path, str]:
    """A digest for each notebook of all that its result depends on, the notebooks before it included."""
    digest = hashlib.sha256(json.dumps([parameters, catalog]).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    prints = {}
    for file in files:
        cells = nbformat.read(file, as_version=4).cells
        digest.update(json.dumps([(cell.cell_type, cell.source) for cell in cells]).encode())
        prints[file] = digest.hexdigest()[:16]
    return prints


def read_timings(out: Path) -> dict[str, dict]:
    """What earlier runs noted of each notebook, `{stem: {"seconds", "fingerprint"}}`; empty without any."""
    file = out / "timings.json"
    try:
        timings = json.loads(file.read_text()) if file.is_file() else {}
        if all(isinstance(timing, dict) for timing in timings.values()):
            return timings
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{file}: not JSON with an object for each notebook; remove the file and run again")


def is_done(out: Path, file: Path, timings: dict[str, dict], fingerprint: str) -> bool:
    """True where an earlier run executed this notebook, and nothing that it depends on has changed since."""
    there = {suffix for suffix in (".ipynb", ".html", ".failed.ipynb")
             if (out / "notebooks" / f"{file.stem}{suffix}").is_file()}
    return there == {".ipynb", ".html"} and timings.get(file.stem, {}).get("fingerprint") == fingerprint


def execute(file: Path, parameters: dict[str, str | int], folder: Path) -> float:
    """Executes one notebook into `folder`, with a page of it, and returns the seconds that took.

    Raises:
        NotebookFailed: a cell raised or the kernel died; earlier results of the notebook stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running, failed = folder / f".{file.stem}.running.ipynb", folder / f"{file.stem}.failed.ipynb"
    started = time.perf_counter()
    try:
        with report_mode():
            target = str(running).replace("{", "{{").replace("}", "}}")  # papermill takes it for a format
            notebook = papermill.execute_notebook(
                str(file), target, parameters, kernel_name="python3", progress_bar=False, cwd=str(ROOT),
                extra_arguments=["--IPKernelApp.log_level=50"])  # its notes are not for our readers
    except (PapermillExecutionError, DeadKernelError) as error:
        running.replace(failed)
        write_page(failed)
        raise NotebookFailed(file.stem, failing_cell(failed), one_line(error), failed) from None
    finally:
        running.unlink(missing_ok=True)
    notebook.metadata.pop("widgets", None)  # views of a kernel that is gone
    notebook.metadata.papermill.update(input_path=file.name, output_path=file.name)
    with write_atomically(folder / file.name) as beside:
        nbformat.write(notebook, beside)
    write_page(folder / file.name)
    for outdated in (failed, failed.with_suffix(".html")):
        outdated.unlink(missing_ok=True)
    return time.perf_counter() - started


def write_page(file: Path) -> None:
    """Writes the page of an executed notebook beside it."""
    with write_atomically(file.with_suffix(".html")) as beside:
        beside.write_text(to_html(nbformat.read(file, as_version=4), file.stem), encoding="utf-8")


@contextmanager
def report_mode() -> Iterator[None]:
    """Tells the kernels that start meanwhile that nobody is watching: no live bars, static output."""
    meant = {"CAPTURE_REPORT": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # the second: no debugger's note
    before = {name: os.environ.get(name) for name in meant}
    os.environ.update(meant)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def failing_cell(file: Path) -> int:
    """The number of the cell at which a partly executed notebook stopped: the 7 of `In [7]`."""
    cells = nbformat.read(file, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    return sum(cell.metadata.get("papermill", {}).get("start_time") is not None for cell in code)


def one_line(error: Exception) -> str:
    """What a notebook stopped with, in one line."""
    if isinstance(error, DeadKernelError):
        return "the kernel died, most often for want of memory; try a smaller profile"
    cell_raised = isinstance(error, PapermillExecutionError)
    return " ".join(f"{error.ename}: {error.evalue}".split() if cell_raised else str(error).split())[:400]


def pace(elapsed: float, ahead: list[float | None]) -> str:
    """The elapsed time, and the time left where each notebook ahead has been timed before."""
    minutes, seconds = divmod(round(elapsed), 60)
    said = f"elapsed {minutes}:{seconds:02}"
    return f"{said}, about {duration(sum(ahead))} left" if ahead and None not in ahead else said
