"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn: products of invented
brands and their captions (`wording`), which of them a photo shows (`planning`), their packaging (`packaging`, `labels`)
and pictures (`drawing`), and photos of one or several of them (`staging`, `layouts`, `backdrops`, `textures`,
`promotion`). Everything follows from the settings' seed, whatever the number of workers. `calibration` compares the
captions with the published ones, `difficulty` says how hard the world is.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import SPLITS, write_catalog
from capture_lib.utils import InputError, progress, remove, write_atomically
from capture_lib.world import staging
from capture_lib.world.planning import (
    SIZES,
    Sample,
    WorldSettings,
    plan,
    products_of,
    sets_of,
    shown_products,
)

__all__ = ["SIZES", "SPLITS", "Sample", "WorldSettings", "boxes_of", "build", "on_plain_ground", "plan", "products_of",
           "scenes_of", "sets_of", "settings_of", "shown_products", "true_mask"]
VERSION = 2  # of names, captions and drawing; a build is never taken up by another version
SCENE_FILES = (".jpg", ".jpeg", ".png", ".webp")
FOLDER_SIZE = 250  # photos a folder: the unit of work, and of taking up an interrupted build


def build(settings: WorldSettings, folder: Path, workers: int | None = None) -> None:
    """Draws photos into `folder/images/` (JPEG, quality 90) and writes `folder/catalog.parquet` when all are there.

    An interrupted build of the same settings is taken up, a complete one left as it is. `workers`: processes,
    one for each core by default; the result is the same whatever their number.

    Raises:
        InputError: the folder holds another world.
    """
    folder = Path(folder)
    _check_folder(settings, folder)
    if (folder / "catalog.parquet").exists():
        return
    samples = plan(settings)
    shards = [samples[i:i + FOLDER_SIZE] for i in range(0, len(samples), FOLDER_SIZE)]
    missing = [n for n in range(len(shards)) if not _boxes_file(folder, n).exists()]
    jobs = [(settings, folder, n, shards[n]) for n in missing]
    for _ in progress(_run(jobs, workers), f"world {settings.name}, folders of {FOLDER_SIZE} photos", len(jobs)):
        pass
    boxes = [found for n in range(len(shards)) for found in json.loads(_boxes_file(folder, n).read_text())]
    write_catalog(_table(settings, samples, boxes), folder)
    remove(folder / "parts")


def true_mask(settings: WorldSettings, sample_id: str) -> np.ndarray:
    """Redraws a photo and returns where products are visible in it: (size, size) uint8 in {0, 1}.

    Raises:
        InputError: no such sample in this world.
    """
    return (_draw(settings, *_place(settings, sample_id))[1] > 0).astype(np.uint8)


def on_plain_ground(settings: WorldSettings, sample_id: str) -> bool:
    """Whether a photo stands on a plain ground, or on a busy one.

    Raises:
        InputError: no such sample in this world.
    """
    split, index, shown = _place(settings, sample_id)
    products = [products_of(settings)[i] for i in shown]
    return staging.plain(products, settings.size, settings.seed, _rng(settings, split, index))


def _place(settings: WorldSettings, sample_id: str) -> tuple[str, int, tuple[int, ...]]:
    """A sample's split, its number in it, and the products it shows."""
    split, _, number = sample_id.partition("-")
    if split not in SPLITS or not number.isdecimal() or int(number) >= getattr(settings, split):
        raise InputError(f"sample_id {sample_id!r}: not in world {settings.name!r}; ids look like 'gallery-000012'")
    return split, int(number), shown_products(settings, split, int(number))[0]


def settings_of(folder: Path) -> WorldSettings | None:
    """The settings of the world that a catalog folder holds; None for a catalog of another kind.

    Raises:
        InputError: the world was drawn by another version.
    """
    file = Path(folder) / "world.json"
    if not file.is_file():
        return None
    note = json.loads(file.read_text())
    if note.pop("version", None) != VERSION:
        raise InputError(f"{file}: drawn by another version of this program; remove {folder} and draw the world anew")
    note.pop("scene_files")
    return WorldSettings(**note)


# ---- drawing and writing
def _draw(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Photo (size, size, 3) uint8 RGB and pieces (size, size) uint8, as `staging.photo` gives them."""
    products = [products_of(settings)[i] for i in shown]
    return staging.photo(products, settings.size, settings.seed, _rng(settings, split, index), split,
                         scenes_of(settings, split))


def _rng(settings: WorldSettings, split: str, index: int) -> np.random.Generator:
    """The random stream from which a photo is drawn."""
    return np.random.default_rng([settings.seed, SPLITS.index(split), index, 2])


@lru_cache(maxsize=8)
def scenes_of(settings: WorldSettings, split: str) -> tuple[Path, ...]:
    """The photos of the user's folder of scenes that one split may use: every fourth; none without a folder.

    Raises:
        InputError: the folder holds fewer than four photos.
    """
    if not settings.scenes:
        return ()
    files = sorted(file for file in Path(settings.scenes).glob("*") if file.suffix.lower() in SCENE_FILES)
    if len(files) < len(SPLITS):
        raise InputError(f"{settings.scenes}: {len(files)} photos ({', '.join(SCENE_FILES)}); scenes need four at "
                         "least, because no two splits share one")
    return tuple(files[SPLITS.index(split)::len(SPLITS)])


def boxes_of(pieces: np.ndarray, count: int) -> list[list[float]]:
    """Boxes around the visible pixels of the pieces 1 to `count`: xyxy in pixels, the far edges exclusive."""
    boxes = []
    for n in range(1, count + 1):
        rows, columns = np.nonzero((pieces == n).any(axis=1))[0], np.nonzero((pieces == n).any(axis=0))[0]
        boxes.append([float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)])
    return boxes


def _run(jobs: list[tuple], workers: int | None) -> Iterable[None]:
    """Draws folders one after another, or several at a time in processes of their own."""
    if workers == 1 or len(jobs) < 2:
        yield from (_draw_folder(*job) for job in jobs)
        return
    one_thread = {"initializer": cv2.setNumThreads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **one_thread) as pool:
        yield from pool.map(_draw_folder, *zip(*jobs, strict=True))


def _draw_folder(settings: WorldSettings, folder: Path, number: int, samples: list[Sample]) -> None:
    """Draws one folder of photos and writes their boxes last, which marks the folder as complete."""
    (folder / f"images/{number:03d}").mkdir(parents=True, exist_ok=True)
    boxes = []
    for sample in samples:
        photo, pieces = _draw(settings, sample.split, sample.index, sample.products)
        file = folder / _image(number, sample.sample_id)
        if not cv2.imwrite(str(file), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{file}: the photo cannot be written; is the disk full?")
        boxes.append(boxes_of(pieces, len(sample.products)))
    with write_atomically(_boxes_file(folder, number)) as beside:
        beside.write_text(json.dumps(boxes))


def _image(number: int, sample_id: str) -> str:
    return f"images/{number:03d}/{sample_id}.jpg"


def _boxes_file(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:03d}.json"


def _check_folder(settings: WorldSettings, folder: Path) -> None:
    """Notes in `world.json` which world a folder holds; refuses a folder that holds another one."""
    scenes = [scene for split in SPLITS for scene in scenes_of(settings, split)]
    names = [f"{scene.name} {scene.stat().st_size}" for scene in scenes]
    note, file = {"version": VERSION, **asdict(settings), "scene_files": names}, folder / "world.json"
    if not file.exists():
        for scene in progress(scenes, "scenes checked", len(scenes)) if scenes else ():
            load_photo(scene)  # before anything is written
        with write_atomically(file) as beside:
            beside.write_text(json.dumps(note, indent=1))
    elif json.loads(file.read_text()) != note:
        raise InputError(f"{file}: the folder holds another world than {settings.name!r} of these settings; "
                         "remove it or choose another folder")


def _table(settings: WorldSettings, samples: list[Sample], boxes: list[list[list[float]]]) -> pd.DataFrame:
    """The catalog; train rows carry no labels, no boxes, and not the kind of photo either."""
    products, rows = products_of(settings), []
    for position, (sample, found) in enumerate(zip(samples, boxes, strict=True)):
        known = sample.split != "train"
        labels = [products[i].label for i in sample.products] if known else []
        rows.append({
            "sample_id": sample.sample_id, "split": sample.split, "caption": sample.caption,
            "image": _image(position // FOLDER_SIZE, sample.sample_id), "mirror": None, "labels": labels,
            "products": {"train": None, "gallery": "single"}.get(sample.split, "multi"),
            "boxes": found if known else [], "box_labels": list(labels), "combination": sample.combination,
        })
    return pd.DataFrame(rows, dtype=object)
