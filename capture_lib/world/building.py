"""Draw a world into a catalog folder, and tell the truth about its photos."""

import json
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import SPLITS, write_catalog
from capture_lib.utils import InputError, one_at_a_time, process_map, progress, read_object, remove, write_json
from capture_lib.world.planning import Sample, WorldSettings, plan, products_of, shown_products
from capture_lib.world.staging import Photo, take_photo

VERSION = 2  # of names, captions and drawing; a build is never taken up by another version
SCENE_FILES = (".jpg", ".jpeg", ".png", ".webp")
FOLDER_SIZE = 250  # photos a folder: the unit of work, and of taking up an interrupted build


def build(settings: WorldSettings, folder: Path, workers: int | None = None) -> None:
    """Draw photos into `folder/images/` (JPEG, quality 90); write `folder/catalog.parquet` when all are there.

    An interrupted build is taken up, a complete one left as it is; InputError if the folder holds another world.
    """
    folder = Path(folder)
    # what `world.json` notes: which world the folder holds
    scenes = [scene for split in SPLITS for scene in scenes_of(settings, split)]
    files = [f"{scene.name} {scene.stat().st_size}" for scene in scenes]
    note = {"version": VERSION, **asdict(settings), "scene_files": files}
    claim(folder, note)
    if (folder / "catalog.parquet").exists():
        return
    for scene in progress(scenes, "scenes checked", len(scenes)) if scenes else ():
        load_photo(scene)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / ".lock", f"draws {folder}"):
        claim(folder, note)  # another process may have come first
        if not (folder / "catalog.parquet").exists():
            draw(settings, folder, note, workers or os.cpu_count())


def claim(folder: Path, note: dict) -> None:
    """Raise InputError where a folder holds other things than this world, or than the beginning of it."""
    file = folder / "world.json"
    if file.is_file():
        if read_object(file) != note:
            raise InputError(f"{file}: the folder holds another world than {note['name']!r} of these settings; "
                             "remove it or choose another folder")
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder}: holds files that belong to no drawn world; name an empty folder")


def draw(settings: WorldSettings, folder: Path, note: dict, workers: int) -> None:
    """Draw the photos that are not there yet, then write the catalog."""
    write_json(folder / "world.json", note)
    # folders of photos that are not yet complete, in processes of their own where there are several
    samples = plan(settings)
    starts = range(0, len(samples), FOLDER_SIZE)
    parts = [folder / f"parts/{number:03d}.json" for number in range(len(starts))]
    jobs = [(settings, folder, number, samples[start:start + FOLDER_SIZE])
            for number, start in enumerate(starts) if not parts[number].exists()]
    with process_map(workers if workers > 1 and len(jobs) > 1 else 0) as parallel_map:
        drawn = parallel_map(_draw_folder, jobs)
        list(progress(drawn, f"world {settings.name}, folders of {FOLDER_SIZE} photos", len(jobs)))
    # the catalog; train rows carry no labels, no boxes, and not the kind of photo either
    boxes = [of_sample for part in parts for of_sample in json.loads(part.read_text())]
    products = products_of(settings)
    kinds = {"train": None, "gallery": "single", "val": "multi", "test": "multi"}
    rows = []
    for position, sample in enumerate(samples):
        known = sample.split != "train"
        labels = [products[i].label for i in sample.products] if known else []
        rows.append({
            "sample_id": sample.sample_id, "split": sample.split, "caption": sample.caption,
            "image": f"images/{position // FOLDER_SIZE:03d}/{sample.sample_id}.jpg", "mirror": None,
            "products": kinds[sample.split], "combination": sample.combination,
            "labels": labels, "boxes": boxes[position] if known else [], "box_labels": list(labels),
        })
    write_catalog(pd.DataFrame(rows, dtype=object), folder)
    remove(folder / "parts")


def _draw_folder(job: tuple[WorldSettings, Path, int, list[Sample]]) -> None:
    """Draw a folder of photos; write their boxes last, which marks the folder as complete."""
    settings, folder, number, samples = job
    images = folder / f"images/{number:03d}"
    images.mkdir(parents=True, exist_ok=True)
    boxes = []
    for sample in samples:
        photo = draw_sample(settings, sample.split, sample.index, sample.products)
        file = images / f"{sample.sample_id}.jpg"
        if not cv2.imwrite(str(file), photo.picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{file}: the photo cannot be written; is the disk full?")
        boxes.append(boxes_of(photo.pieces, len(sample.products)))
    write_json(folder / f"parts/{number:03d}.json", boxes)


# ---- one sample
def draw_sample(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...]) -> Photo:
    """Draw the photo of a sample."""
    products = [products_of(settings)[i] for i in shown]
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, 2])
    return take_photo(products, settings.size, settings.seed, rng, split, scenes_of(settings, split))


def boxes_of(pieces: np.ndarray, count: int) -> list[list[float]]:
    """Return boxes around the visible pixels of the pieces 1 to `count`: xyxy in pixels, far edges exclusive."""
    boxes = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(pieces == number)
        corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes.append([float(value) for value in corners])
    return boxes


@lru_cache(maxsize=8)
def scenes_of(settings: WorldSettings, split: str) -> tuple[Path, ...]:
    """Return every fourth photo of the user's folder of scenes, those of one split; InputError if it has too few."""
    if not settings.scenes:
        return ()
    files = sorted(file for file in Path(settings.scenes).glob("*") if file.suffix.lower() in SCENE_FILES)
    if len(files) < len(SPLITS):
        raise InputError(f"{settings.scenes}: {len(files)} photos ({', '.join(SCENE_FILES)}); scenes need four at "
                         "least, because no two splits share one")
    return tuple(files[SPLITS.index(split)::len(SPLITS)])


# ---- the truth about a world on disk
def settings_of(folder: Path) -> WorldSettings | None:
    """Return the settings of a world from its folder; None of another catalog, InputError for another version."""
    file = Path(folder) / "world.json"
    note = read_object(file)
    if not note:
        return None
    if note.pop("version", None) != VERSION:
        raise InputError(f"{file}: drawn by another version of this program; remove {folder} and draw the world anew")
    note.pop("scene_files")
    return WorldSettings(**note)


def redraw(settings: WorldSettings, sample_id: str) -> Photo:
    """Draw a photo of a world again, with its truth: `pieces` and `plain`; InputError if there is no such sample."""
    split, _, number = sample_id.partition("-")
    if split not in SPLITS or not number.isdecimal() or int(number) >= getattr(settings, split):
        raise InputError(f"sample_id {sample_id!r}: not in world {settings.name!r}; ids look like 'gallery-000012'")
    return draw_sample(settings, split, int(number), shown_products(settings, split, int(number))[0])
