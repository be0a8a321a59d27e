"""Photos by way of img2dataset, for catalogs that one machine is too small for: addresses out, photos back in.

img2dataset runs on one machine, on Spark or on Ray, in an environment of its own (see data/README.md).
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd

from capture_lib.catalog.download import DownloadLog, DownloadSettings, now, save
from capture_lib.catalog.table import Catalog, is_url
from capture_lib.utils import InputError, progress, write_atomically

SUFFIXES = (".json", ".jpg", ".png", ".webp")  # of a note, and of the formats that img2dataset writes


def export_addresses(catalog: Catalog, file: Path) -> int:
    """Writes sample_id, url and mirror of the photos that are not on disk, as parquet; returns how many."""
    rows = [(row.sample_id, row.image, row.mirror or row.image) for row in catalog.table.itertuples()
            if is_url(row.image) and row.sample_id not in catalog.photos]
    with write_atomically(file) as beside:
        pd.DataFrame(rows, columns=["sample_id", "url", "mirror"], dtype="str").to_parquet(beside, index=False)
    return len(rows)


def import_photos(catalog: Catalog, folder: Path) -> tuple[int, int]:
    """Takes photos of img2dataset's output (`files` or `webdataset`) into the catalog, each checked by decoding it.

    Returns:
        How many were taken in, and how many were not: they don't decode, or no sample of the catalog has their id.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of img2dataset")
    wanted = {row.sample_id: row.image for row in catalog.table.itertuples()
              if is_url(row.image) and row.sample_id not in catalog.photos}
    taken = refused = 0
    with closing(DownloadLog(catalog)) as log:
        for note, photo in progress(pairs(folder), "photos taken in"):
            sample = str(note.get("sample_id"))
            try:
                if sample in wanted:
                    cells = save(photo, catalog.photo_path(sample, wanted[sample]))
                    log.write(sample, *cells, note.get("url", ""), now())
                    taken += 1
                else:
                    refused += sample not in catalog.photos
            except InputError:
                refused += 1
    return taken, refused


def pairs(folder: Path) -> Iterator[tuple[dict, bytes]]:
    """The note (JSON) and the photo of each sample, in whatever order the two come."""
    halves: dict[str, bytes] = {}
    for key, suffix, content in members(Path(folder)):
        other = halves.pop(key, None)
        if other is None:
            halves[key] = content
            continue
        try:
            note = json.loads(content if suffix == ".json" else other)
        except ValueError:
            note = None
        if isinstance(note, dict):
            yield note, other if suffix == ".json" else content


def members(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of every note and photo below a folder, in files or in tar shards."""
    most = DownloadSettings().max_bytes
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= most:
            yield str(path.with_suffix("")), path.suffix, path.read_bytes()
        elif path.suffix == ".tar":
            try:
                with tarfile.open(path) as shard:
                    for member in shard:  # nothing is unpacked to disk, so no name can lead anywhere
                        name = Path(member.name)
                        if name.suffix in SUFFIXES and member.isfile() and member.size <= most:
                            yield f"{path}/{name.with_suffix('')}", name.suffix, shard.extractfile(member).read()
            except (tarfile.TarError, EOFError) as error:
                raise InputError(f"{path}: not a whole tar file ({error}); run img2dataset again") from None
