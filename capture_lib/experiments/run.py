"""One run: a profile on a catalog with a seed; where its results lie and how they are recorded.

A stage is a folder that is made once and then loaded. It is made anew when its settings, the code it rests on,
anything upstream or a row of the catalog that it read has changed, and says which; a catalog may grow. Stages lie
beside the catalog they belong to, so that every notebook and `capture search` finds what an earlier one made.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

from capture_lib import profiles, world
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.profiles import Profile
from capture_lib.utils import (
    DATA,
    REPORTS,
    ROOT,
    InputError,
    display_path,
    is_main_process,
    remove,
    say,
    seed_everything,
    wait_for_everyone,
    write_atomically,
    write_json,
)

PACKAGES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "opencv-python-headless",
            "scikit-learn", "papermill")
RECORD, ROWS = "stage.json", "rows.npy"  # what a stage was made from
# modules that change no result; what a catalog gives a stage is told by the rows
INERT = ("capture_lib.utils", "capture_lib.catalog.table", "capture_lib.catalog.lists", "capture_lib.catalog.own_table",
         "capture_lib.report")


@dataclass(frozen=True)
class Run:
    """What a notebook needs to know: settings, catalog, seed, and the folder for its figures."""

    profile: Profile
    catalog: Catalog
    out: Path
    seed: int
    started: float = field(default_factory=time.perf_counter, compare=False)

    @property
    def stages(self) -> Path:
        """The folder that holds the stages of this run."""
        return self.catalog.folder / "stages" / f"{self.profile.name}-seed{self.seed}"

    def stage(self, module: ModuleType, settings: object, upstream: list[Path], read: pd.DataFrame | None,
              make: Callable[[Path], None], extend: Callable[[Path, Path, np.ndarray], None] | None = None,
              together: bool = False, name: str = "") -> Path:
        """The folder of a stage, made by `make(folder)` unless it is there and still fits.

        Samples that were added since don't make it anew, unless there is `extend`: a line says that they are missing.
        An interrupted `make` or `extend` finds its unfinished folder again and may go on where it stopped.

        Args:
            module: gives the stage its name; a change in its code, or in that of a module it imports, makes it anew.
            read: the part of the catalog's table that the stage itself reads (N rows); None where it reads only
                what is upstream.
            extend: `extend(folder, old, places)` makes the stage from its old folder where rows alone have changed;
                places (N,) says where each row of `read` stands among the old ones, -1 where it doesn't.
            together: of many processes, all make the stage, and not the first alone while the others wait.
            name: of the folder, where a module makes several; without, that of the module.
        """
        name = name or module.__name__.rsplit(".", 1)[-1]
        folder, origin = self.stages / name, self.origin(module, settings, upstream, read)
        changed = origin.differences(folder)
        wait_for_everyone()  # all have looked before the first changes anything
        if changed == ["additions"] and not extend:
            say_once(f"{name}: made before {origin.additions(folder):,} of the {len(origin.rows):,} samples that it "
                     f"reads were added; delete {display_path(folder)} to make it anew, and what is made of it")
            return folder
        if extend and changed in (["additions"], ["catalog"]):
            places = pd.Index(np.load(folder / ROWS)).get_indexer(origin.rows)
            say(f"{name}: {np.sum(places >= 0):,} of {len(places):,} rows are kept, the others made")
            self.replace(folder, origin, lambda unfinished: extend(unfinished, folder, places), False, together)
        elif changed:
            if folder.exists():
                say(f"{name}: made anew, because {', '.join(changed)} changed{origin.other_settings(folder)}")
            self.replace(folder, origin, make, not extend, together)
        return folder

    def replace(self, folder: Path, origin: "Origin", make: Callable[[Path], None], named: bool, together: bool
                ) -> None:
        """Makes a stage in an unfinished folder beside the old one, which it then replaces."""
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        if is_main_process() and origin.differences(unfinished):
            remove(unfinished)
            unfinished.mkdir(parents=True)
            origin.write(unfinished, named)
        wait_for_everyone()
        seed_everything(self.seed)
        if together or is_main_process():
            make(unfinished)
        wait_for_everyone()
        if is_main_process():
            take_place(unfinished, folder)
        wait_for_everyone()

    def origin(self, module: ModuleType, settings: object, upstream: list[Path], read: pd.DataFrame | None) -> "Origin":
        """What a stage is made from; arguments as those of `stage`."""
        inputs = {
            "settings": json.loads(json.dumps(asdict(settings))), "seed": self.seed, "code": code_digest(module),
            "upstream": {path.name: hashlib.sha256((path / RECORD).read_bytes()).hexdigest()[:16] for path in upstream},
        }
        return Origin(inputs, np.zeros(0, np.uint64) if read is None else self.catalog.row_digests(read))

    def record(self, stem: str, **figures: object) -> Path:
        """Writes `metrics/<stem>.json`: the figures of a notebook, as fractions, with their provenance."""
        file = self.out / "metrics" / f"{stem}.json"
        write_json(file, {"provenance": self.provenance(stem), **figures})
        return file

    def provenance(self, stem: str) -> dict:
        """Everything that one needs to make a figure again."""
        return {
            "stem": stem, "profile": self.profile.name, "catalog": self.catalog.name,
            "catalog_fingerprint": self.catalog.fingerprint(), "seed": self.seed,
            "parameters": without_folders(json.loads(json.dumps(asdict(self.profile)))), "commit": commit(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "hardware": hardware(), "wall_time_s": round(time.perf_counter() - self.started, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def without_folders(parameters: object) -> object:
    """Parameters with the last part alone of every path: a record says which file, not where it lay."""
    if isinstance(parameters, dict):
        return {name: without_folders(value) for name, value in parameters.items()}
    if isinstance(parameters, str) and os.path.isabs(parameters):
        return Path(parameters).name
    return parameters


def open_run(profile: str = "smoke", catalog: str = "", out: str = "", seed: int = 0) -> Run:
    """Opens a run by the names that papermill and the command line pass; draws the profile's world if none is given.

    Raises:
        InputError: the profile is unknown or its catalog is not there.
    """
    chosen = profiles.get(profile)
    folder = Path(catalog) if catalog else default_catalog(chosen)
    found = read_catalog(folder)
    name = chosen.name if not catalog else f"{chosen.name}-{found.name}"
    return Run(chosen, found, Path(out).resolve() if out else REPORTS / name, seed)


def default_catalog(profile: Profile) -> Path:
    """The folder of the profile's rendered world, drawn now if it is not there.

    Raises:
        InputError: the profile has no world, or the folder holds another one (of an older version, say).
    """
    if profile.world is None:
        raise InputError(f"profile {profile.name} has no world of its own: name a catalog with --catalog DIR")
    folder = DATA / f"world-{profile.world.name}"
    world.build(profile.world, folder)
    return folder


@dataclass(frozen=True)
class Origin:
    """What a folder is made from: inputs by name, and a digest (N,) uint64 of each row of the catalog that is read.

    Both are kept in the folder, as `stage.json` and `rows.npy`.
    """

    inputs: dict
    rows: np.ndarray

    def write(self, folder: Path, named: bool = True) -> None:
        """Keeps the record; a stage that names its rows in `stage.json` makes what is built on it follow them.

        One that is extended doesn't: what is built on it has a record of those rows that it reads itself.
        """
        with write_atomically(folder / ROWS) as beside, beside.open("wb") as file:
            np.save(file, self.rows)
        rows = {"catalog": hashlib.sha256(self.rows.tobytes()).hexdigest()[:16]} if named else {}
        write_json(folder / RECORD, self.inputs | rows)

    def differences(self, folder: Path) -> list[str]:
        """What differs from a folder's record: inputs by name, "catalog" where a row is gone or not what it was.

        Where there are only more rows, or their order is another, it is "additions".
        """
        try:
            stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            rows = np.load(folder / ROWS)
        except FileNotFoundError:
            return ["nothing stored"]
        except (ValueError, EOFError):
            return ["a damaged record"]
        changed = [name for name in self.inputs if stored.get(name) != self.inputs[name]]
        if not np.isin(rows, self.rows).all():
            changed.append("catalog")
        return changed if changed or np.array_equal(rows, self.rows) else ["additions"]

    def other_settings(self, folder: Path) -> str:
        """The settings that differ from a folder's record, each with what it was and what it is; nothing if none do."""
        try:
            before = flat(json.loads((folder / RECORD).read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, TypeError, KeyError):  # a damaged record was named already
            return ""
        now = flat(self.inputs["settings"])
        told = [f"{name}: {before.get(name, 'none')} → {now.get(name, 'none')}" for name in sorted({*before, *now})
                if before.get(name) != now.get(name)]
        return f" ({'; '.join(told)})" if told else ""

    def additions(self, folder: Path) -> int:
        """How many rows the folder's record doesn't have."""
        return int((~np.isin(self.rows, np.load(folder / ROWS))).sum())


def take_place(unfinished: Path, folder: Path) -> None:
    """Puts a finished stage in the place of the old one."""
    outdated = folder.with_name(f".{folder.name}.outdated")
    remove(outdated)
    if folder.exists():  # removing a large one takes a while, in which no half of it may be found
        folder.rename(outdated)
    unfinished.rename(folder)
    remove(outdated)


def flat(settings: dict, above: str = "") -> dict[str, object]:
    """Settings by name, those of a group within as group.name."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


@cache
def say_once(line: str) -> None:
    """Prints a line the first time only: a stage is asked for many times in a process."""
    say(line)


@cache
def code_digest(module: ModuleType) -> str:
    """A digest of the code a module rests on, as first asked for in this process; comments and layout don't count."""
    digest = hashlib.sha256()
    for _, tree in sorted(code_of(Path(module.__file__)).items()):
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def code_of(file: Path) -> dict[str, ast.Module]:
    """Return the code of a module ("") and, by name, of all of this package that it imports, wherever it does."""
    found: dict[str, ast.Module] = {}
    left = {"": file}
    while left:
        name, path = left.popitem()
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
        for other in imported(found[name]) - set(found):
            if not other.startswith(INERT):
                left[other] = module_file(other)
    return found


def imported(tree: ast.Module) -> set[str]:
    """Return the names of the modules of this package that a module imports, inside of functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("capture_lib"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if module_file(name).is_file():
                    found.add(name)
    return found


def module_file(name: str) -> Path:
    """Return the file of a module or package by its dotted name, which need not exist."""
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def commit() -> str:
    """The commit of the checkout, with a plus where the tree has changes; 'unknown' outside of git."""
    try:
        ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict:
    """The machine in a few words, and torch's threads: another number of them sums in another order."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": sys.platform, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "gpus": gpus}
