"""What every row of a catalog must hold: one sentence for each cell that breaks it."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pandas as pd

from capture_lib.catalog.photos import MAX_PIXELS

SPLITS = ("train", "val", "test", "gallery")
SAFE_ID = re.compile(  # without what paths, CSV files and the eye trip over
    r"[^\s/\\,:\"'<>|?*\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]{1,128}")


def row_faults(table: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each fault; the table's index names the rows, as in "mine.csv, line 7"."""
    first: dict[str, str] = {}
    for row in table.itertuples():
        where = f"{row.Index}, sample_id {str(row.sample_id)!r:.80}"
        if row.sample_id in first:
            yield f"{where}: this id occurs twice ({first[row.sample_id]} has it too); ids must be unique"
        first.setdefault(row.sample_id, row.Index)
        for fault in cell_faults(row):
            yield f"{where}: {fault}"


def cell_faults(row: tuple) -> Iterator[str]:
    """Yield the faults of one row's cells."""
    identity = str(row.sample_id)
    if not SAFE_ID.fullmatch(identity) or set(identity) == {"."}:
        yield "an id must be 1 to 128 characters without spaces, commas, quotes, slashes or colons"
    if row.split not in SPLITS:
        yield f"split {str(row.split)!r:.40} is unknown; use one of {', '.join(SPLITS)}"
    if not is_url(row.image) and not is_inside(row.image):
        yield f"image {str(row.image)!r:.80} must be a URL or a path below the folder, without '..'"
    if row.mirror and not is_url(row.mirror):
        yield f"mirror {str(row.mirror)!r:.80} must be a URL or empty"
    if row.products not in ("single", "multi", None):
        yield f"products {str(row.products)!r:.40} is unknown; use single, multi or an empty cell"
    if len(row.box_labels) != len(row.boxes):
        yield f"field box_labels: {len(row.box_labels)} labels for {len(row.boxes)} boxes; give one a box"
    for box in row.boxes:
        if not is_box(box):
            yield f"field boxes: {str(box)!r:.60} is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


def is_box(box: object) -> bool:
    """Return True for a list of four numbers [x1, y1, x2, y2] in pixels that has an area."""
    if not isinstance(box, list) or [type(side) in (int, float) for side in box] != [True] * 4:
        return False
    x1, y1, x2, y2 = box
    return all(abs(side) < MAX_PIXELS for side in box) and x1 < x2 and y1 < y2  # not so of NaN


def is_url(image: object) -> bool:
    """Return True for a web address, False for a path."""
    return bool(re.fullmatch(r"https?://[^\x00-\x1f]+", str(image)))


def is_inside(image: object) -> bool:
    """Return True where a relative path stays below its folder."""
    text = str(image).replace("\\", "/")
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or "\x00" in text:
        return False
    return ".." not in path.parts and ":" not in path.parts[0]
