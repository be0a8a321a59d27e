"""The lists that the authors released, and what is odd in their lines.

One sample is one line, `id#####caption#####image_url#####mirror_url#####label1#;#label2…`;
the train list has no labels. The lists are train, dev, test and gallery; our split of dev is `val`.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from capture_lib.catalog.labels import split_labels
from capture_lib.catalog.quality import COLUMNS as QUALITY
from capture_lib.catalog.quality import refuse_oddities, table_findings
from capture_lib.catalog.table import Catalog, finding, is_url, merged, read_catalog, write_catalog
from capture_lib.utils import InputError, raise_faults, read_text

LIST_SPLITS = {"train": "train", "dev": "val", "test": "test", "gallery": "gallery"}  # released: ours
FIELD_SEPARATOR = "#####"
COLUMNS = ["sample_id", "caption", "image", "mirror", "labels"]


def read_list(file: Path) -> pd.DataFrame:
    """Read one released list: the columns `COLUMNS`; the index is the line in the file."""
    rows = {}
    faults = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # a caption may hold \u2028
        fields = line.strip("\r").split(FIELD_SEPARATOR)  # with its \r kept, test would have 523 labels for 392
        if len(fields) in (4, 5):
            labels = split_labels(fields[4], []) if len(fields) == 5 else []
            rows[number] = (*(field.strip() for field in fields[:4]), labels)
        elif line.strip():
            faults.append(f"{file}, line {number}: {len(fields)} fields, expected 5 (id, caption, image, mirror, "
                          f"labels; 4 in the train list) separated by {FIELD_SEPARATOR}")
    raise_faults(faults)
    if not rows:
        raise InputError(f"{file}: the list is empty")
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
    noted = line_findings(folder)
    made = Catalog(out, merged(out, read_lists(folder), add, noted).reset_index(drop=True), tuple(noted))
    if strict:
        refuse_oddities(made)
    write_catalog(made.table, out)
    return replace(read_catalog(out), noted=tuple(noted))


def read_lists(folder: Path) -> pd.DataFrame:
    """Return the samples of all lists in a folder; the index names their lines."""
    parts = []
    for split, file in find_lists(folder).items():
        part = read_list(file)
        part["split"] = split
        part["products"] = {"train": None, "gallery": "single"}.get(split, "multi")
        part.loc[part["labels"].map(set).map(len) > 1, "products"] = "multi"  # bundles in the gallery
        part["mirror"] = part["mirror"].where(part["mirror"].map(is_url), None)
        part.index = [f"{file}, line {number}" for number in part.index]
        parts.append(part)
    return pd.concat(parts)


def line_findings(folder: Path) -> list[tuple]:
    """Return lines of quality.csv: what is odd in the lines of released lists, and is mended."""
    rows = []
    for split, file in find_lists(folder).items():
        numbers = read_list(file).index - 1
        lines = pd.Series(read_text(file).split("\n"), dtype=object)[numbers]
        fields = [line.split(FIELD_SEPARATOR) for line in lines]
        ends = pd.Series([line[-1] for line in fields], dtype=object)
        missing: list[str] = []
        for line in fields:
            split_labels("".join(line[4:]), missing)
        rows += finding("CRLF line ends", split, ends[ends.str.endswith("\r")], "stripped")
        rows += finding("labels with runs of spaces", split, ends[ends.str.contains(r"\S\s\s+\S")], "one space")
        rows += finding("labels that mean 'missing'", split, missing, "taken as no label")
    return rows


def quality(folder: Path) -> pd.DataFrame:
    """Count what is odd in the released lists of a folder: what, split, count, example, what we do."""
    return pd.DataFrame([*line_findings(folder), *table_findings(read_lists(folder))], columns=QUALITY)
