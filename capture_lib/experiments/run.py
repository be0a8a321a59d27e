"""A run: a profile on a catalog with a seed. It caches stages, and records the figures of notebooks.

A stage is a folder, made anew when its settings, code, a stage before it or rows that it reads have changed.
"""

import ast
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType

import pandas as pd

from capture_lib import profiles, utils, world
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.utils import ROOT, InputError, is_main_process, wait_for_everyone

RECORD = "stage.json"  # what a stage was made from and, once it is whole, its files
MARK = ".capture-report"  # in every folder that a run made: of which catalog


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
        return stages_below(self.catalog.folder, self.profile, self.seed)

    def place(self, name: str) -> Path:
        """Return the folder of a stage; what rests on an encoder that captions taught lies apart."""
        encoder = self.profile.encoder
        if name == "words":  # those of another width do not take their place
            return self.stages / f"words-{self.profile.retrieval.text_dimensions}"
        if not encoder.captions or name in ("composites", "detector", "foundation"):
            return self.stages / name
        taught = digest(repr((encoder, self.profile.retrieval)).encode())[:6]
        return self.stages / f"captions-{taught}" / name

    def taught(self, **encoder: object) -> "Run":
        """Return this run with captions in the loss of its region encoder: ours, not the paper's."""
        settings = replace(self.profile.encoder, **{"captions": "train, gallery"} | encoder)
        return replace(self, profile=replace(self.profile, encoder=settings))

    def stage(self, module: ModuleType, settings: object, upstream: list[Path], read: pd.DataFrame | None,
              make: Callable[[Path], None], together: bool = False, name: str = "") -> Path:
        """Return the folder of a stage; `make(folder)` fills it, or goes on to, unless its record fits already.

        It is named after `module`, rests on its code and all that it imports, and reads the rows and columns `read`
        of the catalog. `together`: all processes make the stage; otherwise, one does.
        """
        folder = self.place(name or module.__name__.rsplit(".", 1)[-1])
        values = {
            "settings": settings, "seed": self.seed,
            "code": code_digest(module) + digest(b"".join(map(plain_code, files_named(make)))),
            "catalog": digest(b"" if read is None else self.catalog.row_digests(read).tobytes()),
            "upstream": {source.name: digest((source / RECORD).read_bytes()) for source in upstream}}
        values = json.loads(json.dumps(values, default=asdict))
        record = pd.json_normalize(values).to_dict("records")[0]
        if utils.process_count() > 1 or read_record(folder)[0] != record:  # else nothing is written, no lock either
            lock = self.stages.with_name(f".{self.stages.name}") / f"{folder.relative_to(self.stages)}.lock"
            with utils.one_at_a_time(lock, f"makes {folder}"):
                self.renew(folder, record, make, together)
        return folder

    def renew(self, folder: Path, record: dict, make: Callable[[Path], None], together: bool) -> None:
        """Make a stage, beside the folder that it then replaces, unless another process has done so by now."""
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        outdated = folder.with_name(f".{folder.name}.outdated")
        wait_for_everyone()
        stored, files = read_record(folder)
        begun, made = read_record(unfinished)
        wait_for_everyone()  # all have looked before one changes anything
        if stored == record:
            return
        if folder.exists():
            refuse_foreign(folder, files)
            changed = [key for key in sorted(stored | record) if stored and stored.get(key) != record.get(key)]
            said = [f"{key} ({stored.get(key)} → {record.get(key)})" if key.startswith("settings") else key
                    for key in changed] or ["its record"]
            utils.say(f"{folder.relative_to(self.stages)}: made anew, because {', '.join(said)} changed")

        # start in an empty folder, or in that of an interrupted process; all may be there already
        if is_main_process() and begun != record:
            utils.remove(unfinished)
            unfinished.mkdir(parents=True)
            utils.write_json(unfinished / RECORD, record)
        wait_for_everyone()
        utils.seed_everything(self.seed)
        if (together or is_main_process()) and (begun != record or made is None):
            with utils.disk_errors(unfinished):
                make(unfinished)
        wait_for_everyone()

        # list the files, which tells that all are there; then take the place of the old folder
        if is_main_process():
            for rest in list(unfinished.rglob(".*")):  # what a killed process was writing, safetensors too
                utils.remove(rest)
            utils.write_json(unfinished / RECORD, record | {"files": files_below(unfinished)})
            utils.remove(outdated)  # of a process that was killed in these lines: what is unfinished here is whole
            if folder.exists():
                folder.rename(outdated)
            unfinished.rename(folder)
            utils.remove(outdated)
        wait_for_everyone()

    def folder(self, name: str) -> Path:
        """Return a folder of this run's report, which is marked as one."""
        claim_folder(self.out, self.catalog.folder)
        return self.out / name

    def record(self, stem: str, **figures: object) -> Path:
        """Write `metrics/<stem>.json`: a notebook's figures, as fractions, with their provenance."""
        parameters = asdict(self.profile)
        for stage, setting in (("pretrain", "bert"), *profiles.PARTS.values()):  # not where they lay
            parameters[stage][setting] = name_of(parameters[stage][setting])
        parts = [part.partition("=") for part in self.profile.parts.split("|")]
        parameters["parts"] = "|".join(kind + sign + name_of(value) for kind, sign, value in parts)
        provenance = utils.origin() | {
            "stem": stem, "profile": self.profile.name, "seed": self.seed, "catalog": self.catalog.name,
            "catalog_fingerprint": self.catalog.fingerprint(), "parameters": parameters,
            "wall_time_s": round(time.perf_counter() - self.started, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        file = self.folder("metrics") / f"{stem}.json"
        utils.write_json(file, {"provenance": provenance, **figures})
        return file


def name_of(part: str) -> str:
    """Return the last name of a folder; another name, such as one on a hub, as it is."""
    return Path(part).name if Path(part).is_absolute() or Path(part).is_dir() else part


def read_record(stage: Path) -> tuple[dict, list[str] | None]:
    """Return what a stage's folder was made from, and its files once it is whole; nothing where that is damaged."""
    try:
        record = utils.read_object(stage / RECORD)
    except InputError:
        return {}, None
    files = record.pop("files", None)
    return (record if all((stage / name).is_file() for name in files or ()) else {}), files


def files_below(folder: Path) -> list[str]:
    """Return all files of a folder, as paths below it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def refuse_foreign(folder: Path, files: list[str] | None) -> None:
    """Raise InputError where a stage's folder, which is to be replaced, holds what no run put there."""
    foreign = files_below(folder) if folder.is_dir() else [folder.name]
    if (folder / RECORD).is_file():  # where it is damaged or old, it lists no files
        foreign = sorted({*foreign} - {RECORD, *files}) if files is not None else []
    if foreign:
        raise InputError(f"{folder}: is to be made anew, but holds {foreign[0]}, which no run made; move it away")


# ---- where reports go


def label(profile: profiles.Profile) -> str:
    """Return the name of a profile for a folder; one with pretrained parts has its own."""
    return profile.name + (f"-{digest(profile.parts.encode())[:6]}" if profile.parts else "")


def stages_below(catalog: Path, profile: profiles.Profile, seed: int) -> Path:
    """Return where the stages of a run lie."""
    return catalog / "stages" / f"{label(profile)}-seed{seed}"


def default_report(profile: str, catalog: str | Path = "") -> Path:
    """Return where a report goes that no folder was named for; catalogs of one name have folders of their own."""
    name = label(profiles.get(profile))
    if not catalog:
        return utils.REPORTS / name
    place = Path(catalog).resolve()
    folder = utils.REPORTS / f"{name}-{place.name}"
    if owner(folder) in ("", str(place)):
        return folder
    return folder.with_name(f"{folder.name}-{digest(str(place).encode())[:6]}")


def owner(report: Path) -> str:
    """Return the folder of the catalog that a report was made of; empty where it has no mark."""
    mark = report / MARK
    return mark.read_text(encoding="utf-8").strip() if mark.is_file() else ""


def claim_folder(report: Path, catalog: Path) -> None:
    """Make and mark the folder of a report; raise InputError where it is not ours, or that of another catalog."""
    place = str(catalog.resolve())
    try:
        report.mkdir(parents=True, exist_ok=True)
        if not any(report.iterdir()):
            (report / MARK).write_text(f"{place}\n", encoding="utf-8")
        if not owner(report):
            raise InputError(f"{report}: holds files that no run made; name an empty folder with --out")
        if owner(report) != place:
            raise InputError(f"{report}: holds a report on {owner(report)}; name another folder with --out")
    except OSError as error:
        raise InputError(f"{report}: {error.strerror}; name another folder with --out") from None


# ---- opening


def world_folder(profile: profiles.Profile) -> Path:
    """Return where the world of a profile is drawn; InputError: it has none."""
    if profile.world is None:
        raise InputError(f"profile {profile.name} has no world of its own: name a catalog with --catalog DIR")
    return utils.DATA / f"world-{profile.world.name}"


def open_run(profile: str = "", catalog: str = "", out: str = "", seed: int = 0) -> Run:
    """Open a run on a catalog or, without one, on the profile's world, drawn now if it is not there.

    Without a profile, it is cpu where that was run, else smoke, and a line says so.
    """
    if not profile:
        cpu = profiles.get("cpu")
        made = stages_below(Path(catalog or world_folder(cpu)), cpu, seed) / "pretrain"
        profile = "cpu" if made.is_dir() else "smoke"
        print(f"profile {profile}: " + ("it was run here" if made.is_dir() else "a miniature, for `capture run "
                                        "--profile cpu` was not run here yet"))
    chosen = profiles.get(profile)
    folder = catalog or world_folder(chosen)
    check_parts(chosen, stages_below(Path(folder), chosen, seed))
    if not catalog:
        tell_disk(chosen, folder)
        world.build(chosen.world, folder)
    elif world.settings_of(folder) is None:
        chosen = profiles.for_photos(chosen)
    found = read_catalog(folder)
    return Run(chosen, found, Path(out).resolve() if out else default_report(profile, catalog), seed)


def check_parts(profile: profiles.Profile, made: Path) -> None:
    """Open the pretrained parts of a profile, before its folder of stages is made; InputError: one cannot be opened."""
    if not profile.parts or made.exists():
        return
    from capture_lib.proposals import detector, open_vocabulary, pretrained
    from capture_lib.retrieval import foundation
    if profile.encoder.pretrained:
        pretrained.open_model(profile.encoder.pretrained)
    proposals = profile.detector.pretrained
    if proposals and pretrained.kind_of(proposals) == "timm":
        detector.PretrainedMaps(proposals)
    elif proposals:
        open_vocabulary.read_parts(proposals)
    if profile.retrieval.embedder:
        foundation.load(profile.retrieval.embedder)


def tell_disk(profile: profiles.Profile, folder: Path) -> None:
    """Say what a large run takes of the disk, before its world is drawn; parts that don't fit stop it later."""
    needed = disk_needed(profile)
    if needed < 1e9 or (folder / "catalog.parquet").is_file():
        return
    above = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(above).free
    utils.say(f"{folder}: photos, and what profile {profile.name} makes of them, take about {needed / 1e9:.1f} GB of "
              f"disk, of which {free / 1e9:.1f} GB are free")


def disk_needed(profile: profiles.Profile) -> float:
    """Return about how many bytes a profile's world and stages take, but for trainings."""
    size = profile.world
    searched = size.gallery + size.val + size.test
    photos = size.train + searched
    drawn = 0.22 * size.size ** 2 * photos  # JPEG, bytes a pixel as measured
    made = profile.synthesis
    composites = 3 * made.composites * made.size ** 2 + 8 * made.photos * made.foreground_size ** 2
    features = 4 * profile.encoder.channels
    regions = photos * profile.regions.max_regions * (2 * features + 20)  # and box, score
    words = profile.retrieval.text_dimensions
    vectors = 4 * searched * (2 * (5 * profile.capture.output + words) + features)  # about one and a half instances
    return drawn + composites + 2 * (regions + vectors)  # where captions taught the encoder, too


@cache
def code_digest(module: ModuleType) -> str:
    """Return a digest of the code and data that a module rests on, as first read in this process."""
    finder = ModuleFinder(path=[str(ROOT)])  # imports inside of functions too, of this package alone
    finder.run_script(module.__file__)
    files = sorted(Path(found.__file__) for found in finder.modules.values() if found.__file__)
    contents = [plain_code(file) for file in files]
    for room in [file.parent for file in files if file.name == "__init__.py"]:
        contents += [data.read_bytes() for data in sorted([*room.glob("*.json"), *room.glob("templates/*")])]
    return digest(b"".join(contents))


def files_named(make: Callable) -> list[Path]:
    """Return the file of a function, and those of the modules of this package that it names."""
    named = [make.__globals__.get(name) for name in make.__code__.co_names]
    rooms = [room for room in named if isinstance(room, ModuleType) and room.__name__.startswith("capture_lib.")]
    return sorted({Path(make.__code__.co_filename), *(Path(room.__file__) for room in rooms)})


@cache
def plain_code(file: Path) -> bytes:
    """Return the code of a Python file, as first read in this process, without comments and layout."""
    return ast.dump(ast.parse(file.read_text(encoding="utf-8"))).encode()


def digest(content: bytes) -> str:
    """Return a short digest."""
    return hashlib.sha256(content).hexdigest()[:16]
