"""What every test may use, above all the reports of whole runs.

Three runs of all notebooks are made by the command that a user types, one after the other, while the other tests use
the second core: on the smallest drawn world, on three photos with hostile text, and on real photos. Only those are made
that a test of this session asks for; the tests that ask for them come last.
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


def smallest_world(folder: Path) -> list[str]:
    """Draw the world of the profile `smoke` where it is not there; return the options of a run on it."""
    from capture_lib.experiments.run import open_run

    open_run("smoke")
    return []


def three_photos(folder: Path) -> list[str]:
    """Make a catalog as small as it can be, with markup in its captions and labels."""
    from drawn import make_catalog

    from capture_lib.catalog.table import write_catalog

    smallest_world(folder)  # it lends its foregrounds
    catalog = make_catalog(folder / "tiny", train=1, gallery=1, val=0, test=1)
    catalog.table["caption"] = [HOSTILE + caption for caption in catalog.table["caption"]]
    catalog.table["labels"] = [[HOSTILE + label for label in labels] for labels in catalog.table["labels"]]
    write_catalog(catalog.table, catalog.folder)
    return ["--catalog", str(catalog.folder)]


def real_photos(folder: Path) -> list[str]:
    """Make a catalog of photos of a fridge, without captions, labels, boxes and a gallery."""
    import pandas as pd

    from capture_lib.catalog.own_table import from_table

    smallest_world(folder)
    photos = SHARED / "photos" / "fridge"
    table = pd.read_csv(photos / "table.csv", dtype=str, keep_default_na=False)
    folder.mkdir(parents=True, exist_ok=True)
    table[["sample_id", "split", "caption", "image"]].assign(labels="").to_csv(folder / "bare.csv", index=False)
    from_table(folder / "bare.csv", photos, folder / "fridge")
    return ["--catalog", str(folder / "fridge")]


REPORTS: dict[str, Callable[[Path], list[str]]] = {  # by fixture, in the order in which they are made
    "smoke_report": smallest_world, "tiny_report": three_photos, "real_report": real_photos}


# ---- the runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for a run behind those that don't."""
    items.sort(key=lambda item: bool({*REPORTS, "smoke_run"} & set(item.fixturenames)))


@pytest.fixture(scope="session", autouse=True)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """The runs that this session asks for, by fixture; they begin with its first test."""
    names = {name for item in request.session.items for name in item.fixturenames}
    folder = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(1) as worker:
        started = {}
        for name, catalog in REPORTS.items():
            if name in names and (SHARED.is_dir() or name != "real_report"):
                started[name] = worker.submit(capture_run, catalog(folder), folder / name)
        yield started
        worker.shutdown(cancel_futures=True)


def capture_run(options: list[str], out: Path) -> Path:
    """Execute all notebooks in the profile `smoke`; return the report's folder."""
    command = [sys.executable, "-m", "capture_lib", "run", "--profile", "smoke", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}"
    return out


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
