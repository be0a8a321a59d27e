"""Execute the notebooks headless: each leaves itself and a page of it below `out/notebooks/`."""

import hashlib
import json
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from capture_lib import profiles, world
from capture_lib.catalog.table import read_catalog
from capture_lib.experiments import comparison, stages
from capture_lib.experiments.plan import Task, kind, tasks_of
from capture_lib.experiments.run import Run, check_parts, claim_folder, open_run, stages_below, world_folder
from capture_lib.report import NUMBERED
from capture_lib.report.schedule import ProcessKilled, default_jobs, run_tasks
from capture_lib.utils import (
    NOTEBOOKS,
    REPORTS,
    ROOT,
    InputError,
    one_at_a_time,
    read_object,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    import nbformat

PACKAGE = Path(__file__).resolve().parents[1]  # capture_lib
MAX_SILENCE = 600  # seconds that a kernel may take to start, and its output to arrive when a cell has ended

WHOLE, SO_FAR = "the whole run", "so far"  # among the timings of tasks: all sittings of a run, until it is done
LIBRARY = "library"  # among the fingerprints of notebooks
NEEDED = {  # what notebooks show, by their numbers; of others, all tasks are done before
    "01": (), "A1": ("caption words",), "02": ("composites",), "03": ("regions",), "04": ("pretraining",),
    "A2": ("pretraining",),
    "05": ("pretraining", "choices"), "00": ("pretraining", "choices"),  # some catalogs have nothing to choose from
    "08": ("pretraining", "choices"),
    "07": ("pretraining", "choices", "capture", "two-stream", "one-stream", "dual-encoder", "captions varied: regions")}


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message says which, why, what is kept of it, and how to go on."""


STOPPED = (NotebookFailed, ProcessKilled)  # a run that did not end; what it made is kept


def run_notebooks(
    profile: str, catalog: Path | None, out: Path, seed: int = 0, only: str | None = None,
    resume: bool = False, notebooks: Path = NOTEBOOKS, jobs: int = 0,
) -> None:
    """Execute the notebooks, and before them the tasks that they need; write `out/notebooks/NN_name.ipynb` and `.html`.

    `catalog`: None for a drawn world. `only`: what names start with. `resume`: keep what an earlier run executed from
    the same parameters, catalog, notebooks and library. `jobs`: how many processes work side by side; 0: one a core,
    with a GPU one. Raises InputError before anything runs, or one of STOPPED.
    """
    # check what was asked for
    started = time.perf_counter()
    out = Path(out).resolve()
    folder = str(Path(catalog).resolve()) if catalog else ""
    parameters = {"profile": profile, "catalog": folder, "out": str(out), "seed": seed}
    content = read_catalog(folder).fingerprint() if catalog else ""
    files = sorted(Path(notebooks).glob(NUMBERED), key=lambda file: (file.name[:2] == "00", file.name))
    stems = {file.stem: file for file in files}
    chosen = [file for file in files if file.name.startswith(only or "")]
    if not chosen:
        raise InputError(f"{notebooks}: no notebook {only or 'NN'}…ipynb here; name one by its number, such as 03")
    digests = fingerprints(files, parameters, content)
    settings = profiles.get(profile)
    place = Path(folder or world_folder(settings))
    check_parts(settings, stages_below(place, settings, seed))
    claim_folder(out, place)
    with one_at_a_time(out / ".lock", f"makes the report in {out}"):
        timings = read_object(out / "timings.json")
        timings = {name: row for name, row in timings.items() if isinstance(row, dict) and "seconds" in row}
        kept = {file for file in chosen if resume and timings.get(file.stem, {}).get("fingerprint") == digests[file]
                and is_whole(out / "notebooks" / f"{file.stem}.html")}
        for file in kept:
            print(f"{file.stem}: kept from an earlier run")
        earlier = timings.get(SO_FAR) or timings.get(WHOLE, {})  # sittings
        goes_on = resume and earlier.get("fingerprint") == digests[LIBRARY]
        before = earlier["seconds"] if goes_on else 0.0
        tasks = plan(profile, folder, seed, [file for file in chosen if file not in kept], out)
        past = read_object(REPORTS / "reference" / profile / "timings.json")
        past = {name: row["seconds"] for name, row in past.items()}
        state = SO_FAR
        try:
            for name, seconds in run_tasks(tasks, jobs or default_jobs(), past):
                row = {"seconds": round(seconds, 1)}
                if name in stems:
                    row["fingerprint"] = digests[stems[name]]
                elif goes_on and name in timings:  # what is found takes next to nothing
                    row["seconds"] = max(row["seconds"], timings[name]["seconds"])
                timings[name] = row
                write_json(out / "timings.json", timings)
            state = WHOLE
        finally:
            if tasks and len(chosen) == len(files):
                timings = {name: row for name, row in timings.items() if name not in (SO_FAR, WHOLE)}
                gone = before + time.perf_counter() - started
                timings[state] = {"seconds": round(gone, 1), "fingerprint": digests[LIBRARY]}
                write_json(out / "timings.json", timings)


def plan(profile: str, catalog: str, seed: int, files: list[Path], out: Path) -> dict[str, Task]:
    """Return notebooks as tasks, and before them those that they need."""
    if not files:
        return {}
    tasks = tasks_of(open_run(profile, catalog, str(out), seed))
    parameters = {"profile": profile, "catalog": catalog, "out": str(out), "seed": seed}
    books = {}
    for file in files:
        first = NEEDED.get(file.name[:2])
        needs = tuple(name for name in tasks if first is None or kind(name) in first)
        books[file.stem] = Task(needs, partial(execute, file, parameters, out / "notebooks"))
    # leave out what nobody needs
    needed = {name for book in books.values() for name in book.needs}
    for name in reversed(tasks):
        if name in needed:
            needed.update(tasks[name].needs)
    return {name: task for name, task in tasks.items() if name in needed} | books


def is_whole(page: Path) -> bool:
    """Return whether a notebook's last run left its page."""
    return page.is_file() and not page.with_suffix(".failed.html").is_file()


def fingerprints(files: list[Path], *inputs: object) -> dict[Path | str, str]:
    """Return for each notebook a digest of what it rests on: inputs, library, the notebooks before it.

    That of inputs and library alone is named `LIBRARY`.
    """
    digest = hashlib.sha256(json.dumps(inputs).encode())
    for source in sorted(PACKAGE.rglob("*")):  # templates and word tables too
        if source.is_file() and "__pycache__" not in source.parts:
            digest.update(str(source.relative_to(PACKAGE)).encode() + source.read_bytes())
    digests = {LIBRARY: digest.hexdigest()[:16]}
    for file in files:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        digest.update(json.dumps([(cell["cell_type"], cell["source"]) for cell in cells]).encode())
        digests[file] = digest.hexdigest()[:16]
    return digests


def execute(file: Path, parameters: dict[str, str | int], folder: Path) -> None:
    """Execute one notebook into `folder`, with a page of it, or raise NotebookFailed and keep what ran."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    from capture_lib.report.kernel import OwnKernelManager
    from capture_lib.report.page import to_html

    notebook = nbformat.read(file, as_version=4)
    skip(notebook, lacking(open_run(**parameters)))
    reason = ""
    failed = folder / f"{file.stem}.failed.ipynb"
    with TemporaryDirectory() as scratch:
        running = Path(scratch) / file.name
        try:
            nbformat.write(notebook, running)
            papermill.execute_notebook(
                str(running), str(running), parameters, kernel_name="python3", progress_bar=False,
                engine_name="saves-once", cwd=str(ROOT), start_timeout=MAX_SILENCE, iopub_timeout=MAX_SILENCE,
                kernel_manager_class=OwnKernelManager, extra_arguments=["--IPKernelApp.log_level=50"])
        except papermill.PapermillExecutionError as error:
            reason = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        except DeadKernelError:
            reason = "the kernel died, most often for want of memory; try a smaller profile"
        except (OSError, RuntimeError) as error:  # no room on the disk, or a kernel that is too slow
            reason = str(error)
        try:
            notebook = nbformat.read(running, as_version=4)
        except (OSError, ValueError):  # there was no room for it
            pass

    # keep it, with a page; without views of a kernel that is gone, and paths of this machine
    target = failed if reason else folder / file.name
    for name in ("widgets", "papermill"):
        notebook.metadata.pop(name, None)
    with write_atomically(target) as beside:
        nbformat.write(notebook, beside)
    with write_atomically(target.with_suffix(".html")) as beside:
        beside.write_text(to_html(notebook, file.stem), encoding="utf-8")
    if reason:
        raise NotebookFailed(f"notebook {file.stem}, {' '.join(reason.split())[:400]} (what ran is kept in {failed}; "
                             "mend the cause, then go on with `capture run --resume` and the same options)")
    for outdated in (failed, failed.with_suffix(".html")):
        outdated.unlink(missing_ok=True)


def lacking(run: Run) -> set[str]:
    """Return what a run's catalog does not have, of all that a cell may need by its tags, "needs: …"."""
    table = stages.samples(run)
    gallery = (table["split"] == "gallery").any()
    has = {
        "gallery": gallery,
        "queries": table["split"].isin(["val", "test"]).any(),
        "labels": gallery and any(map(len, stages.samples(run, "test")["labels"])),  # of test queries, and a gallery
        "comparison": comparison.comparable(run),  # labels of val, too
        "boxes": len(run.catalog.boxed("val", "test")) > 0,
        "labelled boxes": any(map(len, run.catalog.boxed("test")["box_labels"])),
        "captions": stages.captions_speak(run),
        "training": comparison.trainable(run),  # pairs enough to train CAPTURE
        "world": world.settings_of(run.catalog.folder) is not None}
    return {name for name, there in has.items() if not there}


def skip(notebook: "nbformat.NotebookNode", lacks: set[str]) -> None:
    """Put a line in the place of each cell that needs what the catalog lacks."""
    for cell in notebook.cells:
        needs = [tag.removeprefix("needs: ") for tag in cell.metadata.get("tags", []) if tag.startswith("needs: ")]
        missing = [need for need in needs if need in lacks]
        if missing:
            cell.cell_type = "markdown"
            cell.source = f"*Left out: it needs {' and '.join(missing)}, which this catalog does not have.*"
            for field in ("outputs", "execution_count"):
                cell.pop(field, None)
