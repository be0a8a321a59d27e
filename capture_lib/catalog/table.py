"""A catalog: a folder with `catalog.parquet`, one row a sample, and `images/`.

It comes from the released lists (`lists.from_lists`), a table of your own (`own_table.from_table`)
or the drawn world (`world.build`). It may grow: rows are added at its end.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from capture_lib.catalog.checks import SPLITS, is_url, read_text, row_faults
from capture_lib.utils import InputError, raise_faults, write_atomically

__all__ = ["SPLITS", "Catalog", "InputError", "read_catalog", "read_text", "write_catalog"]

TEXT = pa.string()
SCHEMA = pa.schema({
    "sample_id": TEXT, "split": TEXT, "caption": TEXT, "image": TEXT, "mirror": TEXT,
    "labels": pa.list_(TEXT), "products": TEXT, "boxes": pa.list_(pa.list_(pa.float64())),
    "box_labels": pa.list_(TEXT), "combination": TEXT})
EMPTY = {"caption": "", "labels": [], "boxes": [], "box_labels": []}  # a missing cell; else null
# the column `combination`: what train tells of a query's products; of gallery photos HELD_OUT or null
SEEN, UNSEEN, HELD_OUT = "seen", "unseen", "held-out brand"


@dataclass(frozen=True)
class Catalog:
    """A catalog folder, read: `table` has one row a sample and the columns of `SCHEMA`."""

    folder: Path
    table: pd.DataFrame

    @property
    def name(self) -> str:
        """Return the folder's name: what reports call this catalog."""
        return self.folder.name

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of one split, in order."""
        return self.table[self.table["split"] == name]

    def photo_path(self, sample_id: str, image: str) -> Path:
        """Return where a sample's photo lies; of a URL, where `capture download` puts it."""
        if not is_url(image):
            return self.folder / image
        shard = hashlib.sha256(sample_id.encode()).hexdigest()[:3]  # 4,096 folders hold a million photos
        return self.folder / "images" / shard / f"{sample_id}.jpg"

    @cached_property
    def photos(self) -> dict[str, Path]:
        """Map sample id to photo, of the samples whose photo is on disk."""
        images = zip(self.table["sample_id"], self.table["image"], strict=True)
        paths = {sample: self.photo_path(sample, image) for sample, image in images}
        return {sample: path for sample, path in paths.items() if path.is_file()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Map sample id to the size of its photo in bytes, where it is on disk."""
        return {sample: path.stat().st_size for sample, path in self.photos.items()}

    def boxed(self, *splits: str) -> pd.DataFrame:
        """Return the rows of some splits that have true boxes and a photo on disk."""
        rows = self.table[self.table["split"].isin(splits) & (self.table["boxes"].map(len) > 0)]
        return rows[rows["sample_id"].isin(self.photos)]

    def fingerprint(self) -> str:
        """Return a digest of the table and of the photos' sizes, to recognise old results."""
        digest = hashlib.sha256((self.folder / "catalog.parquet").read_bytes())
        for sample, size in self.sizes.items():
            digest.update(f"{sample} {size}\n".encode())
        return digest.hexdigest()[:16]

    def row_digests(self, rows: pd.DataFrame) -> np.ndarray:
        """Return a digest (N,) uint64 of each row, `sample_id` among its columns, and its photo's size."""
        sizes = [self.sizes.get(sample) for sample in rows["sample_id"]]
        digests = np.zeros(len(rows), np.uint64)
        columns = [rows[name] for name in rows]
        for place, cells in enumerate(zip(*columns, sizes, strict=True)):
            digest = hashlib.blake2b(repr(cells).encode(), digest_size=8).digest()
            digests[place] = int.from_bytes(digest, "little")
        return digests

    def remarks(self) -> list[str]:
        """Return what a reader should know before trusting a result, a sentence a missing thing."""
        remarks = [f"split {name}: no samples" for name in SPLITS if self.split(name).empty]
        absent = len(self.table) - len(self.photos)
        if absent:
            remarks.append(f"{absent:,} of {len(self.table):,} photos are not on disk "
                           "(`capture download` fetches them)")
        for name in SPLITS:
            rows = self.split(name)
            for column, lack in (("caption", "no caption"), ("labels", "no labels: nothing to score them by")):
                count = int((rows[column].map(len) == 0).sum())
                if count and (name, column) != ("train", "labels"):  # training reads no labels
                    remarks.append(f"split {name}: {count:,} of {len(rows):,} samples have {lack}")
        lacking = self.labels_without_gallery()
        if lacking:
            remarks.append(f"{len(lacking):,} labels of val and test queries are not in the gallery: no "
                           "ranking can find them, and both metric definitions count that against it")
        return remarks

    def labels_without_gallery(self) -> set[str]:
        """Return the labels of val and test that no gallery item has (none without a gallery)."""
        gallery = set(self.split("gallery")["labels"].explode().dropna())
        queries = self.table[self.table["split"].isin(["val", "test"])]["labels"].explode().dropna()
        return set(queries) - gallery if gallery else set()


def read_catalog(folder: Path | str) -> Catalog:
    """Read and check a catalog folder; InputError names a missing file or column, or the faulty rows."""
    folder = Path(folder)
    file = folder / "catalog.parquet"
    if not file.is_file():
        raise InputError(f"{folder}: no catalog.parquet here; make one with `capture catalog`")
    table = read_parquet(file)
    for name in SCHEMA.names:
        if name not in table:
            raise InputError(f"{file}: column {name} is missing; make the catalog anew with `capture catalog`")
    table = with_schema(table)
    raise_faults(list(row_faults(table)))
    return Catalog(folder, table.reset_index(drop=True))


def write_catalog(table: pd.DataFrame, folder: Path) -> None:
    """Write `folder/catalog.parquet`, or nothing and raise InputError where a row is faulty."""
    table = with_schema(table)
    raise_faults(list(row_faults(table)))
    cells = {name: list(table[name]) for name in SCHEMA.names}
    with write_atomically(Path(folder) / "catalog.parquet") as beside:
        pq.write_table(pa.Table.from_pydict(cells, schema=SCHEMA), beside)


def merged(folder: Path, table: pd.DataFrame, add: bool = False) -> pd.DataFrame | None:
    """Return the rows that the catalog in `folder` shall have with those of `table`; None if it has them.

    The table's index names its rows. With `add` the old rows come first, and new rows that are there
    already are left out.

    Raises:
        InputError: a faulty row; an id with other content; without `add`, a catalog of other rows.
    """
    table = with_schema(table)
    raise_faults(list(row_faults(table)))
    if not add and not (Path(folder) / "catalog.parquet").is_file():
        return table

    # compare with what is there, row by row
    old = read_catalog(folder).table
    known = {row[0]: row for row in old.itertuples(index=False, name=None)}
    rows = list(table.itertuples(index=False, name=None))
    if not add and list(known.values()) != rows:
        raise InputError(f"{folder}: a catalog with other rows is there already; add to it with --add, "
                         "or name another folder with --out")
    raise_faults([f"{place}, sample_id {row[0]!r}: the catalog has this id with other content; use "
                  "another id, or make a new catalog"
                  for place, row in zip(table.index, rows, strict=True) if known.get(row[0], row) != row])
    added = table[~table["sample_id"].isin(known)]
    return None if added.empty else pd.concat([old, added])


def with_schema(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `SCHEMA` as plain objects, missing cells as in `EMPTY`, every row with a name."""
    names = [name if isinstance(name, str) else f"row {number}" for number, name in enumerate(table.index, start=1)]
    columns = {}
    for name in SCHEMA.names:
        cells = table[name] if name in table else [None] * len(table)
        columns[name] = [EMPTY.get(name) if is_missing(cell) else cell for cell in cells]
    return pd.DataFrame(columns, index=names, dtype=object)


def is_missing(cell: object) -> bool:
    """Return True for None, NaN and NA."""
    return cell is None or cell is pd.NA or cell != cell


def read_parquet(file: Path) -> pd.DataFrame:
    """Read a parquet file as plain objects (lists stay lists); the index names the rows, "FILE, row 1"."""
    try:
        table = pd.DataFrame(pq.read_table(file).to_pydict(), dtype=object)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column name twice
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file}: not a readable parquet file ({reason})") from None
    return table.set_axis([f"{file}, row {number}" for number in range(1, len(table) + 1)])
