"""Photos by way of img2dataset, for catalogs that are too large for one machine: addresses out, photos in.

img2dataset runs on one machine, on Spark or on Ray, in an environment of its own (see data/README.md).
"""

import csv
import json
from pathlib import Path

from capture_lib.catalog.download import absent, open_log, save
from capture_lib.catalog.table import Catalog
from capture_lib.utils import InputError, progress, write_atomically

SUFFIXES = (".jpg", ".png", ".webp")  # of the photos that img2dataset writes


def export_addresses(catalog: Catalog, file: Path) -> int:
    """Write sample_id, url and mirror of the photos that are not on disk, as parquet; return how many."""
    table = absent(catalog)[["sample_id", "image", "mirror"]].astype("string")
    table["mirror"] = table["mirror"].fillna(table["image"])
    with write_atomically(file) as beside:
        table.rename(columns={"image": "url"}).to_parquet(beside, index=False)
    return len(table)


def import_photos(catalog: Catalog, folder: Path) -> tuple[int, int]:
    """Take in the photos that img2dataset wrote as files, a note (JSON) beside each, if they decode.

    Returns:
        How many were taken in, and how many were not: they don't decode, or no sample has their id.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of img2dataset")
    wanted = dict(absent(catalog)[["sample_id", "image"]].itertuples(index=False))
    taken = refused = 0
    photos = [path for path in sorted(Path(folder).rglob("*")) if path.suffix in SUFFIXES]
    with open_log(catalog.folder) as log:
        for photo in progress(photos, "photos taken in", len(photos)):
            sample, address = read_note(photo.with_suffix(".json"))
            if sample not in wanted:
                refused += sample not in catalog.photos
                continue
            try:
                cells = save(photo.read_bytes(), catalog.photo_path(sample, wanted[sample]), address)
            except InputError:
                refused += 1
                continue
            csv.writer(log).writerow((sample, *cells))
            taken += 1
    return taken, refused


def read_note(file: Path) -> tuple[str, str]:
    """Return the sample_id and the address that a note of img2dataset holds; nothing where it holds none."""
    try:
        note = json.loads(file.read_bytes())
        return str(note["sample_id"]), str(note["url"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return "", ""
