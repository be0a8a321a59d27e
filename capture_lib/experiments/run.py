"""A run: a profile on a catalog with a seed. It caches stages, and records the figures of notebooks.

A stage is a folder, made once. It is made anew when its settings, the code it rests on, a stage
before it or a row of the catalog that it reads has changed.
"""

import ast
import hashlib
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pandas as pd

from capture_lib import profiles, utils, world
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.utils import ROOT, InputError, is_main_process, wait_for_everyone

RECORD = "stage.json"  # what a stage was made from


@dataclass(frozen=True)
class Run:
    """A profile on a catalog with a seed, and the folder `out` for figures."""

    profile: profiles.Profile
    catalog: Catalog
    out: Path
    seed: int
    started: float = field(default_factory=time.perf_counter, compare=False)

    @property
    def stages(self) -> Path:
        """The folder of this run's stages."""
        return self.catalog.folder / "stages" / f"{self.profile.name}-seed{self.seed}"

    def place(self, name: str) -> Path:
        """Return the folder of a stage; what rests on an encoder that captions taught lies apart."""
        encoder = self.profile.encoder
        if not encoder.captions or name in ("composites", "detector"):
            return self.stages / name
        taught = digest(repr((encoder, self.profile.retrieval)).encode())[:6]
        return self.stages / f"captions-{taught}" / name

    def taught(self, **encoder: object) -> "Run":
        """Return this run with captions in the loss of its region encoder: ours, not the paper's."""
        settings = replace(self.profile.encoder, **{"captions": "train, gallery"} | encoder)
        return replace(self, profile=replace(self.profile, encoder=settings))

    def stage(self, module: ModuleType, settings: object, upstream: list[Path], read: pd.DataFrame | None,
              make: Callable[[Path], None], together: bool = False, name: str = "") -> Path:
        """Return the folder of a stage; `make(folder)` fills it unless its record fits already.

        It is named after `module`, rests on its code and on all that it imports, and reads the rows
        and columns `read` of the catalog. An interrupted `make` finds its unfinished folder again.
        `together`: all processes make the stage; otherwise, one does.
        """
        folder = self.place(name or module.__name__.rsplit(".", 1)[-1])
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        values = {
            "settings": settings, "seed": self.seed,
            "code": code_digest(module) + digest(plain_code(inspect.getsource(make))),
            "catalog": digest(b"" if read is None else self.catalog.row_digests(read).tobytes()),
            "upstream": {source.name: digest((source / RECORD).read_bytes()) for source in upstream}}
        values = json.loads(json.dumps(values, default=asdict))
        record = pd.json_normalize(values).to_dict("records")[0]
        before = {}  # flat records, by folder
        for place in (folder, unfinished):
            file = place / RECORD
            before[place] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        stored = before[folder]
        wait_for_everyone()  # all have looked before one changes anything
        if stored == record:
            return folder
        if folder.exists():
            changed = []
            for key in sorted(stored | record) if stored else ():
                if stored.get(key) != record.get(key):
                    values = f" ({stored.get(key)} → {record.get(key)})" if key.startswith("settings") else ""
                    changed.append(f"{key}{values}")
            said = ", ".join(changed) or "its record"
            utils.say(f"{folder.relative_to(self.stages)}: made anew, because {said} changed")

        # start in an empty folder, or in that of an interrupted process
        if is_main_process() and before[unfinished] != record:
            utils.remove(unfinished)
            unfinished.mkdir(parents=True)
            utils.write_json(unfinished / RECORD, record)
        wait_for_everyone()
        utils.seed_everything(self.seed)
        if together or is_main_process():
            make(unfinished)
        wait_for_everyone()

        # take the place of the old folder; half of one, without its record, is of no use
        if is_main_process():
            utils.remove(folder / RECORD)
            utils.remove(folder)
            unfinished.rename(folder)
        wait_for_everyone()
        return folder

    def record(self, stem: str, **figures: object) -> Path:
        """Write `metrics/<stem>.json`: a notebook's figures, as fractions, with their provenance."""
        parameters = asdict(self.profile)
        parameters["pretrain"]["bert"] = Path(self.profile.pretrain.bert).name  # not where it lay
        provenance = utils.origin() | {
            "stem": stem, "profile": self.profile.name, "seed": self.seed, "catalog": self.catalog.name,
            "catalog_fingerprint": self.catalog.fingerprint(), "parameters": parameters,
            "wall_time_s": round(time.perf_counter() - self.started, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        file = self.out / "metrics" / f"{stem}.json"
        utils.write_json(file, {"provenance": provenance, **figures})
        return file


def open_run(profile: str = "smoke", catalog: str = "", out: str = "", seed: int = 0) -> Run:
    """Open a run on a catalog or, without one, on the profile's world, drawn now if it is not there."""
    chosen = profiles.get(profile)
    if not catalog:
        if chosen.world is None:
            raise InputError(f"profile {profile} has no world of its own: name a catalog with --catalog DIR")
        folder = utils.DATA / f"world-{chosen.world.name}"
        world.build(chosen.world, folder)
    found = read_catalog(catalog or folder)
    reports = utils.REPORTS / (f"{profile}-{found.name}" if catalog else profile)
    return Run(chosen, found, Path(out).resolve() if out else reports, seed)


@cache
def code_digest(module: ModuleType) -> str:
    """Return a digest of the code and data that a module rests on, as first read in this process."""
    finder = ModuleFinder(path=[str(ROOT)])  # imports inside of functions too, of this package alone
    finder.run_script(module.__file__)
    files = sorted(Path(found.__file__) for found in finder.modules.values() if found.__file__)
    contents = [plain_code(file.read_text(encoding="utf-8")) for file in files]
    for room in [file.parent for file in files if file.name == "__init__.py"]:
        contents += [data.read_bytes() for data in sorted([*room.glob("*.json"), *room.glob("templates/*")])]
    return digest(b"".join(contents))


def plain_code(source: str) -> bytes:
    """Return Python code without comments and layout."""
    return ast.dump(ast.parse(dedent(source))).encode()


def digest(content: bytes) -> str:
    """Return a short digest."""
    return hashlib.sha256(content).hexdigest()[:16]
