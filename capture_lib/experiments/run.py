"""A run: a profile on a catalog with a seed; its stages, made once, and the record of its figures.

A stage is a folder that is made once and then loaded. It is made anew when its settings, the code
it rests on, anything upstream or a row of the catalog that it reads has changed, and says which.
Stages lie beside their catalog, so that every notebook and `capture search` finds them.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from capture_lib import profiles, utils, world
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.profiles import Profile
from capture_lib.utils import ROOT, InputError, is_main_process, wait_for_everyone

RECORD = "stage.json"  # what a stage was made from
ROWS = "rows.npy"  # digests of the rows of a stage that can be extended
PACKAGES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "papermill",
            "opencv-python-headless", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A profile, a catalog, a seed, and the folder `out` for figures."""

    profile: Profile
    catalog: Catalog
    out: Path
    seed: int
    started: float = field(default_factory=time.perf_counter, compare=False)

    @property
    def stages(self) -> Path:
        """The folder that holds the stages of this run."""
        return self.catalog.folder / "stages" / f"{self.profile.name}-seed{self.seed}"

    def stage(self, module: ModuleType, settings: object, upstream: list[Path],
              read: pd.DataFrame | None, make: Callable[[Path], None],
              extend: Callable[[Path, Path, np.ndarray], None] | None = None,
              together: bool = False, name: str = "") -> Path:
        """Return the folder of a stage; `make(folder)` fills it unless its record fits already.

        An interrupted `make` finds its unfinished folder again and may go on where it stopped.

        Args:
            module: names the stage; the code it rests on is this module and all that it imports.
            settings: a dataclass, or a dict of them.
            upstream: the folders of the stages that this one reads.
            read: rows (N) and columns of the catalog that the stage itself reads, if any.
            extend: `extend(folder, old, places)` makes the stage from its old folder where rows
                alone changed; places (N,) says where each row stood, -1 if nowhere. What is built
                on such a stage depends on the rows it reads itself, not on those of this stage.
            together: all processes make the stage, not the main one while the others wait.
            name: of the folder; without, the last part of the module's name.
        """
        folder = self.stages / (name or module.__name__.rsplit(".", 1)[-1])
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        record = self.stage_record(module, settings, upstream, read)
        record["code"] += source_digest(make)
        stored = read_record(folder / RECORD)
        wait_for_everyone()  # all have looked before one changes anything
        if stored == record:
            return folder
        name = str(folder.relative_to(self.stages))
        if extend and changes(stored, record) == ["catalog"]:
            places = pd.Index(np.load(folder / ROWS)).get_indexer(self.catalog.row_digests(read))
            utils.say(f"{name}: {sum(places >= 0):,} of {len(places):,} rows are kept, the others made")
            make = partial(extend, old=folder, places=places)
        elif folder.exists():
            utils.say(f"{name}: made anew, because {reason(stored, record)}")

        # start in an empty folder, or go on in that of an interrupted process
        if is_main_process() and read_record(unfinished / RECORD) != record:
            utils.remove(unfinished)
            unfinished.mkdir(parents=True)
            if extend:
                np.save(unfinished / ROWS, self.catalog.row_digests(read))
            utils.write_json(unfinished / RECORD, record)
        wait_for_everyone()
        utils.seed_everything(self.seed)
        if together or is_main_process():
            make(unfinished)
        wait_for_everyone()

        # take the place of the old folder, which may take a while to remove
        if is_main_process():
            outdated = folder.with_name(f".{folder.name}.outdated")
            utils.remove(outdated)
            if folder.exists():
                folder.rename(outdated)
            unfinished.rename(folder)
            utils.remove(outdated)
        wait_for_everyone()
        return folder

    def stage_record(self, module: ModuleType, settings: object, upstream: list[Path],
                     read: pd.DataFrame | None) -> dict:
        """Return what a stage is made from, by kind; arguments as those of `stage`."""
        values = json.loads(json.dumps(settings, default=asdict))
        rows = b"" if read is None else self.catalog.row_digests(read).tobytes()
        return {"settings": pd.json_normalize(values).to_dict("records")[0], "seed": self.seed,
                "code": code_digest(module), "catalog": digest(rows),
                "upstream": {folder.name: identity(folder) for folder in upstream}}

    def record(self, stem: str, **figures: object) -> Path:
        """Write `metrics/<stem>.json`: a notebook's figures, as fractions, with their provenance."""
        file = self.out / "metrics" / f"{stem}.json"
        utils.write_json(file, {"provenance": self.provenance(stem), **figures})
        return file

    def provenance(self, stem: str) -> dict:
        """Return everything that one needs to make a figure again."""
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        versions["python"] = platform.python_version()
        return {"stem": stem, "profile": self.profile.name, "seed": self.seed,
                "catalog": self.catalog.name, "catalog_fingerprint": self.catalog.fingerprint(),
                "parameters": without_folders(asdict(self.profile)), "commit": commit(),
                "versions": versions, "hardware": hardware(),
                "wall_time_s": round(time.perf_counter() - self.started, 1),
                "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def open_run(profile: str = "smoke", catalog: str = "", out: str = "", seed: int = 0) -> Run:
    """Open a run by the parameters of a notebook; draw the profile's world if no catalog is named.

    Raises:
        InputError: the profile is unknown or its catalog is not there.
    """
    chosen = profiles.get(profile)
    found = read_catalog(Path(catalog) if catalog else default_catalog(chosen))
    name = f"{chosen.name}-{found.name}" if catalog else chosen.name
    return Run(chosen, found, Path(out).resolve() if out else utils.REPORTS / name, seed)


def default_catalog(profile: Profile) -> Path:
    """Return the folder of the profile's world, drawn now if it is not there.

    Raises:
        InputError: the profile has no world, or the folder holds another one.
    """
    if profile.world is None:
        raise InputError(f"profile {profile.name} has no world of its own: name a catalog with --catalog DIR")
    folder = utils.DATA / f"world-{profile.world.name}"
    world.build(profile.world, folder)
    return folder


# ---- what a stage was made from


def read_record(file: Path) -> dict:
    """Return a record; nothing where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def changes(stored: dict, record: dict) -> list[str]:
    """Return the names of what differs between two records: settings, code, upstream …"""
    return [name for name in record if stored.get(name) != record[name]]


def reason(stored: dict, record: dict) -> str:
    """Return why what is stored is of no use: `settings changed (steps: 60 → 80)`."""
    if not stored:
        return "its record is missing or damaged"
    before = stored["settings"]
    now = record["settings"]
    values = []
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            values.append(f"{name}: {before.get(name, 'none')} → {now.get(name, 'none')}")
    details = f" ({'; '.join(values)})" if values else ""
    return f"{', '.join(changes(stored, record))} changed{details}"


def identity(folder: Path) -> str:
    """Return a digest of a stage's record; of one that can be extended, without its rows."""
    record = read_record(folder / RECORD)
    if (folder / ROWS).exists():
        del record["catalog"]
    return digest(json.dumps(record).encode())


def digest(content: bytes) -> str:
    """Return a short digest."""
    return hashlib.sha256(content).hexdigest()[:16]


class PackageFinder(ModuleFinder):
    """Finds the modules of this package alone that a module imports, inside of functions too."""

    def import_hook(self, name, *arguments, **options):
        if name.startswith("capture_lib"):
            return super().import_hook(name, *arguments, **options)


@cache
def code_digest(module: ModuleType) -> str:
    """Return a digest of the code and data that a module rests on, as first read in this process."""
    finder = PackageFinder(path=[str(ROOT)])
    finder.run_script(module.__file__)
    files = {Path(found.__file__) for found in finder.modules.values()}
    for file in list(files):
        if file.name == "__init__.py" and file.parent != ROOT / "capture_lib":  # a room: its data too
            files |= {data for data in file.parent.rglob("*.*") if data.suffix not in (".py", ".pyc")}
    return digest(b"".join(code_of(file) for file in sorted(files)))


def code_of(file: Path) -> bytes:
    """Return the content of a file; of Python code without comments, layout and docstrings."""
    if file.suffix != ".py":
        return file.read_bytes()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
    return ast.dump(tree).encode()


def source_digest(make: Callable) -> str:
    """Return a digest of the function that makes a stage, which may stand in another module."""
    source = inspect.getsource(getattr(make, "func", make))  # func: that of a partial
    return digest(ast.dump(ast.parse(textwrap.dedent(source))).encode())


# ---- provenance


def without_folders(parameters: object) -> object:
    """Return parameters with the last part alone of every path: which file, not where it lay."""
    if isinstance(parameters, dict):
        return {name: without_folders(value) for name, value in parameters.items()}
    if isinstance(parameters, str) and os.path.isabs(parameters):
        return Path(parameters).name
    return parameters


def commit() -> str:
    """Return the commit of the checkout, with a plus where the tree has changes, or 'unknown'."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict:
    """Return the machine, and torch's threads: another number of them sums in another order."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": sys.platform, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "gpus": gpus}
