"""The lists that the authors released: `id#####caption#####image_url#####mirror_url#####label1#;#label2…` a line."""

import re
from pathlib import Path

import pandas as pd

from capture_lib.catalog.labels import labels_of
from capture_lib.catalog.quality import refuse_oddities
from capture_lib.catalog.table import Catalog, checked, finding, is_url, merged, write_merged
from capture_lib.utils import InputError, raise_faults, read_text

LIST_SPLITS = {"train": "train", "dev": "val", "test": "test", "gallery": "gallery"}  # released: ours
FIELD_SEPARATOR = "#####"
COLUMNS = ["sample_id", "caption", "image", "mirror", "labels"]


def read_list(file: Path, split: str = "", noted: list[tuple] | None = None) -> pd.DataFrame:
    """Read one released list: the columns `COLUMNS`; the index names the lines. `noted` gets what is odd in them."""
    rows: dict[str, list] = {}
    faults: list[str] = []
    missing: list[str] = []
    ends = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # a caption may hold \u2028
        place = f"{file}, line {number}"
        fields = line.strip("\r").split(FIELD_SEPARATOR)  # with its \r kept, test would have 523 labels for 392
        if len(fields) in (4, 5):
            rows[place] = [*map(str.strip, fields[:4]), labels_of("".join(fields[4:]), missing)]
            ends.append(line.rpartition(FIELD_SEPARATOR)[2])
        elif line.strip():
            faults.append(f"{place}: {len(fields)} fields, expected 5 (id, caption, image, mirror, labels; 4 in the "
                          f"train list) separated by {FIELD_SEPARATOR}")
    raise_faults(faults)
    if not rows:
        raise InputError(f"{file}: the list is empty")
    if noted is not None:
        noted += finding("CRLF line ends", split, [end for end in ends if end.endswith("\r")], "stripped")
        spaced = [end for end in ends if re.search(r"\S\s\s+\S", end)]
        noted += finding("labels with runs of spaces", split, spaced, "one space")
        noted += finding("labels that mean 'missing'", split, missing, "taken as no label")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=COLUMNS, dtype=object)


def find_lists(folder: Path) -> dict[str, Path]:
    """Return the released lists of a folder by our split, known by train, dev, test or gallery in the name."""
    lists: dict[str, Path] = {}
    for file in sorted(Path(folder).glob("*.txt")):
        for theirs, split in LIST_SPLITS.items():
            if f"_{theirs}" in file.name or file.name.startswith(theirs):
                if split in lists:
                    raise InputError(f"{folder}: {lists[split].name} and {file.name} are both {theirs} lists; keep one")
                lists[split] = file
    if not lists:
        raise InputError(f"{folder}: no such folder, or no list in it, such as product1m_test_ossurl_v2.txt")
    return lists


def from_lists(folder: Path, out: Path, add: bool = False, strict: bool = False) -> Catalog:
    """Make the catalog `out` of the released lists in a folder, or `add` them; `strict` refuses what is odd."""
    noted: list[tuple] = []
    table = checked(read_lists(folder, noted), noted)
    made = Catalog(out, merged(out, table, add, noted).reset_index(drop=True), tuple(noted))
    if strict:
        refuse_oddities(made)
    return Catalog(out, write_merged(out, table, add), made.noted)


def read_lists(folder: Path, noted: list[tuple]) -> pd.DataFrame:
    """Return the samples of all lists in a folder; the index names their lines. `noted` gets what is odd in them."""
    parts = []
    for split, file in find_lists(folder).items():
        part = read_list(file, split, noted)
        part["split"] = split
        part["products"] = {"train": None, "gallery": "single"}.get(split, "multi")
        part.loc[part["labels"].map(set).map(len) > 1, "products"] = "multi"  # bundles in the gallery
        part["mirror"] = part["mirror"].where(part["mirror"].map(is_url), None)
        parts.append(part)
    return pd.concat(parts)

