"""The lists that the authors released, and a short table of what is odd in them.

One sample is one line, `id#####caption#####image_url#####mirror_url#####label1#;#label2…`;
the train list has no labels. The lists are train, dev, test and gallery; our split of dev is `val`.
"""

import unicodedata
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pandas as pd

from capture_lib.catalog.table import Catalog, is_url, merged, read_catalog, write_catalog
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
    return [" ".join(label.split()) for label in text.split("#;#") if label.strip()]


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


def from_lists(folder: Path, out: Path, add: bool = False) -> Catalog:
    """Make the catalog `out` of the released lists in a folder (any of them), or `add` them to it."""
    parts = []
    for split, file in find_lists(folder).items():
        part = read_list(file)
        part["split"] = split
        part["products"] = {"train": None, "gallery": "single"}.get(split, "multi")
        part["mirror"] = part["mirror"].where(part["mirror"].map(is_url), None)
        part.index = [f"{file}, line {number}" for number in part.index]
        parts.append(part)
    write_catalog(merged(out, pd.concat(parts), add), out)
    return read_catalog(out)


def quality(folder: Path) -> pd.DataFrame:
    """Count what is odd in the released lists of a folder: what, list, count, example, what we do."""
    files = find_lists(folder)
    parts = {name: read_list(files[split]) for name, split in LIST_SPLITS.items() if split in files}
    rows = []

    def note(what: str, name: str, cells: pd.Series, action: str) -> None:
        if len(cells):
            example = f"{cells.iloc[0]!r:.70}"  # quoted, so that a spreadsheet takes it for no formula
            rows.append((what, name, len(cells), example, action))

    # each list by itself
    for name, part in parts.items():
        lines = pd.Series(read_text(files[LIST_SPLITS[name]]).split("\n"))[part.index - 1]
        ends = lines.str.split(FIELD_SEPARATOR).str[-1]
        note("CRLF line ends", name, ends[ends.str.endswith("\r")], "stripped")
        note("labels with runs of spaces", name, ends[ends.str.contains(r"\S\s\s+\S")], "one space")
        doubled = part["labels"].map(lambda labels: len(set(labels)) < len(labels))
        note("the same label twice in one photo", name, part["labels"][doubled], "kept: the product is there twice")

    # what two lists have in common, as rows of the second one
    for one, other in combinations(parts, 2):
        for column in ("caption", "image"):
            cells = parts[other][column]
            shared = cells[cells.isin(set(parts[one][column]) - {""})]
            note(f"{column} that stands in {one} too", other, shared, "kept: a leak")

    # labels of one product under differing names, and labels that the gallery lacks
    labels = {name: set(part["labels"].explode().dropna()) for name, part in parts.items()}
    spellings = defaultdict(list)  # by the text without case, width and spaces
    for label in sorted(set().union(*labels.values())):
        spellings["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    several = pd.Series([group for group in spellings.values() if len(group) > 1])
    note("labels that differ by case, width or spaces alone", "all lists", several, "kept apart")
    if labels.get("gallery"):
        lacking = pd.Series(sorted((labels.get("dev", set()) | labels.get("test", set())) - labels["gallery"]))
        note("labels of queries that the gallery lacks", "all lists", lacking, "kept; no ranking can find them")
    return pd.DataFrame(rows, columns=["what", "list", "count", "example", "what we do"])
