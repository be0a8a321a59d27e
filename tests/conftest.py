"""What every test may use, above all the reports of whole runs.

Three runs of all notebooks are made by the command that a user types, one after the other, while other tests run: on
the smallest drawn world, on three photos with hostile text, and on real photos. Only those are made that a test of this
session asks for, and each once, whichever of the processes that share the tests makes it; tests that wait come last.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from capture_lib.experiments.run import Run

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads that wait for a busy core are slow

SHARED = Path(__file__).resolve().parents[2] / "shared"
HOSTILE = '<script>alert("x")</script> '


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED}")
    return SHARED


# ---- the catalogs of the runs


def three_photos(folder: Path) -> None:
    """Make a catalog as small as it can be, with markup in its captions and labels."""
    from drawn import make_catalog

    from capture_lib.catalog.table import write_catalog

    catalog = make_catalog(folder, train=1, gallery=1, val=0, test=1)
    catalog.table["caption"] = [HOSTILE + caption for caption in catalog.table["caption"]]
    catalog.table["labels"] = [[HOSTILE + label for label in labels] for labels in catalog.table["labels"]]
    write_catalog(catalog.table, catalog.folder)


def real_photos(folder: Path) -> None:
    """Make a catalog of photos of a fridge, without captions, labels, boxes and a gallery."""
    import pandas as pd

    from capture_lib.catalog.own_table import from_table

    photos = SHARED / "photos" / "fridge"
    table = pd.read_csv(photos / "table.csv", dtype=str, keep_default_na=False)
    bare = folder.with_suffix(".csv")
    table[["sample_id", "split", "caption", "image"]].assign(labels="").to_csv(bare, index=False)
    from_table(bare, photos, folder)


REPORTS: dict[str, Callable[[Path], None] | None] = {  # by fixture, in the order in which they are made
    "smoke_report": None, "tiny_report": three_photos, "real_report": real_photos}


# ---- the runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for a run behind those that don't."""
    items.sort(key=lambda item: bool({*REPORTS, "smoke_run"} & set(item.fixturenames)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give the tests of a file to one process, for they share what they make; those of notebooks singly."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith("tests/notebooks/") else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """The runs that this session asks for, by fixture; they begin with its first test."""
    from filelock import FileLock

    asked = {name for item in request.session.items for name in item.fixturenames}
    wanted = [name for name in REPORTS if name in asked and (SHARED.is_dir() or name != "real_report")]
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes that share the tests
    with FileLock(folder / "catalogs.lock"):
        for name in wanted:
            if REPORTS[name] and not (folder / f"{name}-catalog").exists():
                REPORTS[name](folder / f"{name}-catalog")
    with ThreadPoolExecutor(1) as worker:
        yield {name: worker.submit(report_of, folder, name) for name in wanted}
        worker.shutdown(cancel_futures=True)


def report_of(folder: Path, name: str) -> Path:
    """Return the folder of a report, made by this process or by another."""
    from filelock import FileLock

    done = folder / f"{name}.done"
    with FileLock(folder / f"{name}.lock"):
        if not done.exists():
            options = ["--catalog", str(folder / f"{name}-catalog")] if REPORTS[name] else []
            capture_run(options, folder / name)
            done.touch()
    return folder / name


def capture_run(options: list[str], out: Path) -> None:
    """Execute all notebooks in the profile `smoke`."""
    command = [sys.executable, "-m", "capture_lib", "run", "--profile", "smoke", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}"


@pytest.fixture(scope="session")
def smoke_report(runs: dict[str, Future]) -> Path:
    """The report of the whole line on the smallest world."""
    return runs["smoke_report"].result()


@pytest.fixture(scope="session")
def tiny_report(runs: dict[str, Future]) -> Path:
    """The report of the whole line on three photos with hostile text."""
    return runs["tiny_report"].result()


@pytest.fixture(scope="session")
def real_report(shared: Path, runs: dict[str, Future]) -> Path:
    """The report of the whole line on real photos without anything else."""
    return runs["real_report"].result()


@pytest.fixture(scope="session")
def smoke_run(runs: dict[str, Future]) -> "Run":
    """The run on the smallest world; its stages are those of the report, or else made where they are needed."""
    from capture_lib.experiments import stages
    from capture_lib.experiments.run import open_run

    if "smoke_report" in runs:
        runs["smoke_report"].result()
    run = open_run("smoke")
    stages.pretrained(run)
    return run
