"""The table of samples, its readers, and every check on what a user hands in.

A catalog is a folder with `catalog.parquet` and `images/`. It comes from the released Product1M lists
(`from_lists`), from a table of your own (`from_table`), or from the rendered world (`world.build`).
"""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from capture_lib.faults import InputError, raise_faults
from capture_lib.paths import write_atomically
from capture_lib.photos import MOST_PIXELS, load_photo
from capture_lib.progress import progress

SPLITS = ("train", "val", "test", "gallery")
LIST_SPLITS = {"train": "train", "dev": "val", "test": "test", "gallery": "gallery"}  # released name: ours
LABEL_SEPARATOR = "#;#"
FIELD_SEPARATOR = "#####"
SCHEMA = pa.schema([
    ("sample_id", pa.string()), ("split", pa.string()), ("caption", pa.string()), ("image", pa.string()),
    ("mirror", pa.string()), ("labels", pa.list_(pa.string())), ("products", pa.string()),
    ("boxes", pa.list_(pa.list_(pa.float64()))), ("box_labels", pa.list_(pa.string())),
    ("combination", pa.string()),
])
TABLE_COLUMNS = ["sample_id", "split", "caption", "image", "labels"]  # required in a user's table
SAFE_ID = re.compile(r"[^\s/\\,:\"'<>|?*\x00-\x1f]{1,128}")


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

    def fingerprint(self) -> str:
        """A digest of the table and of which photos are there with which size, to recognise old results."""
        digest = hashlib.sha256((self.folder / "catalog.parquet").read_bytes())
        for sample, path in self.photos.items():
            digest.update(f"{sample} {path.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

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
    raise_faults([f"{file}: {fault}" for fault in faults_of(table)])
    return Catalog(folder, table)


def write_catalog(table: pd.DataFrame, folder: Path) -> None:
    """Writes `folder/catalog.parquet` at once; columns that the table lacks are empty.

    Raises:
        InputError: a row breaks the contract; nothing is written.
    """
    raise_faults(list(faults_of(table)))
    empty = {"labels": [], "boxes": [], "box_labels": []}
    columns = {name: [None if value is pd.NA or value != value else value for value in table[name]]  # NaN differs
               if name in table else [empty.get(name)] * len(table) for name in SCHEMA.names}
    with write_atomically(Path(folder) / "catalog.parquet") as beside:
        pq.write_table(pa.Table.from_pydict(columns, schema=SCHEMA), beside)


def read_parquet(file: Path) -> pd.DataFrame:
    """A parquet file as a table of plain Python objects (None stays None, lists stay lists)."""
    try:
        return pd.DataFrame(pq.read_table(file).to_pydict(), dtype=object)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def faults_of(table: pd.DataFrame, first_line: int = 1) -> Iterable[str]:
    """One sentence for each cell that breaks the contract; rows are counted from `first_line`."""
    seen: set[str] = set()
    for line, row in enumerate(table.itertuples(index=False), start=first_line):
        where = f"row {line}, sample_id {str(row.sample_id)!r:.80}"
        if not SAFE_ID.fullmatch(str(row.sample_id)) or set(str(row.sample_id)) <= {"."}:
            yield f"{where}: an id must be 1 to 128 characters without spaces, commas, quotes, slashes or colons"
        if row.sample_id in seen:
            yield f"{where}: this id occurs twice; ids must be unique over all splits"
        seen.add(row.sample_id)
        if row.split not in SPLITS:
            yield f"{where}: split {str(row.split)!r:.40} is unknown; use one of {', '.join(SPLITS)}"
        if not is_url(row.image) and not is_inside(row.image):
            yield f"{where}: image {str(row.image)!r:.80} must be a URL or a path below the folder, without '..'"
        yield from (f"{where}: {fault}" for fault in box_faults(row))


def box_faults(row: tuple) -> Iterable[str]:
    """Faults of the evaluation boxes of one row, where it has any."""
    boxes, labels = getattr(row, "boxes", None) or [], getattr(row, "box_labels", None) or []
    if boxes and len(labels) != len(boxes):
        yield f"field box_labels: {len(labels)} labels for {len(boxes)} boxes; give one a box"
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        possible = numbers and all(abs(v) < MOST_PIXELS for v in box)  # not so of NaN
        if not possible or box[2] <= box[0] or box[3] <= box[1]:
            yield f"field boxes: {str(box)!r:.60} is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


def is_url(image: str) -> bool:
    """True for an address, False for a path."""
    return str(image).startswith(("http://", "https://"))


def is_inside(image: str) -> bool:
    """True where a relative path stays below its folder."""
    path = PurePosixPath(str(image).replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


# ---------------------------------------------------------------------------------------- released lists


def read_list(file: Path) -> pd.DataFrame:
    """Reads one released list: columns sample_id, caption, image, mirror, labels (the train list has none).

    The published test list has CRLF line ends: a reader that keeps the `\\r` counts 523 labels for 392.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line has not 4 or 5 fields.
    """
    rows, faults = [], []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # a caption may hold \u2028
        fields = line.strip("\r").split(FIELD_SEPARATOR)
        if not line.strip():
            continue
        if len(fields) not in (4, 5):
            faults.append(f"{file}, line {number}: {len(fields)} fields, expected 5 "
                          f"(id, caption, image, mirror, labels; 4 in the train list) separated by {FIELD_SEPARATOR}")
            continue
        labels = split_labels(fields[4]) if len(fields) == 5 else []
        rows.append((*(field.strip() for field in fields[:4]), labels))
    raise_faults(faults)
    if not rows:
        raise InputError(f"{file}: the list is empty")
    return pd.DataFrame(rows, columns=["sample_id", "caption", "image", "mirror", "labels"], dtype=object)


def split_labels(text: str) -> list[str]:
    """`a#;#b` as a list; runs of spaces inside a label count as one (the released lists double some)."""
    return [" ".join(label.split()) for label in text.split(LABEL_SEPARATOR) if label.strip()]


def read_text(file: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark."""
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}, byte {error.start}: not UTF-8; save the file as UTF-8") from None


def find_lists(folder: Path) -> dict[str, Path]:
    """The released lists in a folder by our split name, recognised by train, dev, test or gallery in the name."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the released lists")
    found: dict[str, Path] = {}
    for file in sorted(Path(folder).glob("*.txt")):
        for theirs, ours in LIST_SPLITS.items():
            if f"_{theirs}" in file.name or file.name.startswith(theirs):
                if ours in found:
                    raise InputError(f"{folder}: {found[ours].name} and {file.name} are both {theirs} lists; keep one")
                found[ours] = file
    if not found:
        raise InputError(f"{folder}: no list here; expected files such as product1m_test_ossurl_v2.txt")
    return found


def from_lists(folder: Path, out: Path) -> Catalog:
    """Makes a catalog of the released lists that a folder holds (any subset of train, dev, test, gallery)."""
    parts, places = [], {}
    for split, file in find_lists(folder).items():
        part = read_list(file)
        raise_faults([f"{file}: sample_id {sample!r:.80} stands in {places[sample]} too; ids must be unique over all "
                      "lists" for sample in part["sample_id"] if sample in places])
        places |= dict.fromkeys(part["sample_id"], file.name)
        part.insert(1, "split", split)
        part["products"] = {"train": None, "gallery": "single"}.get(split, "multi")
        raise_faults([f"{file}: {fault}" for fault in faults_of(part)])
        parts.append(part)
    write_catalog(pd.concat(parts, ignore_index=True), out)
    return read_catalog(out)


# ------------------------------------------------------------------------------------ a table of your own


def from_table(file: Path, images: Path, out: Path) -> Catalog:
    """Makes a catalog of a CSV or parquet table and copies its photos.

    Args:
        file: header `sample_id,split,caption,image,labels[,products][,boxes,box_labels]`; labels joined by
            `#;#`, boxes and box labels as JSON; a missing caption or label is an empty cell.
        images: the folder that the `image` paths start from.
        out: the catalog's folder; it appears only when every row and every photo is fine.

    Raises:
        InputError: every fault of the table, or every photo that doesn't decode, a line each.
    """
    table, first_line = read_user_table(Path(file))
    raise_faults([f"{file}, {fault}" for fault in faults_of(table, first_line)])
    local = table[~table["image"].map(is_url)]
    sources = [Path(images) / image for image in local["image"]]
    raise_faults(list(photo_faults(file, sources, local.index + first_line)))
    table.loc[local.index, "image"] = [f"images/{image.removeprefix('images/')}" for image in local["image"]]
    if len(set(table.loc[local.index, "image"])) < len(set(sources)):
        raise InputError(f"{file}: two photos have the same path, one with and one without images/; rename one")
    for source, image in zip(sources, table.loc[local.index, "image"], strict=True):
        target = Path(out) / image
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or not target.samefile(source):
            shutil.copyfile(source, target)
    write_catalog(table, out)
    return read_catalog(out)


def photo_faults(file: Path, sources: list[Path], lines: Iterable[int]) -> Iterable[str]:
    """One sentence for each photo that cannot be used."""
    for source, line in progress(zip(sources, lines, strict=True), "photos checked", len(sources)):
        try:
            load_photo(source)
        except InputError as error:
            yield f"{file}, row {line}: {error}"


def read_user_table(file: Path) -> tuple[pd.DataFrame, int]:
    """A user's CSV or parquet table with its cells parsed, and the number of its first row."""
    if not file.is_file():
        raise InputError(f"{file}: no such table")
    if file.suffix == ".parquet":
        table, first_line = read_parquet(file), 1
    else:
        table, first_line = read_csv(file), 2  # line 1 is the header
    missing = [name for name in TABLE_COLUMNS if name not in table]
    if missing:
        raise InputError(f"{file}: column {missing[0]} is missing; the header must hold {','.join(TABLE_COLUMNS)}")
    if table.empty:
        raise InputError(f"{file}: the table has no rows")
    for name in TABLE_COLUMNS[:-1]:  # a parquet column may hold numbers and nulls
        table[name] = ["" if cell is None else str(cell) for cell in table[name]]
    table["labels"] = [[str(label) for label in cell] if isinstance(cell, list) else split_labels(str(cell or ""))
                       for cell in table["labels"]]
    for name in ("boxes", "box_labels"):
        if name in table:
            table[name] = [parse_json(cell, f"{file}, row {line}, field {name}") if isinstance(cell, str)
                           else list(cell or []) for line, cell in enumerate(table[name], start=first_line)]
    if "box_labels" in table:
        table["box_labels"] = [[str(label) for label in labels] for labels in table["box_labels"]]
    if "products" in table:
        table["products"] = pd.Series([cell or None for cell in table["products"]], dtype=object)
        odd = set(table["products"]) - {"single", "multi", None}
        if odd:
            raise InputError(f"{file}: products {sorted(odd)[0]!r} is unknown; use single, multi or an empty cell")
    return table, first_line


def read_csv(file: Path) -> pd.DataFrame:
    """A CSV file, every cell a string; blank lines are skipped."""
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(file), newline=""), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{file}: not a CSV table ({error}); save it as CSV with commas and double quotes") from None
    if not rows:
        raise InputError(f"{file}: the table is empty; expected the header {','.join(TABLE_COLUMNS)}")
    if len(set(rows[0])) < len(rows[0]):
        raise InputError(f"{file}, row 1: a column name occurs twice in the header; keep one")
    raise_faults([f"{file}, row {line}: {len(row)} fields, but the header has {len(rows[0])}; quote a cell that holds "
                  "a comma" for line, row in enumerate(rows, start=1) if len(row) != len(rows[0])])
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=object)


def parse_json(text: str, where: str) -> list:
    """A JSON list in a cell; an empty cell is an empty list."""
    try:
        value = json.loads(text or "[]")
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(value, list):
        raise InputError(f"{where}: must be a JSON list")
    return value
