"""One run: a profile on a catalog with a seed; where its results lie and how they are recorded.

A stage is a folder that is made once and then loaded. It is made anew when its settings, the code of its module
or anything upstream has changed, and says which. Stages lie beside the catalog they belong to, so that every
notebook and `capture search` finds what an earlier one made.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from capture_lib import profiles, world
from capture_lib.catalog import Catalog, read_catalog
from capture_lib.faults import InputError
from capture_lib.paths import DATA, REPORTS, ROOT, remove, write_atomically
from capture_lib.profiles import Profile

PACKAGES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "opencv-python-headless",
            "scikit-learn", "papermill")


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

    def stage(self, modules: list[ModuleType], settings: object, upstream: list[Path],
              make: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by `make(folder)` unless it is there and still fits.

        The stage bears the name of the first module; a change in the code of any of `modules` makes it anew.
        A `make` that is interrupted finds its unfinished folder again and may go on where it stopped.
        """
        name = modules[0].__name__.rsplit(".", 1)[-1]
        folder = self.stages / name
        inputs = {
            "settings": json.loads(json.dumps(asdict(settings))), "seed": self.seed,
            "code": [code_digest(module) for module in modules],
            "catalog": self.catalog.fingerprint(),
            "upstream": {path.name: hashlib.sha256((path / "stage.json").read_bytes()).hexdigest()[:16]
                         for path in upstream},
        }
        changed = differences(folder / "stage.json", inputs)
        if changed is None:
            return folder
        if folder.exists():
            print(f"{name}: made anew, because {', '.join(changed)} changed")
        unfinished = folder.with_name(f".{name}.unfinished")
        if differences(unfinished / "stage.json", inputs) is not None:
            remove(unfinished)
            unfinished.mkdir(parents=True)
            write_json(unfinished / "stage.json", inputs)
        seed_everything(self.seed)
        make(unfinished)
        remove(folder)
        unfinished.rename(folder)
        return folder

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
            "parameters": json.loads(json.dumps(asdict(self.profile))), "commit": commit(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "hardware": hardware(), "wall_time_s": round(time.perf_counter() - self.started, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


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
    """The folder of the profile's rendered world, drawn now if it is not there."""
    if profile.world is None:
        raise InputError(f"profile {profile.name} has no world of its own: name a catalog with --catalog DIR")
    folder = DATA / f"world-{profile.world.name}"
    if not (folder / "catalog.parquet").is_file():
        world.build(profile.world, folder)
    return folder


def differences(file: Path, inputs: dict) -> list[str] | None:
    """The inputs that differ from those stored; None where nothing does."""
    if not file.is_file():
        return ["nothing stored"]
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return ["a damaged record"]
    changed = [name for name in inputs if stored.get(name) != inputs[name]]
    return changed or None


@cache
def code_digest(module: ModuleType) -> str:
    """A digest of a module's code as it was first asked for in this process; comments and layout don't count."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def write_json(file: Path, content: dict) -> None:
    """Writes JSON at once, readable and without NaN."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with write_atomically(file) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch, so that a stage gives the same whatever ran before it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def shown(path: Path) -> str:
    """A path as a reader wants it: below the repository where it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def commit() -> str:
    """The commit of the checkout, with a plus where the tree has changes; 'unknown' outside of git."""
    try:
        ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict:
    """The machine in a few words."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": sys.platform, "cores": os.cpu_count(), "gpus": gpus}
