"""A table of your own, CSV or parquet: every fault found in one pass, its photos checked and copied."""

import csv
import filecmp
import io
import os
import re
import shutil
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from capture_lib.catalog import quality
from capture_lib.catalog import table as catalogs
from capture_lib.catalog.labels import spelling
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog, finding
from capture_lib.utils import InputError, progress, raise_faults, read_text, write_atomically

SEPARATORS = ",;\t|"
HALVES = re.compile("[\ud800-\udfff]")  # of characters, as JSON may escape them
OTHERS = (  # how files begin that are no CSV table; what they are, and what to do
    (rb"\s{0,99}\Z", "an empty file; save the table again"),
    (rb"PK|\xd0\xcf\x11\xe0", "an Excel sheet or an archive; save the table as CSV UTF-8"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "packed; unpack it"),
    (rb"ARROW1|FEA1", "a Feather file; save the table as parquet"),
    (rb"(\xef\xbb\xbf)?\s*[\[{]", "JSON; save the table as CSV or parquet"))


def from_table(file: Path, images: Path, out: Path, add: bool = False, *, columns: str = "", strict: bool = False,
               skip_broken: bool = False) -> Catalog:
    """Make the catalog `out` of a table and its photos below `images`, or `add` to it; InputError has all faults.

    `columns` maps names, "image=filepath"; `strict` refuses what is odd; `skip_broken` lists it in `faults.csv`.
    """
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder")
    if (out / "images").is_symlink() and not (out / "images").is_dir():
        raise InputError(f"{out / 'images'}: stands where the folder of photos is to be; remove it")
    faults: list[str] = []
    noted: list[tuple] = []
    table = read_table(file, columns, faults, noted)
    faults += catalogs.row_faults(table)

    # each photo is decoded once; a broken one leaves its row out, or is a fault like all that does not fit
    sizes = photo_sizes(table, images)
    folder = (out / "images").resolve()
    broken, cut = {}, []
    for row in table.itertuples():
        size = sizes.get(row.image)
        if isinstance(size, str):
            broken[row.Index] = f"{catalogs.place(row)}: {size}"
        elif size:
            faults += photo_faults(row, size, images / row.image, folder, cut)
    raise_faults(faults if skip_broken and len(broken) < len(table) else [*faults, *broken.values()])
    table = table.drop(list(broken))
    noted += finding("boxes a pixel or two over the edge", "all", cut, "cut to their photo")
    noted += finding("rows without a readable photo", "all", list(broken.values()), "left out; see faults.csv")

    # the rows to be, and what is odd in them
    sources = {row.sample_id: images / row.image for row in table.itertuples() if row.image in sizes}
    table["image"] = [image if catalogs.is_url(image) else f"images/{image}" for image in table["image"]]
    made = Catalog(out, catalogs.merged(out, table, add, noted).reset_index(drop=True), tuple(noted))
    if strict:
        made.photos.update(sources)  # where they lie now
        quality.refuse_oddities(made)

    # photos first, the table last: an interrupted command can be given again
    for sample, image in zip(table["sample_id"], table["image"], strict=True):
        if sample in sources and not (out / image).is_file():
            try:
                with write_atomically(out / image) as beside:
                    shutil.copyfile(sources[sample], beside)
            except OSError as error:  # which names the source
                raise OSError(error.errno, error.strerror, str(out / image)) from None
    rows = catalogs.write_merged(out, table, add)
    quality.add_faults(broken.values(), out / "faults.csv")
    return Catalog(out, rows, made.noted)


def photo_sizes(table: pd.DataFrame, images: Path) -> dict[str, tuple[int, int] | str]:
    """Decode each photo of a table; return by `image` its width and height, upright, or what is wrong with it."""
    def size(image: str) -> tuple[int, int] | str:
        photo = images / image
        if not photo.resolve().is_relative_to(images.resolve()):
            return f"{photo}: a link that leaves {images}; copy the photo itself"
        if photo.exists() and not photo.is_file():
            return f"{photo}: a folder or a pipe; name a photo"
        try:
            return load_photo(photo).shape[1::-1]
        except InputError as error:
            return str(error)

    local = [image for image in table["image"].unique() if not catalogs.is_url(image) and catalogs.is_inside(image)]
    with ThreadPool(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        return dict(zip(local, progress(pool.imap(size, local), "photos checked", len(local)), strict=True))


def photo_faults(row: tuple, size: tuple[int, int], photo: Path, folder: Path, cut: list) -> Iterator[str]:
    """Yield what keeps a photo from being copied, and boxes outside; some are cut, and put on `cut`."""
    where = catalogs.place(row)
    target = folder / row.image
    if os.path.lexists(target) and not (target.is_file() and filecmp.cmp(photo, target, shallow=False)):
        yield f"{where}: {target}: another photo of this name is in the catalog; rename it"
    if not next(above for above in target.parents if os.path.lexists(above)).is_dir():
        yield f"{where}: {target.parent}: stands or leads where a folder is to be made; remove it"
    if not target.parent.resolve().is_relative_to(folder):
        yield f"{where}: {target}: a link leads out of the catalog; remove it"
    for box in row.boxes if not any(catalogs.cell_faults(row)) else []:
        inside = np.clip(box, 0, [*size, *size]).tolist()
        if quality.strays(box, size):
            yield f"{where}: field boxes: {box} is not in the photo of {size[0]}×{size[1]} pixels; give pixels, upright"
        elif inside != box:
            cut.append(list(box))
            box[:] = inside


# ---- the table


def read_table(file: Path, columns: str, faults: list[str], noted: list[tuple]) -> pd.DataFrame:
    """Read a user's table: our columns; the index names its rows. Add a sentence to `faults` for each bad row."""
    names, wanted = column_names(columns)
    head = b"?"
    if file.is_file() and os.access(file, os.R_OK):  # what cannot be read is said below
        with file.open("rb") as opened:
            head = opened.read(100)
    parquet = file.suffix.lower() == ".parquet" or head.startswith(b"PAR1")
    kind = next((kind for start, kind in OTHERS if re.match(start, head)), "")
    if kind and not parquet:
        raise InputError(f"{file}: is {kind}")
    table = catalogs.read_parquet(file) if parquet else read_csv(file, names, faults)

    # the columns that are known, by our names
    header = [str(name) for name in table]
    table.columns = [names.get(spelling(name), "") for name in header]
    for name in wanted:
        if name not in table:
            raise InputError(f"{file}: column {name} is missing; the header reads {','.join(header)!r:.120}; "
                             f"--columns {name}=NAME takes another name")
    unknown = [name for name in header if spelling(name) not in names]
    noted += finding("columns that are not known here", "all", unknown, "left out; --columns OURS=THEIRS takes one")
    table = table.loc[:, table.columns != ""]
    for name in table.columns[table.columns.duplicated()]:
        twice = ", ".join(repr(theirs) for theirs in header if names.get(spelling(theirs)) == name)
        raise InputError(f"{file}, line 1: column {name} occurs twice in the header ({twice:.80}); keep one")
    if table.empty and not faults:
        raise InputError(f"{file}: the table has no rows")
    if "sample_id" not in table:
        stem = re.sub("[^A-Za-z0-9]+", "-", file.stem)
        table = table.assign(sample_id=[f"{stem}-{number + 1}" for number in range(len(table))])
        noted += finding("rows without sample_id", "all", list(table["sample_id"]), "numbered")

    # the cells
    faults += [f"{place}: field {name}: {cell!r:.40} is no text; write text or a number"
               for name in table.columns.difference(catalogs.LISTS) for place, cell in table[name].items()
               if isinstance(cell, bytes | list | dict)]
    table = catalogs.tidied(table, noted)
    for name in ("labels", "box_labels"):
        faults += [f"{place}: field {name}: {cell!a:.40} holds half of a character; write it whole"
                   for place, cell in table[name].items() if HALVES.search("".join(map(str, cell or ())))]
    table["split"] = table["split"].fillna("train")
    table["image"] = [image if catalogs.is_url(image) or not image else str(PurePosixPath(image.replace("\\", "/")))
                      for image in table["image"]]
    return table


def column_names(text: str) -> tuple[dict[str, str], list[str]]:
    """Return our column names by the table's own, as `spelling` has them, and those that the table must have."""
    mapped = {}
    for pair in filter(None, text.split(",")):
        ours, _, theirs = map(str.strip, pair.partition("="))
        if not theirs or ours not in catalogs.SCHEMA.names:
            raise InputError(f"--columns {pair!r:.60}: write OURS=THEIRS, OURS of {', '.join(catalogs.SCHEMA.names)}")
        if spelling(theirs) in mapped:
            raise InputError(f"--columns {text!r:.80}: {theirs} is named twice; name it once")
        mapped[spelling(theirs)] = ours
    plain = {spelling(name): name for name in catalogs.SCHEMA.names if name not in mapped.values()}
    return plain | mapped, ["image", *mapped.values()]


def read_csv(file: Path, names: dict[str, str], faults: list[str]) -> pd.DataFrame:
    """Read a CSV file, every cell a string, without blank lines; the index names the line where a row begins."""
    text = re.sub(r"\A(\"?)sep=.\1(?=\r?\n)", "", read_text(file))  # Excel's
    first = text.lstrip().partition("\n")[0]
    known = {mark: sum(spelling(name) in names for name in first.split(mark)) for mark in SEPARATORS}
    separator = max(SEPARATORS, key=known.get)  # which leaves most names that we know; a tie: the comma
    csv.field_size_limit(2**31 - 1)  # a caption may be long
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    header, rows = [], {}
    place = f"{file}, line 1"
    try:
        for row in reader:
            if not header:
                while row and not row[-1].strip():  # spreadsheets add empty columns
                    row.pop()
                header = row
            elif any(row) and len(row) >= len(header) and not any(row[len(header):]):
                rows[place] = row[:len(header)]
            elif any(row):
                faults.append(f"{place}: {len(row)} fields, but the header has {len(header)}; quote cells that hold "
                              f"{separator!r}")
            place = f"{file}, line {reader.line_num + 1}"  # a quoted cell may span lines
    except csv.Error as error:
        faults.append(f"{place}: not a CSV table from here on ({error}); save it as CSV with commas and double quotes")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
