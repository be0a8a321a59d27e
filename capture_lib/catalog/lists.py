"""The lists that the authors released: reading them, and a short table of what is odd in them.

One sample is one line, `id#####caption#####image_url#####mirror_url#####label1#;#label2…`; the train list has no
labels. The lists are called train, dev, test and gallery; our split of dev is `val`.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd

from capture_lib.catalog.table import Catalog, is_url, merged, read_catalog, read_text, write_catalog
from capture_lib.utils import InputError, raise_faults

LIST_SPLITS = {"train": "train", "dev": "val", "test": "test", "gallery": "gallery"}  # released name: ours
LABEL_SEPARATOR = "#;#"
FIELD_SEPARATOR = "#####"
COLUMNS = ["sample_id", "caption", "image", "mirror", "labels"]
ODD_CHARACTERS = re.compile(  # control, zero width, direction, private use, and the mark of a failed decoding
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufffd\ue000-\uf8ff]")


def read_list(file: Path) -> pd.DataFrame:
    """Reads one released list: columns sample_id, caption, image, mirror, labels; the index is the line in the file.

    The published lists have CRLF line ends: a reader that keeps the `\\r` counts 523 labels in test for 392.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line has not 4 or 5 fields.
    """
    rows, faults = {}, []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # a caption may hold \u2028
        fields = line.strip("\r").split(FIELD_SEPARATOR)
        if not line.strip():
            continue
        if len(fields) not in (4, 5):
            faults.append(f"{file}, line {number}: {len(fields)} fields, expected 5 "
                          f"(id, caption, image, mirror, labels; 4 in the train list) separated by {FIELD_SEPARATOR}")
            continue
        labels = split_labels(fields[4]) if len(fields) == 5 else []
        rows[number] = (*(field.strip() for field in fields[:4]), labels)
    raise_faults(faults)
    if not rows:
        raise InputError(f"{file}: the list is empty")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=COLUMNS, dtype=object)


def split_labels(text: str) -> list[str]:
    """`a#;#b` as a list; runs of spaces inside a label count as one (the released lists double some)."""
    return [" ".join(label.split()) for label in text.split(LABEL_SEPARATOR) if label.strip()]


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


def from_lists(folder: Path, out: Path, add: bool = False) -> Catalog:
    """Makes a catalog of the released lists that a folder holds (any subset of train, dev, test, gallery).

    Args:
        folder: holds the lists.
        out: the catalog's folder.
        add: the lists join the catalog that is there, after its rows.

    Raises:
        InputError: every line that is wrong; or `out` holds another catalog and `add` is not set.
    """
    parts, places = [], []
    for split, file in find_lists(folder).items():
        part = read_list(file)
        places += [f"{file}, line {number}" for number in part.index]
        part["split"], part["products"] = split, {"train": None, "gallery": "single"}.get(split, "multi")
        part["mirror"] = [address if is_url(address) else None for address in part["mirror"]]
        parts.append(part)
    whole = merged(out, pd.concat(parts, ignore_index=True), places, add)
    if whole is not None:
        write_catalog(whole, out)
    return read_catalog(out)


# ---------------------------------------------------------------------------------------------- quality

Finding = tuple[str, str, int, str, str]  # the columns of the quality table


def quality(folder: Path, catalog: Catalog | None = None) -> pd.DataFrame:
    """What is odd in the released lists of a folder, a row each: what, list, count, example, what we do.

    Args:
        folder: holds the lists.
        catalog: its other splits take part in what is compared across lists (leaks, spellings).
    """
    files = {theirs: file for theirs, ours in LIST_SPLITS.items() for split, file in find_lists(folder).items()
             if split == ours}
    parts = {}
    for name, ours in LIST_SPLITS.items():
        if name in files:
            parts[name] = read_list(files[name])
        elif catalog is not None and not catalog.split(ours).empty:
            parts[name] = catalog.split(ours)
    found = [finding for name, file in files.items()
             for finding in [*odd_lines(name, file), *odd_cells(name, parts[name])]]
    found += [*shared_between(parts), *odd_labels(parts)]
    return pd.DataFrame([row for row in found if row[2]], columns=["what", "list", "count", "example", "what we do"])


def odd_lines(name: str, file: Path) -> Iterator[Finding]:
    """What a list's text has, before it is read."""
    lines = list(enumerate(read_text(file).split("\n"), start=1))
    last = [(n, line.strip("\r").split(FIELD_SEPARATOR)[4]) for n, line in lines if line.count(FIELD_SEPARATOR) == 4]
    apart = [(n, label) for n, labels in last for label in labels.split(LABEL_SEPARATOR)]
    yield finding("CRLF line ends", name, [(n, line[-9:]) for n, line in lines if line.endswith("\r")], "stripped")
    yield finding("blank lines", name, [(n, line) for n, line in lines[:-1] if not line.strip()], "skipped")
    yield finding("labels with runs of spaces", name, [(n, label) for n, label in apart if re.search(r"\s\s", label)],
                  "one space")
    yield finding("empty labels, or a separator too many", name,
                  [(n, labels) for n, labels in last if labels.strip() and not
                   all(label.strip() for label in labels.split(LABEL_SEPARATOR))], "left out")


def odd_cells(name: str, part: pd.DataFrame) -> Iterator[Finding]:
    """What a list's cells have, each list by itself."""
    checks: list[tuple[str, str, Callable, str]] = [
        ("no caption", "caption", lambda text: not text, "kept; the catalog's remarks count them"),
        ("control or invisible characters in the caption", "caption", ODD_CHARACTERS.search, "kept as published"),
        ("HTML entities in the caption", "caption", lambda text: html.unescape(text) != text, "kept as published"),
        ("no mirror address", "mirror", lambda address: not is_url(address), "one address to try"),
        ("the same label twice in one photo", "labels", lambda labels: len(set(labels)) < len(labels),
         "kept: the product is there twice")]
    if name != "train":
        checks.append(("no labels", "labels", lambda labels: not labels, "kept; it cannot be scored"))
    for what, column, odd, done in checks:
        yield finding(what, name, [(n, cell) for n, cell in part[column].items() if odd(cell)], done)
    for column, done in (("sample_id", "refused: make the ids unique"), ("caption", "kept"), ("image", "kept")):
        again = part[column][part[column].duplicated() & (part[column] != "")]
        yield finding(f"the same {column} again", name, list(again.items()), done)


def shared_between(parts: dict[str, pd.DataFrame]) -> Iterator[Finding]:
    """What two lists have in common: leaks, counted as rows of the second one."""
    for one, other in combinations(parts, 2):
        for column, done in (("sample_id", "refused: make the ids unique"), ("caption", "kept: a leak"),
                             ("image", "kept: a leak")):
            cells = parts[other][column]
            yield finding(f"{column} that stands in {one} too", other,
                          list(cells[cells.isin(set(parts[one][column]) - {""})].items()), done)
    if {"dev", "test"} <= parts.keys():
        dev, test = ({tuple(row) for row in parts[name]["labels"] if row} for name in ("dev", "test"))
        sets, recur = len(set(map(frozenset, dev))), sorted(dev & test)
        yield finding(f"label rows of dev ({len(dev):,}; as sets {sets:,}) that recur in test", "dev, test",
                      [(None, " + ".join(row)) for row in recur], "kept; val holds no new mixture")


def odd_labels(parts: dict[str, pd.DataFrame]) -> Iterator[Finding]:
    """Labels and brands under differing names, over all lists together; and labels that the gallery lacks."""
    labels = {name: {label for row in part["labels"] for label in row} for name, part in parts.items()}
    everywhere, told = sorted(set().union(*labels.values())), ", ".join(name for name in parts if labels[name])
    spellings: dict[str, list[str]] = {}
    for label in everywhere:
        spellings.setdefault(folded(label), []).append(label)
    yield finding("labels that differ by case, width or spaces alone", told,
                  [(None, " | ".join(group)) for group in spellings.values() if len(group) > 1], "kept apart")
    pairs = combinations(sorted({label.split()[0] for label in everywhere}), 2)  # the brand is the first word
    yield finding("brands that may be one (a person must judge)", told,
                  [(None, f"{one} | {other}") for one, other in pairs if alike(folded(one), folded(other))],
                  "kept apart")
    if labels.get("gallery"):
        lacking = (labels.get("dev", set()) | labels.get("test", set())) - labels["gallery"]
        yield finding("labels of queries that the gallery lacks", "gallery",
                      [(None, label) for label in sorted(lacking)], "kept; no ranking can find them")


def folded(text: str) -> str:
    """A text without the differences of case, of full and half width, and of spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def alike(one: str, other: str) -> bool:
    """True where one name is inside the other, or names of three or more characters differ in a single one."""
    short, long = sorted((one, other), key=len)
    differing = sum(a != b for a, b in zip(one, other, strict=False))
    return len(short) > 1 and short in long or len(one) == len(other) > 2 and differing == 1


def finding(what: str, name: str, hits: list[tuple[int | None, object]], done: str) -> Finding:
    """A row of the quality table; the first hit is the example, quoted: no formula for a spreadsheet."""
    line, example = hits[0] if hits else (None, "")
    return what, name, len(hits), ("" if line is None else f"line {line}: ") + f"{example!r:.70}", done
