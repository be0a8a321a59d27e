"""`make clean` removes nothing that we did not make."""

import shutil
import subprocess
from pathlib import Path

from capture_lib.utils import ROOT


def test_clean_removes_caches_and_our_environment_alone(tmp_path: Path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = ["data/world-mini/world.json", "data/world-mini/notes.txt", "data/shop/catalog.parquet",
            "reports/cpu/.capture-report", "reports/cpu/index.html", "capture_lib/a.py", ".venv/mine"]
    gone = ["capture_lib/__pycache__/a.pyc", "tests/unit/__pycache__/b.pyc", ".pytest_cache/c", ".ruff_cache/d"]
    for name in kept + gone:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all((tmp_path / name).is_file() for name in kept)
    assert not any((tmp_path / name).exists() for name in gone)

    (tmp_path / ".venv" / "installed").touch()  # `make` made this one
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / ".venv").exists()
