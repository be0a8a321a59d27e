"""`make clean` removes nothing that we did not make."""

import shutil
import subprocess

import pytest

from capture_lib.utils import ROOT


@pytest.mark.skipif(not shutil.which("make"), reason="no make on this system")
def test_clean_knows_our_folders_by_their_marks(tmp_path):
    ours = ["data/world-mini/world.json", "data/world-mini/catalog.parquet", "reports/cpu/.capture-report",
            "reports/my shop/.capture-report", "capture_lib/__pycache__/a.pyc"]
    theirs = ["data/world-of-mine/catalog.parquet", "data/shop/world.json", "reports/thesis/index.html",
              "reports/reference/cpu/05.json", "reports/README.md", "__pycache__/b.pyc", "tests/a.py"]
    for name in ours + theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for _ in range(2):  # the second time, nothing is there
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
        left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
        assert left == {*theirs, "Makefile"}
