"""A data set of Hugging Face, by name or folder: rows streamed, photos checked; an interrupted command goes on."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd

from capture_lib.catalog import quality
from capture_lib.catalog.download import Seen, save
from capture_lib.catalog.table import SPLITS, Catalog, cell_faults, finding, is_url, merged, tidied, write_merged
from capture_lib.utils import InputError, one_at_a_time, progress, raise_faults

ROWS_A_NOTE = 200  # are read together, and then noted down
NO_PHOTOS = "holds neither photos nor their addresses on the web; name another column"
BYTES_OR_ADDRESS = ("binary", "large_binary", "string", "large_string")
ARCHIVES = ("zip://", "tar://")  # how the path of a photo in one begins
PART = re.compile(rf"({'|'.join(SPLITS)})=([\w.-]+)(?::(\d+(?:\.\d+)?)%)?")  # OURS=THEIRS or OURS=THEIRS:10%


@dataclass(frozen=True)
class Source:
    """A data set, opened but not read."""

    name: str  # as the user gave it
    stem: str  # as ids and folders may hold it
    splits: dict  # streamed, by their names
    home: str  # how the path of every photo begins
    version: str  # digest of its files' names and dates, or of its commit


def from_dataset(name: str, columns: dict[str, str], out: Path, split: str = "", add: bool = False,
                 strict: bool = False) -> Catalog:
    """Make the catalog `out` of a data set, or `add` to it; rows without a readable photo are in `faults.csv`.

    `columns` has theirs by `image`, `caption` and, where there is one, `label`; `split` maps our splits to theirs, or
    to shares of them, as in "train=train:90%,gallery=train:10%"; `strict` refuses what is odd.
    """
    bounds = split_bounds(split or "train=train")
    if not add and (out / "catalog.parquet").exists():
        raise InputError(f"{out}: a catalog is there already; use --add, or another --out")
    source = open_source(name)
    opened = {theirs: open_split(source, theirs, columns) for theirs in bounds}
    asked = hashlib.sha256(repr((source.version, columns, bounds)).encode()).hexdigest()
    notes = out / f".dataset-{asked[:16]}.jsonl"
    with one_at_a_time(out / ".dataset.lock", f"fills {out}"):
        rows: dict[str, dict] = {}
        for theirs, (dataset, classes) in opened.items():
            take = row_taker(source, theirs, bounds[theirs], columns, classes, out)
            rows |= read_split(dataset, source, theirs, take, notes)
        if not rows:
            raise InputError(f"--dataset {name}: no row falls into {split or 'its split train'}; give larger shares")

        # rows without a photo are left out; a placeholder may have been removed after its row was noted
        reasons = {place: row.pop("reason") for place, row in rows.items()}
        noted: list[tuple] = []
        table = tidied(pd.DataFrame(rows.values(), index=list(rows), dtype=object), noted)
        for row in table.itertuples():
            there = is_url(row.image) or (out / row.image).is_file()
            photo = [] if there else [reasons[row.Index] or "its picture is a placeholder"]
            reasons[row.Index] = "; ".join([*cell_faults(row), *photo])
        broken = [f"{place}: {reason}" for place, reason in reasons.items() if reason]
        raise_faults(broken if len(broken) == len(table) else [])
        table = table[[not reasons[place] for place in table.index]]
        noted += finding("rows without a readable photo", "all", broken, "left out; see faults.csv")

        made = Catalog(out, merged(out, table, add, noted).reset_index(drop=True), tuple(noted))
        if strict:
            quality.refuse_oddities(made)
        made = Catalog(out, write_merged(out, table, add), made.noted)
        quality.add_faults(broken, out / "faults.csv")
        notes.unlink(missing_ok=True)
    return made


def split_bounds(text: str) -> dict[str, list[tuple[str, float]]]:
    """Return by their split ours, each with where its share of the rows ends, at most at 1; it begins with the last."""
    bounds: dict[str, list[tuple[str, float]]] = {}
    for part in text.split(","):
        found = PART.fullmatch(part.strip())
        if not found:
            raise InputError(f"--split {part!r:.60}: write OURS=THEIRS, or OURS=THEIRS:10% for a share of it, ours one "
                             f"of {', '.join(SPLITS)}")
        ours = bounds.setdefault(found[2], [("", 0.0)])
        ours.append((found[1], ours[-1][1] + float(found[3] or 100) / 100))
        if ours[-1][1] > 1 + 1e-9:
            raise InputError(f"--split {text:.80}: takes more than 100% of {found[2]}; give smaller shares")
    return bounds


# ---- opening


def open_source(name: str) -> Source:
    """Open a data set; InputError: no such name or folder, no data in it, out of reach, no package for it."""
    try:
        import datasets
    except ImportError:
        raise InputError("--dataset needs the package datasets: .venv/bin/pip install --constraint requirements.lock "
                         "--editable '.[hub]'") from None
    import huggingface_hub
    for library in (datasets, huggingface_hub):
        library.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    repository, _, configuration = name.partition(":")
    home = f"hf://datasets/{repository}@"
    if name and Path(name).is_dir():
        repository, configuration = str(Path(name).resolve()), ""
        home = os.path.join(repository, "")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):  # a bare word such as csv would take the present folder
        raise InputError(f"--dataset {name:.120}: no such folder, and not OWNER/NAME or OWNER/NAME:CONFIGURATION")
    try:
        builder = datasets.load_dataset_builder(repository, configuration or None)
        splits = builder.as_streaming_dataset()
        files = [(split, list(found), found.origin_metadata) for split, found in builder.config.data_files.items()]
    except Exception as error:  # of many kinds
        raise InputError(f"--dataset {name}: {first_line(error)}") from None
    stem = re.sub("[^A-Za-z0-9]+", "-", Path(repository).name if home[0] == "/" else name)[-60:]
    return Source(name, stem, splits, home, hashlib.sha256(repr(files).encode()).hexdigest())


def open_split(source: Source, theirs: str, columns: dict[str, str]) -> tuple[object, dict[str, list[str]]]:
    """Return a streamed split, photos not decoded, and the names of classes by column; InputError: no such column."""
    from datasets import ClassLabel, Image, Value
    if theirs not in source.splits:
        raise InputError(f"--split {theirs}: {source.name} has {', '.join(source.splits)}; write OURS=THEIRS")
    dataset = source.splits[theirs]
    # JSON and CSV tell their columns by their rows, others beforehand
    kinds = dataset.features or dict.fromkeys(next(rows_of(dataset, source), {}))
    photos = [name for name, kind in kinds.items() if isinstance(kind, Image)]
    for option, column in columns.items():
        if column not in kinds:
            raise InputError(f"--{option} {column}: no such column; there are {', '.join(map(repr, kinds)):.400}")
        kind = kinds[column]
        is_list = option == "label" and hasattr(kind, "feature")
        binary = getattr(kind, "dtype", "") in ("binary", "large_binary")
        if option != "image" and not is_list and (binary or not isinstance(kind, Value | ClassLabel | None)):
            raise InputError(f"--{option} {column}: holds no text, but {type(kind).__name__}; name another column")
    image = columns["image"]
    if image in photos:
        dataset = dataset.cast_column(image, Image(decode=False))
    elif not isinstance(kinds[image], dict | None) and getattr(kinds[image], "dtype", "") not in BYTES_OR_ADDRESS:
        raise InputError(f"--image {image}: {NO_PHOTOS}; columns of photos: {', '.join(map(repr, photos)) or 'none'}")
    kinds = {name: getattr(kind, "feature", kind) for name, kind in kinds.items()}  # of a list, that of its items
    return dataset, {name: kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)}


def rows_of(dataset: object, source: Source) -> Iterator[dict]:
    """Yield the rows of a streamed split; InputError where they stop coming."""
    try:
        yield from dataset
    except Exception as error:
        raise InputError(f"--dataset {source.name}: {first_line(error)}; mend the data set or, if the network failed, "
                         "give the same command: it goes on from here") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its kind, without control codes."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return quality.printable(line)[:300]


# ---- reading


def read_split(dataset: object, source: Source, theirs: str, take: Callable, notes: Path) -> dict[str, dict]:
    """Return what `take` makes of the rows of a split, by their places; go on where `notes` ends, and add to it."""
    rows: dict[str, dict] = {}
    count = 0
    for line in notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []:
        with suppress(ValueError):  # a line that was cut off
            note = json.loads(line)
            if note["split"] == theirs:
                rows |= note["rows"]
                count = note["count"]
                dataset.load_state_dict(note["state"])
    stream = progress(rows_of(dataset, source), f"rows of {theirs}")
    with ThreadPool(8) as pool:
        while batch := list(islice(stream, ROWS_A_NOTE)):
            taken = dict(filter(None, pool.starmap(take, enumerate(batch, start=count + 1))))
            rows |= taken
            count += len(batch)
            note = {"split": theirs, "count": count, "rows": taken, "state": dataset.state_dict()}
            with notes.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(note, default=str))
    return rows


def row_taker(source: Source, theirs: str, bounds: list[tuple[str, float]], columns: dict[str, str],
              classes: dict[str, list[str]], out: Path) -> Callable[[int, dict], tuple[str, dict] | None]:
    """Return a function that puts the photo of a numbered row below `out`, and makes the catalog's row of it."""
    seen: Seen = {}

    def take(number: int, row: dict) -> tuple[str, dict] | None:
        """Return where a row stands and the catalog's row; its `reason` says why it has no photo. None: not taken."""
        sample = f"{source.stem}-{theirs}-{number}"
        draw = int(hashlib.sha256(sample.encode()).hexdigest()[:8], 16) / 16**8  # the same in every run
        split = next((ours for ours, bound in bounds if draw < bound), None)
        if split is None:
            return None
        texts = {name: class_names(row[column], classes.get(column)) for name, column in columns.items()}
        cell, image, reason = row[columns["image"]], row[columns["image"]], ""
        if not is_url(cell):
            if number == 1 and not isinstance(cell, dict | bytes | None):
                raise InputError(f"--image {columns['image']}: {NO_PHOTOS}; paths of files go with --table")
            image = f"images/{source.stem}-{source.version[:8]}/{number // 1000}/{sample}.jpg"
            try:
                if not (out / image).is_file():
                    address = isinstance(cell, dict) and cell.get("path") or sample
                    save(photo_bytes(cell, source.home), out / image, address, seen)
            except InputError as error:
                reason = str(error)
        return f"{source.name}, split {theirs}, row {number}", {
            "sample_id": sample, "split": split, "caption": texts["caption"], "image": image,
            "labels": texts.get("label"), "reason": reason}

    return take


def class_names(cell: object, names: list[str] | None) -> object:
    """Return a cell, or the items of a list, with the names of classes in place of their numbers."""
    if isinstance(cell, list):
        return [class_names(item, names) for item in cell]
    return cell if names is None or cell is None else names[cell] if cell >= 0 else None


def photo_bytes(cell: object, home: str) -> bytes:
    """Return the bytes of a photo; InputError: there are none, or its path leads out of the data set."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        return content
    path = cell.get("path") if isinstance(cell, dict) else None
    if not path:
        raise InputError("there is no photo")
    import fsspec
    *within, place = path.split("::")  # of the archive that it is in, or its own
    inside = place.startswith(home) if home.startswith("hf:") else (
        "://" not in place and os.path.realpath(place).startswith(home))
    if not inside or not all(part.startswith(ARCHIVES) for part in within):
        raise InputError(f"its path, {path!r:.80}, leads out of the data set")
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"there is no {path!r:.80}") from None
    except Exception as error:  # no fault of this row: it ends the command
        raise OSError(f"{path:.120}: {first_line(error)}; the same command goes on from here") from None
