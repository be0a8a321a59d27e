"""`make clean` removes nothing that we did not make."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from capture_lib.utils import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make on this system")
WORLD = ["world.json", "catalog.parquet", ".lock", "images/000/train-000000.jpg", "stages/.smoke-seed0/detector.lock"]
REPORT = [".capture-report", ".lock", "index.html", "timings.json", "metrics/05_retrieval.json",
          "notebooks/05_retrieval.failed.html", "rankings/capture-instance.txt", "rankings/capture-instance.parquet"]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def make_clean(folder: Path) -> str:
    """Run `make clean` in a folder; return what it says."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("capture_lib", "tests"):
        (folder / name).mkdir(exist_ok=True)
    return subprocess.run(["make", "clean"], cwd=folder, check=True, capture_output=True, text=True).stdout


def left(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"Makefile"}


def test_clean_knows_our_folders_by_their_marks(tmp_path):
    ours = ["data/world-mini/world.json", "data/world-mini/catalog.parquet", "reports/cpu/.capture-report",
            "reports/my shop/.capture-report", "capture_lib/__pycache__/a.pyc", ".venv/installed", ".venv/bin/python"]
    theirs = ["data/world-of-mine/catalog.parquet", "data/shop/world.json", "reports/thesis/index.html",
              "reports/reference/cpu/05.json", "reports/README.md", "__pycache__/b.pyc", "tests/a.py"]
    put(tmp_path, *ours, *theirs)
    for _ in range(2):  # the second time, nothing is there
        make_clean(tmp_path)
        assert left(tmp_path) == set(theirs)


def test_whole_worlds_and_reports_go(tmp_path):
    put(tmp_path / "data" / "world-mini", *WORLD, "stages/smoke-seed0/detector/model.safetensors",
        "stages/smoke-seed0/.pretrain.unfinished/state-00000002/model.safetensors")
    stages = tmp_path / "data" / "world-mini" / "stages" / "smoke-seed0"
    (stages / "detector" / "stage.json").write_text(json.dumps({"seed": 0, "files": ["model.safetensors"]}))
    (stages / ".pretrain.unfinished" / "stage.json").write_text(json.dumps({"seed": 0}))
    put(tmp_path / "reports" / "smoke", *REPORT)
    make_clean(tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("mine", [
    "reports/smoke/notes.md", "reports/smoke/pictures/a.jpg", "reports/smoke/rankings/mine.txt",
    "reports/smoke/metrics/mine.json", "reports/smoke/notebooks/05_retrieval-mine.ipynb",
    "data/world-mini/quiz.csv", "data/world-mini/images/holiday.jpg", "data/world-mini/stages/mine/a.txt",
    "data/world-mini/stages/smoke-seed0/detector/notes.md", ".venv/mine"])
def test_a_folder_with_something_of_a_users_stays(tmp_path, mine: str):
    put(tmp_path / "data" / "world-mini", *WORLD, "stages/smoke-seed0/detector/model.safetensors")
    stage = tmp_path / "data" / "world-mini" / "stages" / "smoke-seed0" / "detector"
    (stage / "stage.json").write_text(json.dumps({"seed": 0, "files": ["model.safetensors"]}))
    put(tmp_path / "reports" / "smoke", *REPORT)
    put(tmp_path, mine)
    before = left(tmp_path)
    said = make_clean(tmp_path)
    place = "/".join(Path(mine).parts[:2])
    assert left(tmp_path) == {file for file in before if file.startswith(f"{place}")}
    assert mine.startswith(".venv") or f"{place}: left as it is, for it holds {mine[len(place) + 1:]}\n" in said


def test_links_are_not_followed(tmp_path):
    put(tmp_path / "archive", *REPORT)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "smoke").symlink_to(tmp_path / "archive")
    before = left(tmp_path)
    make_clean(tmp_path)
    assert left(tmp_path) == before and (tmp_path / "reports" / "smoke").is_symlink()
