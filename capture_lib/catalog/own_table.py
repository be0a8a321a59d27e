"""A table of your own, CSV or parquet: every fault found in one pass, its photos checked and copied."""

import csv
import filecmp
import io
import json
import shutil
from pathlib import Path, PurePosixPath

import pandas as pd

from capture_lib.catalog import table as catalogs
from capture_lib.catalog.lists import split_labels
from capture_lib.catalog.photos import load_photo
from capture_lib.utils import InputError, progress, raise_faults, read_text, write_atomically

REQUIRED = ("sample_id", "image")


def from_table(file: Path, images: Path, out: Path, add: bool = False) -> catalogs.Catalog:
    """Make the catalog `out` of a table and its photos below `images`, or `add` to it; InputError has all faults."""
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder")
    faults: list[str] = []
    table = read_table(file, faults)
    faults += catalogs.row_faults(table)
    copies = {}  # from, to
    for row in progress(table.itertuples(), "photos checked", len(table)):
        if not catalogs.is_url(row.image) and catalogs.is_inside(row.image):
            photo = images / row.image
            copies[photo] = out / "images" / row.image
            try:
                # it lies in the folder, decodes, and does not take the place of another photo
                if not photo.is_file() or not photo.resolve().is_relative_to(images.resolve()):
                    raise InputError(f"{photo}: no such photo, or a link that leaves {images}")
                load_photo(photo)
                if copies[photo].is_file() and not filecmp.cmp(photo, copies[photo], shallow=False):
                    raise InputError(f"{photo}: another photo of this name is in the catalog; rename it")
            except InputError as error:
                faults.append(f"{row.Index}, sample_id {row.sample_id!r:.80}: {error}")
    raise_faults(faults)

    # photos first, the table last: an interrupted command can be given again
    table["image"] = [image if catalogs.is_url(image) else f"images/{image}" for image in table["image"]]
    rows = catalogs.merged(out, table, add)
    for photo, target in copies.items():
        if not target.is_file():
            with write_atomically(target) as beside:
                shutil.copyfile(photo, beside)
    catalogs.write_catalog(rows, out)
    return catalogs.read_catalog(out)


def read_table(file: Path, faults: list[str]) -> pd.DataFrame:
    """Read a user's table: our columns; the index names its rows. Add a sentence to `faults` for each bad row."""
    table = catalogs.read_parquet(file) if file.suffix == ".parquet" else read_csv(file, faults)
    for name in REQUIRED:
        if name not in table:
            raise InputError(f"{file}: column {name} is missing; the header reads {','.join(map(str, table))!r:.120}")
    if table.empty and not faults:
        raise InputError(f"{file}: the table has no rows")
    unknown = [str(name) for name in table if name not in catalogs.SCHEMA.names]
    if unknown:
        print(f"note: {file}: columns that are not known here are left out: {', '.join(unknown):.200}")
    rows = [our_cells(cells, place, faults) for place, cells in zip(table.index, table.to_dict("records"), strict=True)]
    return pd.DataFrame(rows, index=table.index, columns=catalogs.SCHEMA.names, dtype=object)


def our_cells(cells: dict, place: str, faults: list[str]) -> dict:
    """Return a user's row as one of ours; add a sentence to `faults` for each cell that is no list."""
    row = {name: str(cells.get(name) or "").strip() or catalogs.EMPTY.get(name) for name in catalogs.SCHEMA.names}
    row["split"] = row["split"] or "train"
    if row["image"] and not catalogs.is_url(row["image"]):
        row["image"] = str(PurePosixPath(row["image"].replace("\\", "/")))
    labels = cells.get("labels")
    row["labels"] = list(map(str, labels)) if isinstance(labels, list) else split_labels(row["labels"] or "")
    try:
        row["boxes"] = parse_list(cells.get("boxes"))
        row["box_labels"] = list(map(str, parse_list(cells.get("box_labels"))))
    except ValueError as error:
        faults.append(f"{place}, sample_id {row['sample_id']!r:.80}, field boxes or box_labels: {error}")
        row["boxes"] = row["box_labels"] = []  # no second complaint
    return row


def parse_list(cell: object) -> list:
    """Return a list, or a JSON list as text; nothing is an empty list. ValueError: it is neither."""
    try:
        found = json.loads(cell or "[]") if isinstance(cell, str) else cell or []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error):.60})") from None
    if not isinstance(found, list):
        raise ValueError("must be a JSON list")
    return found


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
                faults.append(f"{place}: {len(row)} fields, but the header has {len(header)}; quote cells with commas")
            place = f"{file}, line {reader.line_num + 1}"  # a quoted cell may span lines
    except csv.Error as error:
        faults.append(f"{place}: not a CSV table from here on ({error}); save it as CSV with commas and double quotes")
    if len(set(header)) < len(header):
        raise InputError(f"{file}, line 1: a column name occurs twice in the header; keep one")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
