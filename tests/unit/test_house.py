"""The rooms of the library: imports point down, model and world stand apart, nothing heavy is loaded unasked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from capture_lib.utils import ROOT

LIBRARY = ROOT / "capture_lib"
FILES = sorted(LIBRARY.rglob("*.py"))
FLOORS = ["utils", "catalog", "world", "model", "proposals", "training", "retrieval", "experiments", "report",
          "explorer", "cli"]
FLOOR_OF = {name: floor for floor, name in enumerate(FLOORS)} | {
    "profiles": FLOORS.index("experiments"), "__main__": FLOORS.index("cli"), "__init__": 0}
ALLOWED = {"model": {"utils", "model"}, "world": {"utils", "catalog", "world"}}
MAX_LINES = 350
HEAVY = ["timm", "torchvision", "sklearn", "seaborn", "accelerate", "transformers", "papermill", "matplotlib", "cv2",
         "faster_coco_eval", "httpx", "datasets"]


def imports(file: Path) -> list[str]:
    """Return the modules of the library that a file imports, wherever it does: catalog.table, utils, …"""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "capture_lib":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("capture_lib."):
            found.append(node.module.removeprefix("capture_lib."))
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("capture_lib.") for alias in node.names if "capture_lib." in alias.name]
    return found


def room_of(file: Path) -> str:
    return file.relative_to(LIBRARY).with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_imports_point_down(file: Path):
    room = room_of(file)
    rooms = {name.split(".")[0] for name in imports(file)}
    assert [name for name in rooms if FLOOR_OF[name] > FLOOR_OF[room]] == []
    assert rooms <= ALLOWED.get(room, rooms)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_the_world_has_one_door_and_no_file_is_long(file: Path):
    if room_of(file) != "world":
        assert [name for name in imports(file) if name.startswith("world.")] == []
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_import_is_relative_or_hidden():
    """The test above reads `from capture_lib…` and `import capture_lib…` only."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), file
            assert not (isinstance(node, ast.Name) and node.id in ("__import__", "import_module")), file


@pytest.mark.parametrize("unwanted", [
    {"capture_lib.cli": [*HEAVY, "torch", "pandas", "pyarrow", "numpy"],
     "capture_lib.model": [*HEAVY, "pandas", "pyarrow"],
     "capture_lib.experiments.stages": [*HEAVY[:-4], "faster_coco_eval", "datasets"]},
    {"capture_lib.report.figures": ["torch", "seaborn", "sklearn"]},
], ids=["stages", "figures"])
def test_what_is_not_used_is_not_loaded(unwanted: dict[str, list[str]]):
    """Modules imported one after another, in a process that has loaded nothing."""
    lines = ["import sys"]
    for module, names in unwanted.items():
        lines += [f"import {module}", f"print(*sorted(set({names!r}) & set(sys.modules)))"]
    code = "\n".join(lines)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []
