"""The table of samples, what every row of it must hold, and what a reader should know about it.

A catalog is a folder with `catalog.parquet` and `images/`. It comes from the released Product1M lists
(`lists.from_lists`), from a table of your own (`tables.from_table`), or from the rendered world (`world.build`).
It may grow: rows are added at its end, and the old ones stay as they are.
"""

import codecs
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

from capture_lib.catalog.photos import MAX_PIXELS
from capture_lib.utils import InputError, raise_faults, write_atomically

SPLITS = ("train", "val", "test", "gallery")
SCHEMA = pa.schema([
    ("sample_id", pa.string()), ("split", pa.string()), ("caption", pa.string()), ("image", pa.string()),
    ("mirror", pa.string()), ("labels", pa.list_(pa.string())), ("products", pa.string()),
    ("boxes", pa.list_(pa.list_(pa.float64()))), ("box_labels", pa.list_(pa.string())),
    ("combination", pa.string()),
])
EMPTY = {"caption": "", "labels": [], "boxes": [], "box_labels": []}  # what a missing cell is; null elsewhere
# values of the column `combination`: what train tells of a query's products; a gallery photo's is HELD_OUT or null
SEEN, UNSEEN, HELD_OUT = "seen", "unseen", "held-out brand"
SAFE_ID = re.compile(r"[^\s/\\,:\"'<>|?*\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]{1,128}")
LONGEST_PATH = 1000  # characters


@dataclass(frozen=True)
class Catalog:
    """A catalog folder, read: `table` has one row a sample and the columns of `SCHEMA` (lists as lists)."""

    folder: Path
    table: pd.DataFrame

    @property
    def name(self) -> str:
        """The folder's name: what reports call this catalog."""
        return self.folder.name

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, in order."""
        return self.table[self.table["split"] == name]

    def photo_path(self, sample_id: str, image: str) -> Path:
        """Where a sample's photo lies; of a URL, where `capture download` puts it."""
        if not is_url(image):
            return self.folder / image
        shard = hashlib.sha256(sample_id.encode()).hexdigest()[:3]  # 4,096 folders hold a million photos
        return self.folder / "images" / shard / f"{sample_id}.jpg"

    @cached_property
    def photos(self) -> dict[str, Path]:
        """Sample id to photo, for the samples whose photo is on disk."""
        paths = zip(self.table["sample_id"], self.table["image"], strict=True)
        found = {sample: self.photo_path(sample, image) for sample, image in paths}
        return {sample: path for sample, path in found.items() if path.is_file()}

    def boxed(self, *splits: str) -> pd.DataFrame:
        """The rows of some splits that have true boxes and whose photos are on disk."""
        rows = self.table[self.table["split"].isin(splits) & (self.table["boxes"].map(len) > 0)]
        return rows[rows["sample_id"].isin(self.photos)]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sample id to the size of its photo in bytes, for the samples whose photo is on disk."""
        return {sample: path.stat().st_size for sample, path in self.photos.items()}

    def fingerprint(self) -> str:
        """A digest of the table and of which photos are there with which size, to recognise old results."""
        digest = hashlib.sha256((self.folder / "catalog.parquet").read_bytes())
        for sample, size in self.sizes.items():
            digest.update(f"{sample} {size}\n".encode())
        return digest.hexdigest()[:16]

    def row_digests(self, rows: pd.DataFrame) -> np.ndarray:
        """A digest (N,) uint64 of each row of a part of the table (sample_id among its columns) and its photo's size.

        It tells which rows are still what they were: those that a part leaves out don't count, nor other columns.
        """
        sizes = [self.sizes.get(sample) for sample in rows["sample_id"]]
        cells = zip(*(rows[name] for name in rows), sizes, strict=True)
        digests = (hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in cells)
        return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(rows))

    def remarks(self) -> list[str]:
        """What a reader should know before trusting a result: one sentence for each thing that is missing."""
        said = [f"split {name}: no samples" for name in SPLITS if self.split(name).empty]
        absent = len(self.table) - len(self.photos)
        if absent:
            said.append(f"{absent:,} of {len(self.table):,} photos are not on disk (`capture download` fetches them)")
        for name in SPLITS:
            rows = self.split(name)
            empty = int((rows["caption"] == "").sum())
            if empty:
                said.append(f"split {name}: {empty:,} of {len(rows):,} samples have no caption")
            unknown = int((rows["labels"].map(len) == 0).sum())
            if unknown and name != "train":  # training reads no labels
                said.append(f"split {name}: {unknown:,} of {len(rows):,} samples have no labels: nothing to score them "
                            "by")
        lacking = self.labels_without_gallery()
        if lacking:
            said.append(f"{len(lacking):,} labels of val and test queries are not in the gallery: "
                        "no ranking can find them, and both metric definitions count that against it")
        return said

    def labels_without_gallery(self) -> set[str]:
        """Labels that val or test queries ask for and no gallery item carries (empty without a gallery)."""
        held = {label for labels in self.split("gallery")["labels"] for label in labels}
        asked = self.table[self.table["split"].isin(["val", "test"])]["labels"]
        return {label for labels in asked for label in labels} - held if held else set()


def read_catalog(folder: Path | str) -> Catalog:
    """Reads and checks a catalog folder.

    Raises:
        InputError: the folder holds no catalog, or a row breaks the contract.
    """
    folder = Path(folder)
    file = folder / "catalog.parquet"
    if not file.is_file():
        raise InputError(f"{folder}: no catalog.parquet here; make one with `capture catalog`")
    table = read_parquet(file)
    missing = [name for name in SCHEMA.names if name not in table]
    if missing:
        raise InputError(f"{file}: column {missing[0]} is missing; make the catalog anew with `capture catalog`")
    table = with_schema(table)
    raise_faults([f"{file}, {fault}" for fault in faults_of(table)])
    return Catalog(folder, table)


def write_catalog(table: pd.DataFrame, folder: Path) -> None:
    """Writes `folder/catalog.parquet` at once; columns that the table lacks are empty.

    Raises:
        InputError: a row breaks the contract; nothing is written.
    """
    table = with_schema(table)
    raise_faults(list(faults_of(table)))
    with write_atomically(Path(folder) / "catalog.parquet") as beside:
        pq.write_table(pa.Table.from_pydict({name: list(table[name]) for name in SCHEMA.names}, schema=SCHEMA), beside)


def merged(folder: Path, table: pd.DataFrame, places: Sequence[str] | None = None, add: bool = False
           ) -> pd.DataFrame | None:
    """All rows that a catalog folder shall have once `table` is in it; None where it has them already.

    With `add` the old rows come first, and new rows that are there already, the same in every cell, are left out.

    Raises:
        InputError: a row breaks the contract; the folder has an id with other content; without `add`, the folder
            has other rows; with it, no catalog.
    """
    table, places = with_schema(table), places or row_numbers(len(table))
    raise_faults(list(faults_of(table, places)))
    if not add and not (Path(folder) / "catalog.parquet").is_file():
        return table
    old = read_catalog(folder).table
    held, new = dict(zip(old["sample_id"], rows_of(old), strict=True)), rows_of(table)
    if not add and list(held.values()) != new:
        raise InputError(f"{folder}: a catalog with other rows is there already; add to it with --add, or name "
                         "another folder with --out")
    raise_faults([f"{place}, sample_id {row[0]!r}: the catalog has this id with other content; use another id, or "
                  "make a new catalog" for place, row in zip(places, new, strict=True) if held.get(row[0], row) != row])
    added = [row[0] not in held for row in new]
    return pd.concat([with_schema(old), table[added]], ignore_index=True) if any(added) else None


def with_schema(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `SCHEMA` in order; missing columns and cells (None, NaN, NA) are as in `EMPTY`."""
    columns = {name: [EMPTY.get(name) if value is None or value is pd.NA or value != value else value
                      for value in table[name]] if name in table else [EMPTY.get(name)] * len(table)
               for name in SCHEMA.names}
    return pd.DataFrame(columns, dtype=object)


def rows_of(table: pd.DataFrame) -> list[tuple]:
    """The rows as plain tuples in the order of `SCHEMA`, to be compared."""
    return list(with_schema(table).itertuples(index=False, name=None))


def read_parquet(file: Path) -> pd.DataFrame:
    """A parquet file as a table of plain Python objects (None stays None, lists stay lists)."""
    try:
        return pd.DataFrame(pq.read_table(file).to_pydict(), dtype=object)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column name twice
        raise InputError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def row_numbers(rows: int) -> list[str]:
    """How rows are named where they have no line in a file."""
    return [f"row {number}" for number in range(1, rows + 1)]


def faults_of(table: pd.DataFrame, places: Sequence[str] | None = None) -> Iterator[str]:
    """One sentence for each cell that breaks the contract; `places` names the rows, as in "line 7"."""
    seen: dict[str, str] = {}
    for place, row in zip(places or row_numbers(len(table)), table.itertuples(index=False), strict=True):
        where = f"{place}, sample_id {str(row.sample_id)!r:.80}"
        if row.sample_id in seen:
            yield (f"{where}: this id occurs twice ({seen[row.sample_id]} has it too); ids must be unique over all "
                   "splits")
        seen.setdefault(row.sample_id, place)
        yield from (f"{where}: {fault}" for fault in [*cell_faults(row), *box_faults(row)])


def cell_faults(row: tuple) -> Iterator[str]:
    """Faults of one row's cells, each by itself."""
    if not SAFE_ID.fullmatch(str(row.sample_id)) or set(str(row.sample_id)) <= {"."}:
        yield "an id must be 1 to 128 characters without spaces, commas, quotes, slashes or colons"
    if row.split not in SPLITS:
        yield f"split {str(row.split)!r:.40} is unknown; use one of {', '.join(SPLITS)}"
    if not is_url(row.image) and not is_inside(row.image):
        yield f"image {str(row.image)!r:.80} must be a URL or a path below the folder, without '..'"
    if row.mirror and not is_url(row.mirror):
        yield f"mirror {str(row.mirror)!r:.80} must be a URL or empty"
    if row.products not in ("single", "multi", None):
        yield f"products {str(row.products)!r:.40} is unknown; use single, multi or an empty cell"
    if any("\x00" in str(text) for text in (row.caption, *row.labels)):
        yield "a NUL character in the caption or a label; remove it"


def box_faults(row: tuple) -> Iterator[str]:
    """Faults of the evaluation boxes of one row, where it has any."""
    if len(row.box_labels) != len(row.boxes):
        yield f"field box_labels: {len(row.box_labels)} labels for {len(row.boxes)} boxes; give one a box"
    for box in row.boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        possible = numbers and all(abs(v) < MAX_PIXELS for v in box)  # not so of NaN
        if not possible or box[2] <= box[0] or box[3] <= box[1]:
            yield f"field boxes: {str(box)!r:.60} is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


def is_url(image: str) -> bool:
    """True for an address, False for a path."""
    return bool(re.fullmatch(r"https?://[^\x00-\x1f]+", str(image)))


def is_inside(image: str) -> bool:
    """True where a relative path stays below its folder."""
    path = PurePosixPath(str(image).replace("\\", "/"))
    plain = path.parts and not path.is_absolute() and "\x00" not in str(path) and len(str(path)) <= LONGEST_PATH
    return bool(plain) and ".." not in path.parts and ":" not in path.parts[0]


def read_text(file: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read or is in another encoding, which is named where it shows.
    """
    try:
        raw = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    place = raw.find(b"\x00")
    try:
        if place < 0:
            return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start
    line = raw.count(b"\n", 0, place) + 1
    raise InputError(f"{file}, line {line}: not UTF-8 ({guess_encoding(raw)}); save the file as UTF-8")


def guess_encoding(raw: bytes) -> str:
    """What bytes that are not UTF-8 look like, for the eyes of a person."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it looks like UTF-16"
    if b"\x00" in raw:
        return "it holds NUL characters, as UTF-16 and binary files do"
    for name, codec in (("GBK", "gb2312"), ("Big5", "big5"), ("GBK", "gb18030")):  # the strictest first
        try:
            raw.decode(codec)
            return f"it looks like {name}"
        except UnicodeDecodeError:
            pass
    return "in no encoding that is known here"

