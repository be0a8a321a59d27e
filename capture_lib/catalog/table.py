"""A catalog: a folder with `catalog.parquet`, one row a sample, and `images/`; data/README.md has its columns."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from capture_lib.catalog.labels import is_missing, is_unreadable, labels_of, listed, text_of
from capture_lib.catalog.photos import MAX_PIXELS
from capture_lib.utils import InputError, one_at_a_time, raise_faults, write_atomically

SPLITS = ("train", "val", "test", "gallery")
SAFE_ID = re.compile(  # without what paths, CSV files and the eye trip over
    r"[^\s/\\,:\"'<>|?*\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]{1,128}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal would obey
TEXT = pa.string()
SCHEMA = pa.schema({
    "sample_id": TEXT, "split": TEXT, "caption": TEXT, "image": TEXT, "mirror": TEXT,
    "labels": pa.list_(TEXT), "products": TEXT, "boxes": pa.list_(pa.list_(pa.float64())),
    "box_labels": pa.list_(TEXT), "combination": TEXT})
LISTS = ("labels", "boxes", "box_labels")
EMPTY = {"sample_id": "", "caption": "", "image": ""}  # else null
MAY_BE_EMPTY = ("caption", "mirror", "products")
# the column `combination`: what train tells of a query's products; of gallery photos HELD_OUT or null
SEEN, UNSEEN, HELD_OUT = "seen", "unseen", "held-out brand"


@dataclass(frozen=True)
class Catalog:
    """A catalog folder, read: `table` has one row a sample and the columns of `SCHEMA`."""

    folder: Path
    table: pd.DataFrame
    noted: tuple[tuple, ...] = ()  # lines of quality.csv: what was odd when the rows were read, and what was done

    @property
    def name(self) -> str:
        """Return the folder's name: what reports call this catalog."""
        return self.folder.name

    def split(self, *names: str) -> pd.DataFrame:
        """Return the rows of one split or of several, in the table's order."""
        return self.table[self.table["split"].isin(names)]

    def boxed(self, *splits: str) -> pd.DataFrame:
        """Return the rows of some splits that have true boxes and a photo on disk."""
        rows = self.on_disk
        return rows[(rows["boxes"].map(len) > 0) & rows["split"].isin(splits)]

    def photo_path(self, sample_id: str, image: str) -> Path:
        """Return where a sample's photo lies; of a URL, where `capture download` puts it."""
        if not is_url(image):
            return self.folder / image
        digest = hashlib.sha256(sample_id.encode()).hexdigest()
        name = sample_id if len(sample_id.encode()) <= 200 else digest  # file systems take 255 bytes, suffixes too
        return self.folder / "images" / digest[:3] / f"{name}.jpg"  # 4,096 folders hold a million photos

    @cached_property
    def photos(self) -> dict[str, Path]:
        """Map sample id to photo, of the samples whose photo is on disk and not empty."""
        paths = {row.sample_id: self.photo_path(row.sample_id, row.image) for row in self.table.itertuples()}
        return {sample: path for sample, path in paths.items() if path.is_file() and path.stat().st_size}

    @cached_property
    def on_disk(self) -> pd.DataFrame:
        """The rows whose photo is on disk."""
        return self.table[self.table["sample_id"].isin(self.photos)]

    @cached_property
    def singles(self) -> set[str]:
        """The samples that show one product: so the catalog says, or it does not deny that of a gallery photo."""
        products = self.table["products"]
        single = (products == "single") | (self.table["split"] == "gallery") & (products != "multi")
        return set(self.table["sample_id"][single])

    @cached_property
    def contents(self) -> dict[str, str]:
        """Map sample id to a digest of its photo's bytes, not its time of change: a copy of a catalog keeps stages."""
        digests = {}
        for sample, path in self.photos.items():
            with path.open("rb") as file:
                digests[sample] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        return digests

    @cached_property
    def digested(self) -> dict[tuple, np.ndarray]:
        """The digests of rows that were asked for, by columns and rows: every stage asks, many for the same."""
        return {}

    def row_digests(self, rows: pd.DataFrame) -> np.ndarray:
        """Return a digest (N,) uint64 of each of some rows and columns, `sample_id` among them, and its photo's bytes.

        They are the table's own, with its index.
        """
        asked = (*rows.columns, rows.index.to_numpy().tobytes())
        if asked not in self.digested:
            texts = rows.assign(photo=rows["sample_id"].map(self.contents)).astype(str)
            self.digested[asked] = pd.util.hash_pandas_object(texts, index=False).to_numpy()
        return self.digested[asked]

    def fingerprint(self) -> str:
        """Return a digest of the table and of the photos, to recognise old results."""
        return hashlib.sha256(self.row_digests(self.table)).hexdigest()[:16]

    def remarks(self) -> list[str]:
        """Return what a reader should know before trusting a result, a sentence a missing thing."""
        remarks = []
        absent = len(self.table) - len(self.photos)
        if absent:
            remarks.append(f"{absent:,} of {len(self.table):,} photos are not on disk; `capture download` fetches them")
        for name in SPLITS:
            rows = self.split(name)
            if rows.empty:
                remarks.append(f"split {name}: no samples")
            for column in ("caption", "labels"):
                count = sum(rows[column].map(len) == 0)
                if count and (name, column) != ("train", "labels"):  # training reads no labels
                    remarks.append(f"split {name}: {count:,} of {len(rows):,} samples have no {column}")

        # what queries ask for and a gallery, where there is one, does not have
        gallery = set(self.split("gallery")["labels"].explode().dropna())
        lacking = set(self.split("val", "test")["labels"].explode().dropna()) - gallery
        if gallery and lacking:
            remarks.append(f"{len(lacking):,} labels of queries are not in the gallery: no ranking can find them")
        return remarks


def read_catalog(folder: Path | str) -> Catalog:
    """Read and check a catalog folder; InputError names a missing file or the faulty rows."""
    file = Path(folder) / "catalog.parquet"
    if not file.is_file():
        raise InputError(f"{folder}: no catalog.parquet here; make one with `capture catalog`")
    noted: list[tuple] = []
    rows = checked(read_parquet(file), noted)
    return Catalog(file.parent, rows.reset_index(drop=True), tuple(noted))


def write_catalog(table: pd.DataFrame, folder: Path) -> None:
    """Write `folder/catalog.parquet`, or nothing and raise InputError where a row is faulty."""
    rows = pa.Table.from_pydict(checked(table).to_dict("list"), schema=SCHEMA)
    with write_atomically(Path(folder) / "catalog.parquet") as beside:
        pq.write_table(rows, beside)


def merged(folder: Path, table: pd.DataFrame, add: bool, noted: list[tuple]) -> pd.DataFrame:
    """Return the rows to be: with `add` the old ones, then those of a checked table; InputError where they disagree."""
    if not add and not (Path(folder) / "catalog.parquet").is_file():
        return table

    # compare with what is there, row by row
    there = read_catalog(folder)
    old = there.table
    noted += there.noted
    known = {row[0]: row for row in old.itertuples(index=False, name=None)}
    rows = list(table.itertuples(index=False, name=None))
    if not add and list(known.values()) != rows:
        raise InputError(f"{folder}: a catalog with other rows is there already; use --add, or another --out")
    raise_faults([f"{place}, sample_id {row[0]!r}: the catalog has this id with other content; use another id"
                  for place, row in zip(table.index, rows, strict=True) if known.get(row[0], row) != row])
    return pd.concat([old, table[~table["sample_id"].isin(known)]])


def write_merged(folder: Path, table: pd.DataFrame, add: bool) -> pd.DataFrame:
    """Merge anew, for another command may have come first, and write; return the catalog's rows."""
    with one_at_a_time(Path(folder) / ".lock", f"writes {folder}"):
        rows = merged(folder, table, add, []).reset_index(drop=True)
        write_catalog(rows, folder)
    return rows


def checked(table: pd.DataFrame, noted: list[tuple] | None = None) -> pd.DataFrame:
    """Return the table, tidied; InputError names faulty rows. `noted` gets what was taken out."""
    rows = tidied(table, [] if noted is None else noted)
    raise_faults(list(row_faults(rows)))
    return rows


def tidied(table: pd.DataFrame, noted: list[tuple]) -> pd.DataFrame:
    """Return the columns of `SCHEMA` as plain objects; `noted` gets the number of those that mean "missing"."""
    rows = table.reindex(columns=SCHEMA.names).astype(object)
    rows = rows.where(rows.notna(), None)
    rows.index = [f"row {name + 1}" if isinstance(name, int) else name for name in rows.index]
    for name in SCHEMA.names:
        words: list[str] = []
        cells = [listed(cell) if name in LISTS else text_of(cell) for cell in rows[name]]
        if name == "labels":
            cells = [str(cell) if is_unreadable(cell) else labels_of(cell, words) for cell in cells]
            noted += finding("labels that mean 'missing'", "all", words, "taken as no label")
        elif name in LISTS:
            cells = [[] if cell is None or isinstance(cell, str) and is_missing(cell) else cell for cell in cells]
            cells = [str(cell) if name == "box_labels" and is_unreadable(cell) else cell for cell in cells]
        else:
            words = [cell for cell in cells if cell and is_missing(cell)] if name in MAY_BE_EMPTY else []
            noted += finding(f"{name}: texts that mean 'missing'", "all", words, "taken as empty")
            empty = {"", *words}
            cells = [EMPTY.get(name) if cell in empty else cell for cell in cells]
        rows[name] = pd.Series(cells, rows.index, dtype=object)

    # a box of no product
    words = []
    for row in rows.itertuples():
        if isinstance(row.boxes, list) and isinstance(row.box_labels, list) and len(row.boxes) == len(row.box_labels):
            labels = ["#;#".join(labels_of([label], words)) for label in row.box_labels]
            row.boxes[:] = [box for box, label in zip(row.boxes, labels, strict=True) if label]
            row.box_labels[:] = filter(None, labels)
    noted += finding("labels of boxes that mean 'missing'", "all", words, "left out with their boxes")
    return rows


def finding(what: str, split: str, cells: Sequence, action: str) -> list[tuple]:
    """Return a line of quality.csv, or none without cells; examples are quoted: no formulas, no control codes."""
    example = ", ".join(dict.fromkeys(f"{cell!r:.70}" for cell in list(cells)[:1000]))
    return [(what, split, len(cells), f"{example:.100}", action)] if len(cells) else []


def read_parquet(file: Path) -> pd.DataFrame:
    """Read a parquet file as plain objects (lists stay lists); the index names the rows, "FILE, row 1"."""
    try:
        table = pd.DataFrame(pq.read_table(file).to_pydict(), dtype=object)  # ValueError: a column name twice
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file}: not a readable parquet file ({reason})") from None
    table.index = [f"{file}, row {number + 1}" for number in table.index]
    return table


# ---- what every row must hold: one sentence for each cell that breaks it


def row_faults(table: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each fault; the table's index names the rows, as in "mine.csv, line 7"."""
    yield from doubled_ids(table)
    for row in table.itertuples():
        for fault in cell_faults(row):
            yield f"{place(row)}: {fault}"


def doubled_ids(table: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each row whose id an earlier one has."""
    first: dict[str, str] = {}
    for row in table.itertuples():
        if first.setdefault(row.sample_id, row.Index) != row.Index:
            yield f"{place(row)}: this id occurs twice ({first[row.sample_id]} has it too); ids must be unique"


def place(row: tuple) -> str:
    """Return where a row of a table stands, and its id."""
    return f"{row.Index}, sample_id {str(row.sample_id)!r:.80}"


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
    for name in LISTS:
        if not isinstance(getattr(row, name), list):
            form = "of boxes" if name == "boxes" else "of texts"
            yield f"field {name}: {str(getattr(row, name))!r:.40} is not a list {form}; write one in JSON"
            return
    if len(row.box_labels) != len(row.boxes):
        yield f"field box_labels: {len(row.box_labels)} labels for {len(row.boxes)} boxes; give one a box"
    for box in row.boxes:
        numbers = isinstance(box, list) and [type(side) in (int, float) for side in box] == [True] * 4
        valid = numbers and all(abs(side) < MAX_PIXELS for side in box)  # not so of NaN
        if not valid or box[0] >= box[2] or box[1] >= box[3]:
            yield f"field boxes: {str(box)!r:.60} is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


def is_url(image: object) -> bool:
    """Return True for a web address, False for a path."""
    return bool(re.match(r"(?i)https?://.", str(image))) and not CONTROL.search(str(image))


def is_inside(image: object) -> bool:
    """Return True where a relative path stays below its folder, of names that a file system takes."""
    text = str(image).replace("\\", "/")
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or CONTROL.search(text):
        return False
    too_long = len(text) > 1000 or max(len(part.encode()) for part in path.parts) > 255
    return not too_long and ".." not in path.parts and ":" not in path.parts[0]
