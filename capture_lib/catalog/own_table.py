"""A table of your own, CSV or parquet: every fault of it found in one pass, its photos checked and copied."""

import csv
import filecmp
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from capture_lib.catalog import table as catalogs
from capture_lib.catalog.lists import split_labels
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, is_inside, is_url, read_catalog
from capture_lib.utils import InputError, progress, raise_faults, write_atomically

REQUIRED = ("sample_id", "image")
MISSING = {"split": "every sample counts as train", "caption": "no sample has a caption",
           "labels": "no sample has labels, so no ranking can be scored",
           "boxes": "no true boxes, so proposals cannot be scored"}  # legal, and what it means


@dataclass(frozen=True)
class UserTable:
    """A user's table, read: its rows with our columns, what each row is called, and what is wrong or odd."""

    table: pd.DataFrame
    places: list[str]  # "line 7" of a CSV file, "row 7" of a parquet file
    faults: list[str]
    remarks: list[str]


def from_table(file: Path, images: Path, out: Path, add: bool = False) -> Catalog:
    """Makes a catalog of a CSV or parquet table and copies its photos; prints which columns are missing or unknown.

    Args:
        file: header `sample_id,image[,split][,caption][,labels][,mirror][,products][,boxes,box_labels]`; labels
            joined by `#;#`, boxes and box labels as JSON. A row without a split counts as train.
        images: the folder that the `image` paths start from; no path and no link may leave it.
        out: the catalog's folder; nothing is written unless every row and every photo is fine.
        add: the rows join the catalog that is there, after its own.

    Raises:
        InputError: every fault of the table and every photo that cannot be used, a line each; or `out` holds
            another catalog and `add` is not set.
    """
    own = read_table(Path(file))
    for remark in own.remarks:
        print(f"note: {file}: {remark}")
    held = set(read_catalog(out).table["image"]) if (Path(out) / "catalog.parquet").is_file() else set()
    places = {image: f"images/{image.removeprefix('images/')}"  # where it lies in the catalog
              for image in own.table["image"] if not is_url(image) and is_inside(image)}
    raise_faults([f"{file}, {fault}" for fault in [
        *own.faults, *catalogs.faults_of(own.table, own.places), *photo_faults(own, places, images, out, held)]])
    table = own.table.assign(image=[places.get(image, image) for image in own.table["image"]])
    whole = catalogs.merged(out, table, [f"{file}, {place}" for place in own.places], add)
    for image, place in places.items():
        if place not in held or not (Path(out) / place).is_file():
            with write_atomically(Path(out) / place) as beside:
                shutil.copyfile(Path(images) / image, beside)
    if whole is not None:
        catalogs.write_catalog(whole, out)
    return read_catalog(out)


def photo_faults(own: UserTable, places: dict[str, str], images: Path, out: Path, held: set[str]) -> Iterator[str]:
    """One sentence for each row whose photo cannot be used; a photo that is in `held` must be the same."""
    if places and not Path(images).is_dir():
        yield f"--images {images}: no such folder"
        return
    root, owner, said = Path(os.path.realpath(images)), {}, {}
    for image, place in progress(places.items(), "photos checked", len(places)):
        source = Path(images) / image
        first = owner.setdefault(place, image)
        if first != image:
            said[image] = f"image {image} and {first} would lie in one place; rename one"
        elif not Path(os.path.realpath(source)).is_relative_to(root):
            said[image] = f"image {image} is a link that leaves {images}; put the photo itself there"
        elif os.path.exists(source) and not os.path.isfile(source):  # reading a pipe would wait for ever
            said[image] = f"image {image} is no file"
        else:
            try:
                load_photo(source)
            except InputError as error:
                said[image] = str(error)
                continue
            target = Path(out) / place
            if place in held and target.is_file() and not filecmp.cmp(source, target, shallow=False):
                said[image] = f"image {image}: the catalog has another photo of this name; rename it"
    for where, row in zip(own.places, own.table.itertuples(), strict=True):
        if row.image in said:
            yield f"{where}, sample_id {row.sample_id!r:.80}: {said[row.image]}"


def read_table(file: Path) -> UserTable:
    """Reads a user's CSV or parquet table with all its faults.

    Raises:
        InputError: the table cannot be read at all: no such file, another encoding, no rows, a column it must have.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such table")
    if file.suffix == ".parquet":
        table = catalogs.read_parquet(file)
        places, faults = catalogs.row_numbers(len(table)), []
    else:
        table, places, faults = read_csv(file)
    lacking = [name for name in REQUIRED if name not in table]
    if lacking:
        raise InputError(f"{file}: {' and '.join(f'column {name} is missing' for name in lacking)}; the header reads "
                         f"{','.join(map(str, table))!r:.120}")
    if table.empty and not faults:
        raise InputError(f"{file}: the table has no rows")
    remarks = [f"column {name} is missing: {meaning}" for name, meaning in MISSING.items() if name not in table]
    unknown = [str(name) for name in table if name not in catalogs.SCHEMA.names]
    if unknown:
        remarks.append(f"columns that are not known here are left out: {', '.join(unknown):.200}")
    columns = our_columns(table)
    faults += parse_boxes(columns, places)
    return UserTable(pd.DataFrame(columns, dtype=object), places, faults, remarks)


def our_columns(table: pd.DataFrame) -> dict[str, list]:
    """A user's cells in the columns of the catalog, without spaces around them; boxes are not parsed yet."""
    columns = {name: list(table[name]) if name in table else [None] * len(table) for name in catalogs.SCHEMA.names}
    for name in ("sample_id", "split", "caption", "image", "mirror", "products", "combination"):
        columns[name] = ["" if cell is None or cell != cell else str(cell).strip() for cell in columns[name]]
    for name in ("mirror", "products", "combination"):
        columns[name] = [cell or None for cell in columns[name]]
    columns["split"] = [cell or "train" for cell in columns["split"]]
    columns["image"] = [cell if "://" in cell or not cell else str(PurePosixPath(cell.replace("\\", "/")))
                        for cell in columns["image"]]
    columns["labels"] = [list(map(str, cell)) if isinstance(cell, list) else split_labels(str(cell or ""))
                         for cell in columns["labels"]]
    return columns


def parse_boxes(columns: dict[str, list], places: list[str]) -> Iterator[str]:
    """Parses boxes and box labels in place; one sentence for each cell that is no list."""
    for index, place in enumerate(places):
        found: dict[str, list] = {}
        for name in ("boxes", "box_labels"):
            try:
                found[name] = parse_list(columns[name][index])
            except ValueError as error:
                yield f"{place}, sample_id {columns['sample_id'][index]!r:.80}, field {name}: {error}"
        boxes = found.get("boxes", [])
        labels = found.get("box_labels", [""] * len(boxes)) if "boxes" in found else []  # no second complaint
        columns["boxes"][index], columns["box_labels"][index] = boxes, list(map(str, labels))


def parse_list(cell: object) -> list:
    """A list, or a JSON list as text; nothing is an empty list."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell or "[]")
            json.dumps(cell, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({str(error):.60})") from None
    if cell is not None and not isinstance(cell, list):
        raise ValueError("must be a JSON list")
    return cell or []


def read_csv(file: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A CSV file, every cell a string, without blank lines; the line on which each row begins; and its faults."""
    reader = csv.reader(io.StringIO(catalogs.read_text(file), newline=""), strict=True)
    header, rows, places, faults, line = [], [], [], [], 1
    try:
        for row in reader:
            if any(row) and not header:
                header = [name.strip() for name in row]
            elif any(row) and len(row) == len(header):
                rows.append(row)
                places.append(f"line {line}")
            elif any(row):
                faults.append(f"line {line}: {len(row)} fields, but the header has {len(header)}; quote a cell that "
                              "holds a comma")
            line = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        faults.append(f"line {line}: not a CSV table from here on ({error}); save it as CSV with commas and double "
                      "quotes")
    if not header:
        raise InputError(f"{file}: the table is empty; expected a header with {', '.join(REQUIRED)}")
    if len(set(header)) < len(header):
        raise InputError(f"{file}, line 1: a column name occurs twice in the header; keep one")
    return pd.DataFrame(rows, columns=header, dtype=object), places, faults
