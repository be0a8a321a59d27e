"""The lists that the authors released, and a short table of what is odd in them.

One sample is one line, `id#####caption#####image_url#####mirror_url#####label1#;#label2…`;
the train list has no labels. The lists are train, dev, test and gallery; our split of dev is `val`.
"""

import html
import re
import unicodedata
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pandas as pd

from capture_lib.catalog.table import Catalog, is_url, merged, read_catalog, read_text, write_catalog
from capture_lib.utils import InputError, raise_faults

LIST_SPLITS = {"train": "train", "dev": "val", "test": "test", "gallery": "gallery"}  # released: ours
LABEL_SEPARATOR = "#;#"
FIELD_SEPARATOR = "#####"
COLUMNS = ["sample_id", "caption", "image", "mirror", "labels"]
INVISIBLE = re.compile(  # control, zero width, direction, private use, and the mark of a failed decoding
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufffd\ue000-\uf8ff]")


def read_list(file: Path) -> pd.DataFrame:
    """Read one released list: the columns `COLUMNS`; the index is the line in the file.

    The published lists have CRLF line ends: a reader that keeps the `\\r` counts 523 labels in test for 392.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line has not 4 or 5 fields.
    """
    rows, faults = {}, []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # a caption may hold \u2028
        fields = line.strip("\r").split(FIELD_SEPARATOR)
        if len(fields) in (4, 5):
            labels = split_labels(fields[4]) if len(fields) == 5 else []
            rows[number] = (*(field.strip() for field in fields[:4]), labels)
        elif line.strip():
            faults.append(f"{file}, line {number}: {len(fields)} fields, expected 5 (id, caption, image, mirror, "
                          f"labels; 4 in the train list) separated by {FIELD_SEPARATOR}")
    raise_faults(faults)
    if not rows:
        raise InputError(f"{file}: the list is empty")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=COLUMNS, dtype=object)


def split_labels(text: str) -> list[str]:
    """Return `a#;#b` as a list; runs of spaces inside a label count as one (the released lists double some)."""
    return [" ".join(label.split()) for label in text.split(LABEL_SEPARATOR) if label.strip()]


def find_lists(folder: Path) -> dict[str, Path]:
    """Return the released lists of a folder by our split, known by train, dev, test or gallery in the name."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the released lists")
    lists: dict[str, Path] = {}
    for file in sorted(Path(folder).glob("*.txt")):
        for theirs, split in LIST_SPLITS.items():
            if f"_{theirs}" in file.name or file.name.startswith(theirs):
                if split in lists:
                    raise InputError(f"{folder}: {lists[split].name} and {file.name} are both {theirs} lists; keep one")
                lists[split] = file
    if not lists:
        raise InputError(f"{folder}: no list here; expected files such as product1m_test_ossurl_v2.txt")
    return lists


def from_lists(folder: Path, out: Path, add: bool = False) -> Catalog:
    """Make the catalog `out` of the released lists in a folder (any of them), or `add` them to it.

    Raises:
        InputError: every line that is wrong; or `out` holds another catalog and `add` is not set.
    """
    parts = []
    for split, file in find_lists(folder).items():
        part = read_list(file)
        part["split"] = split
        part["products"] = {"train": None, "gallery": "single"}.get(split, "multi")
        part["mirror"] = part["mirror"].where(part["mirror"].map(is_url), None)
        parts.append(part.rename(lambda number, file=file: f"{file}, line {number}"))
    rows = merged(out, pd.concat(parts), add)
    if rows is not None:
        write_catalog(rows, out)
    return read_catalog(out)


# ---- what is odd in the lists

CHECKS = (  # what, of which cell, the test, what we do; `end` is a line's last field as it stands
    ("CRLF line ends", "end", lambda end: end.endswith("\r"), "stripped"),
    ("labels with runs of spaces", "end", re.compile(r"\S\s\s+\S").search, "one space"),
    ("empty labels, or a separator too many", "end", re.compile(r"^#;#|#;#\s*(#;#|$)").search, "left out"),
    ("no caption", "caption", lambda text: not text, "kept; the catalog's remarks count them"),
    ("control or invisible characters in the caption", "caption", INVISIBLE.search, "kept as published"),
    ("HTML entities in the caption", "caption", lambda text: html.unescape(text) != text, "kept as published"),
    ("no mirror address", "mirror", lambda address: not is_url(address), "one address to try"),
    ("the same label twice in one photo", "labels", lambda labels: len(set(labels)) < len(labels),
     "kept: the product is there twice"),
    ("no labels", "labels", lambda labels: not labels, "kept; it cannot be scored"),
)


def quality(folder: Path, catalog: Catalog | None = None) -> pd.DataFrame:
    """Count what is odd in the released lists of a folder: what, list, count, example, what we do.

    Args:
        catalog: its other splits take part in what is compared across lists (leaks, spellings).
    """
    files = find_lists(folder)
    parts: dict[str, pd.DataFrame] = {}
    rows = []

    def note(what: str, name: str, cells: pd.Series, action: str) -> None:
        if len(cells):
            place = f"line {cells.index[0]}: " if name in parts else ""
            example = f"{place}{cells.iloc[0]!r:.70}"  # quoted, so that a spreadsheet takes it for no formula
            rows.append((what, name, len(cells), example, action))

    # each list by itself
    for name, split in LIST_SPLITS.items():
        if split in files:
            part = parts[name] = read_list(files[split])
            lines = pd.Series(read_text(files[split]).split("\n"))
            part["end"] = lines.str.split(FIELD_SEPARATOR).str[-1].set_axis(lines.index + 1)
            for what, column, is_odd, action in CHECKS:
                if (what, name) != ("no labels", "train"):
                    note(what, name, part[column][part[column].map(is_odd).map(bool)], action)
            for column in ("caption", "image"):
                cells = part[column][part[column] != ""]
                note(f"the same {column} again", name, cells[cells.duplicated()], "kept")
        elif catalog is not None and not catalog.split(split).empty:
            parts[name] = catalog.split(split)

    # what two lists have in common, as rows of the second one
    for one, other in combinations(parts, 2):
        for column in ("caption", "image"):
            cells = parts[other][column]
            shared = cells[cells.isin(set(parts[one][column]) - {""})]
            note(f"{column} that stands in {one} too", other, shared, "kept: a leak")
    if {"dev", "test"} <= parts.keys():
        dev, test = (set(map(tuple, parts[name]["labels"])) - {()} for name in ("dev", "test"))
        what = f"label rows of dev ({len(dev):,}; as sets {len(set(map(frozenset, dev))):,}) that recur in test"
        note(what, "dev, test", joined(sorted(dev & test), " + "), "kept; val holds no new mixture")

    # labels of one product under differing names, and labels that the gallery lacks
    labels = {name: set(part["labels"].explode().dropna()) for name, part in parts.items()}
    spellings = defaultdict(list)  # by the text without case, width and spaces
    everywhere = sorted(set().union(*labels.values()))
    for label in everywhere:
        spellings["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    groups = joined([group for group in spellings.values() if len(group) > 1], " | ")
    note("labels that differ by case, width or spaces alone", "all lists", groups, "kept apart")
    brands = combinations(sorted({label.split()[0] for label in everywhere}), 2)  # the first word
    pairs = [pair for pair in brands if differ_in_one(*pair)]
    note("brands that may be one (a person must judge)", "all lists", joined(pairs, " | "), "kept apart")
    if labels.get("gallery"):
        lacking = (labels.get("dev", set()) | labels.get("test", set())) - labels["gallery"]
        note("labels of queries that the gallery lacks", "all lists", pd.Series(sorted(lacking)),
             "kept; no ranking can find them")
    return pd.DataFrame(rows, columns=["what", "list", "count", "example", "what we do"])


def differ_in_one(one: str, other: str) -> bool:
    """Return True for two names of three or more characters that differ in a single one."""
    return len(one) == len(other) > 2 and sum(a != b for a, b in zip(one, other, strict=True)) == 1


def joined(groups: list, separator: str) -> pd.Series:
    """Return texts that belong together, each group as one text."""
    return pd.Series([separator.join(group) for group in groups], dtype=object)
