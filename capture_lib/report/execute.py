"""Execute the notebooks headless: each leaves itself and a page of it below `out/notebooks/`.

The notebooks themselves write `out/metrics/*.json`; `site` makes the report of both.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from unittest.mock import patch

from capture_lib.catalog.table import read_catalog
from capture_lib.utils import NOTEBOOKS, ROOT, InputError, write_atomically, write_json

# papermill, nbformat and the page's nbconvert are imported where they are used: they take a second

MARK = ".capture-report"  # an empty file in every folder that a run made
PARAMETERS = {"profile": "str", "catalog": "str", "out": "str", "seed": "int"}  # of every notebook
PACKAGE = Path(__file__).resolve().parents[1]  # capture_lib
MAX_SILENCE = 600  # seconds that the kernel's output may take to arrive when a cell has ended
KERNEL_OPTIONS = ["--IPKernelApp.log_level=50"]  # its notes are not for our readers
# what the kernels see: nobody is watching (no live bars, static output); no notes of a debugger
ENVIRONMENT = {"CAPTURE_REPORT": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message says which, why, what is kept of it, and how to go on."""


def run_notebooks(
    profile: str, catalog: Path | None, out: Path, seed: int = 0, only: str | None = None,
    resume: bool = False, notebooks: Path = NOTEBOOKS,
) -> None:
    """Execute the notebooks in order and write `out/notebooks/NN_name.ipynb` and `.html`.

    Args:
        catalog: a catalog folder; None for the profile's own drawn world.
        only: what the name of a notebook starts with ("03"), to execute this one alone.
        resume: keep what an earlier run executed from the same parameters, catalog, notebooks and library.

    Raises:
        InputError: a wrong `only`, `catalog` or `out`, or a notebook that doesn't take the parameters.
        NotebookFailed: a notebook stopped; those before it are kept, those after it were not started.
    """
    # look at everything before anything is made
    out = Path(out).resolve()
    check_ours(out)
    folder = str(Path(catalog).resolve()) if catalog else ""
    content = read_catalog(folder).fingerprint() if catalog else ""
    parameters = {"profile": profile, "catalog": folder, "out": str(out), "seed": seed}
    every = find_notebooks(notebooks)
    for file in every:
        check_parameters(file)
    prints = fingerprints(every, parameters, content)
    files = [file for file in every if file.stem.startswith(only or "")]
    if not files:
        raise InputError(f"{notebooks}: no notebook starts with {only!r}; name one by its number, such as 03")
    timings = read_timings(out)

    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    started = time.perf_counter()
    for number, file in enumerate(files, start=1):
        print(f"[{number}/{len(files)}] {file.stem} … ", end="", flush=True)
        if resume and is_done(out, file, timings, prints[file]):
            print("kept from an earlier run")
            continue
        try:
            seconds = execute(file, parameters, out / "notebooks")
        except BaseException as stop:  # Ctrl-C too: what is said of it starts on a line of its own
            print("failed" if isinstance(stop, NotebookFailed) else "stopped", flush=True)
            raise
        print(f"{duration(seconds)} (elapsed {duration(time.perf_counter() - started)})", flush=True)
        timings[file.stem] = {"seconds": round(seconds, 1), "fingerprint": prints[file]}
        write_json(out / "timings.json", timings)


def duration(seconds: float) -> str:
    """Return seconds for a reader: 8.2 s, 92 s, 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# ---- before anything runs


def find_notebooks(folder: Path) -> list[Path]:
    """Return the numbered notebooks in the order of execution: the tour, 00, shows what the others made."""
    files = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise InputError(f"{folder}: no notebooks here; expected files such as 01_data.ipynb")
    return sorted(files, key=lambda file: file.name.startswith("00"))


def check_ours(out: Path) -> None:
    """Raise InputError unless a report may be written to `out`; make nothing."""
    nearest = next(folder for folder in (out, *out.parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest}: a file, not a folder; name another folder with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest}: cannot be written to; name another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise InputError(f"{out}: holds files that no run made, and a report would overwrite some; "
                         "name an empty folder with --out")


def check_parameters(file: Path) -> None:
    """Raise InputError unless a notebook takes our parameters with their types; papermill only warns."""
    import papermill

    try:
        known = papermill.inspect_notebook(str(file))
    except ValueError as error:
        raise InputError(f"{file}: {one_line(error)}; save it with the kernel python3") from None
    for name, kind in PARAMETERS.items():
        if name not in known or known[name]["inferred_type_name"] != kind:
            raise InputError(f"{file}: does not take the parameter {name!r}; write `{name}: {kind} = …` in the "
                             "cell tagged 'parameters'")


def fingerprints(files: list[Path], parameters: dict[str, str | int], catalog: str) -> dict[Path, str]:
    """Return a digest for each notebook of all that it depends on: library, catalog, the notebooks before it."""
    import nbformat

    digest = hashlib.sha256(json.dumps([parameters, catalog]).encode())
    for source in sorted(PACKAGE.rglob("*")):  # templates and word tables too
        if source.is_file() and "__pycache__" not in source.parts:
            digest.update(str(source.relative_to(PACKAGE)).encode() + source.read_bytes())
    prints = {}
    for file in files:
        cells = nbformat.read(file, as_version=4).cells
        digest.update(json.dumps([(cell.cell_type, cell.source) for cell in cells]).encode())
        prints[file] = digest.hexdigest()[:16]
    return prints


def read_timings(out: Path) -> dict[str, dict]:
    """Return what earlier runs noted, `{stem: {"seconds", "fingerprint"}}`; empty without any."""
    file = out / "timings.json"
    if not file.is_file():
        return {}
    try:
        return {stem: dict(timing) for stem, timing in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{file}: not JSON with an object for each notebook; remove it and run again") from None


def is_done(out: Path, file: Path, timings: dict[str, dict], fingerprint: str) -> bool:
    """Return True where an earlier run executed this notebook and nothing that it depends on has changed."""
    folder = out / "notebooks"
    whole = (folder / file.name).is_file() and (folder / f"{file.stem}.html").is_file()
    failed = (folder / f"{file.stem}.failed.ipynb").is_file()
    return whole and not failed and timings.get(file.stem, {}).get("fingerprint") == fingerprint


# ---- one notebook


def execute(file: Path, parameters: dict[str, str | int], folder: Path) -> float:
    """Execute one notebook into `folder`, with a page of it, and return the seconds that took.

    Raises:
        NotebookFailed: a cell raised, or the kernel died or fell silent; earlier results stay as they are.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    folder.mkdir(parents=True, exist_ok=True)
    running = folder / f".{file.stem}.running.ipynb"
    failed = folder / f"{file.stem}.failed.ipynb"
    target = str(running).replace("{", "{{").replace("}", "}}")  # papermill takes it for a format
    started = time.perf_counter()
    try:
        with patch.dict(os.environ, ENVIRONMENT):
            papermill.execute_notebook(
                str(file), target, parameters, kernel_name="python3", progress_bar=False, cwd=str(ROOT),
                iopub_timeout=MAX_SILENCE, extra_arguments=KERNEL_OPTIONS)
        publish(running, folder / file.name)
    except (papermill.PapermillExecutionError, DeadKernelError, OSError) as error:
        cell = f", cell {failing_cell(running)}" if running.is_file() else ""
        if cell:
            publish(running, failed)
        raise NotebookFailed(f"notebook {file.stem}{cell}: {one_line(error)} (what ran is kept in {failed}; mend the "
                             "cause, then go on with `capture run --resume` and the same options)") from None
    finally:
        running.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    failed.with_suffix(".html").unlink(missing_ok=True)
    return time.perf_counter() - started


def publish(running: Path, file: Path) -> None:
    """Write an executed notebook to `file`, and its page beside it."""
    import nbformat

    from capture_lib.report.page import to_html

    notebook = nbformat.read(running, as_version=4)
    notebook.metadata.pop("widgets", None)  # views of a kernel that is gone
    notebook.metadata.papermill.update(input_path=file.name, output_path=file.name)
    with write_atomically(file) as beside:
        nbformat.write(notebook, beside)
    with write_atomically(file.with_suffix(".html")) as beside:
        beside.write_text(to_html(notebook, file.stem), encoding="utf-8")


def failing_cell(file: Path) -> int:
    """Return the number of the cell at which a partly executed notebook stopped: the 7 of `In [7]`."""
    import nbformat

    cells = nbformat.read(file, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    return sum(cell.metadata.get("papermill", {}).get("start_time") is not None for cell in code)


def one_line(error: Exception) -> str:
    """Return what a notebook stopped with, in one line."""
    if isinstance(error, TimeoutError):
        return f"the kernel's output did not arrive within {MAX_SILENCE} s; is the machine overloaded?"
    if type(error).__name__ == "DeadKernelError":
        return "the kernel died, most often for want of memory; try a smaller profile"
    text = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else str(error)
    return " ".join(text.split())[:400]
