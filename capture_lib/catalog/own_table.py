"""A table of your own, CSV or parquet: every fault found in one pass, its photos checked and copied."""

import csv
import filecmp
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from capture_lib.catalog.checks import is_inside, is_url, read_text, row_faults
from capture_lib.catalog.lists import split_labels
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import SCHEMA, Catalog, is_missing, merged, read_catalog, read_parquet, write_catalog
from capture_lib.utils import InputError, progress, raise_faults, write_atomically

REQUIRED = ("sample_id", "image")
MISSING = {"split": "every sample counts as train", "caption": "no sample has a caption",
           "labels": "no sample has labels, so no ranking can be scored",
           "boxes": "no true boxes, so proposals cannot be scored"}  # legal, and what it means


def from_table(file: Path, images: Path, out: Path, add: bool = False) -> Catalog:
    """Make a catalog of a table and its photos; print which columns are missing or unknown.

    Args:
        file: the columns are described in data/README.md; a row without a split counts as train.
        images: the folder that the `image` paths start from; no path and no link may leave it.
        out: the catalog's folder; nothing is written unless every row and every photo is fine.
        add: the rows join the catalog that is there, after its own.

    Raises:
        InputError: every fault of the table and every photo that cannot be used, a line each; or `out` holds
            another catalog and `add` is not set.
    """
    images, out = Path(images), Path(out)
    faults: list[str] = []
    table = read_table(Path(file), faults)
    targets = {}  # where each photo shall lie in the catalog
    for image in table["image"]:
        if not is_url(image) and is_inside(image):
            targets[image] = f"images/{image.removeprefix('images/')}"
    faults += row_faults(table)
    faults += photo_faults(table, targets, images, out)
    raise_faults(faults)

    # photos first, the table last: an interrupted command can be given again
    table["image"] = [targets.get(image, image) for image in table["image"]]
    rows = merged(out, table, add)
    for image, target in targets.items():
        if not (out / target).is_file():
            with write_atomically(out / target) as beside:
                shutil.copyfile(images / image, beside)
    if rows is not None:
        write_catalog(rows, out)
    return read_catalog(out)


def photo_faults(table: pd.DataFrame, targets: dict[str, str], images: Path, out: Path) -> Iterator[str]:
    """Yield a sentence for each row whose photo cannot be used."""
    if targets and not images.is_dir():
        yield f"--images {images}: no such folder"
        return
    owners: dict[str, str] = {}
    faults = {}
    for image, target in progress(targets.items(), "photos checked", len(targets)):
        owner = owners.setdefault(target, image)
        if owner != image:
            faults[image] = f"image {image} and {owner} would lie in one place; rename one"
        else:
            faults[image] = photo_fault(images, image, out / target)
    for row in table.itertuples():
        if faults.get(row.image):
            yield f"{row.Index}, sample_id {row.sample_id!r:.80}: {faults[row.image]}"


def photo_fault(images: Path, image: str, target: Path) -> str:
    """Return why a photo cannot be copied to `target`; nothing where it can."""
    photo = images / image
    inside = Path(os.path.realpath(photo)).is_relative_to(os.path.realpath(images))
    if os.path.lexists(photo) and not (inside and os.path.isfile(photo)):  # reading a pipe would wait for ever
        return f"image {image} is no file, or a link that leaves {images}; put the photo itself there"
    try:
        load_photo(photo)
    except InputError as error:
        return str(error)
    if target.is_file() and not filecmp.cmp(photo, target, shallow=False):
        return f"image {image}: another photo of this name is in the catalog; rename it"
    return ""


def read_table(file: Path, faults: list[str]) -> pd.DataFrame:
    """Read a user's table: our columns; the index names its rows. Add a sentence to `faults` for each bad row.

    Raises:
        InputError: the table cannot be read at all: no such file, another encoding, no rows, a column it must have.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such table")
    table = read_parquet(file) if file.suffix == ".parquet" else read_csv(file, faults)
    lacking = [f"column {name} is missing" for name in REQUIRED if name not in table]
    if lacking:
        raise InputError(f"{file}: {' and '.join(lacking)}; the header reads {','.join(map(str, table))!r:.120}")
    if table.empty and not faults:
        raise InputError(f"{file}: the table has no rows")
    for name, meaning in MISSING.items():
        if name not in table:
            print(f"note: {file}: column {name} is missing: {meaning}")
    unknown = [str(name) for name in table if name not in SCHEMA.names]
    if unknown:
        print(f"note: {file}: columns that are not known here are left out: {', '.join(unknown):.200}")
    rows = []
    for place, cells in zip(table.index, table.to_dict("records"), strict=True):
        rows.append(our_cells(cells, place, faults))
    return pd.DataFrame(rows, index=table.index, columns=SCHEMA.names, dtype=object)


def our_cells(cells: dict, place: str, faults: list[str]) -> dict:
    """Return a user's row as one of ours; add a sentence to `faults` for each cell that is no list."""
    row = {name: "" if is_missing(cells.get(name)) else str(cells[name]).strip() for name in SCHEMA.names}
    row["split"] = row["split"] or "train"
    if row["image"] and "://" not in row["image"]:
        row["image"] = str(PurePosixPath(row["image"].replace("\\", "/")))
    for name in ("mirror", "products", "combination"):
        row[name] = row[name] or None
    labels = cells.get("labels")
    row["labels"] = list(map(str, labels)) if isinstance(labels, list) else split_labels(row["labels"])
    wrong = []
    for name in ("boxes", "box_labels"):
        try:
            row[name] = parse_list(cells.get(name))
        except ValueError as error:
            wrong.append(f"{place}, sample_id {row['sample_id']!r:.80}, field {name}: {error}")
    if wrong:
        row["boxes"] = row["box_labels"] = []  # no second complaint
    faults += wrong
    row["box_labels"] = list(map(str, row["box_labels"]))
    return row


def parse_list(cell: object) -> list:
    """Return a list, or a JSON list as text; nothing is an empty list. ValueError: it is neither."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell or "[]")
            json.dumps(cell, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({str(error):.60})") from None
    if cell is not None and not isinstance(cell, list):
        raise ValueError("must be a JSON list")
    return cell or []


def read_csv(file: Path, faults: list[str]) -> pd.DataFrame:
    """Read a CSV file, every cell a string, without blank lines; the index names the line where a row begins."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    header, rows = [], {}
    place = f"{file}, line 1"
    try:
        for row in reader:
            if any(row) and not header:
                header = [name.strip() for name in row]
            elif any(row) and len(row) == len(header):
                rows[place] = row
            elif any(row):
                faults.append(f"{place}: {len(row)} fields, but the header has {len(header)}; quote a cell that "
                              "holds a comma")
            place = f"{file}, line {reader.line_num + 1}"  # a quoted cell may span lines
    except csv.Error as error:
        faults.append(f"{place}: not a CSV table from here on ({error}); save it as CSV with commas and double quotes")
    if not header:
        raise InputError(f"{file}: the table is empty; expected a header with {', '.join(REQUIRED)}")
    if len(set(header)) < len(header):
        raise InputError(f"{file}, line 1: a column name occurs twice in the header; keep one")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
