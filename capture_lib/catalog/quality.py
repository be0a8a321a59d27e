"""What is odd in a catalog: counted, with examples, and said whatever the catalog was made of."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd

from capture_lib.catalog.labels import spelling
from capture_lib.catalog.table import SPLITS, Catalog, finding
from capture_lib.utils import claim_file, raise_faults, write_atomically

COLUMNS = ["what", "split", "count", "example", "what we do"]
FAULTS = "faults that `capture catalog` found"
OURS = (b"count,example,what we do", FAULTS.encode())  # in the heads of these files
PLACEHOLDER = 3  # samples of differing text with one photo: "no picture yet", or a shop's "removed"


def audit(catalog: Catalog) -> pd.DataFrame:
    """Return the columns `COLUMNS`: what reading the rows changed, and what is odd in them and in their photos."""
    table = catalog.table.assign(photo=catalog.table["sample_id"].map(catalog.contents))
    return pd.DataFrame([*catalog.noted, *table_findings(table)], columns=COLUMNS)


def table_findings(table: pd.DataFrame) -> Iterator[tuple]:
    """Yield a line for each thing that is odd in the rows of a catalog; `photo`, where it is known, are its bytes."""
    parts = {split: table[table["split"] == split] for split in SPLITS}
    for split, part in parts.items():
        labels = part["labels"]
        if split != "train":  # training reads no labels
            action = "never a hit" if split == "gallery" else "not scored"
            yield from finding("samples without labels", split, part["sample_id"][labels.map(len) == 0], action)
        if split == "gallery":
            yield from finding("several labels on a gallery photo", split, labels[labels.map(set).map(len) > 1],
                               "kept: each counts")
        doubled = labels.map(set).map(len) < labels.map(len)
        yield from finding("the same label twice in one photo", split, labels[doubled],
                           "kept: the product is there twice")
        short = [0 < len(caption) < 40 and len(spelling(caption)) < 2 for caption in part["caption"]]
        yield from finding("captions of one character", split, part["caption"][short], "kept")

    # what two splits have in common, as rows of the second one
    for one, other in combinations(parts, 2):
        part = parts[other]
        for column in ("caption", "image", "mirror", "photo"):
            shared = part[column].isin(set(parts[one][column].dropna()) - {""})
            shown = part["sample_id" if column == "photo" else column]
            yield from finding(f"{column} that stands in {one} too", other, shown[shared], "kept: a leak")

    # photos of the same bytes
    same = table[table["photo"].notna() & table["photo"].duplicated(keep=False)]
    for split in SPLITS:
        again = same[same["split"] == split]
        again = again["sample_id"][again["photo"].duplicated()]
        yield from finding("photos that another sample of the split has too", split, again, "kept")
    placeholders = [list(rows["sample_id"]) for _, rows in same.groupby("photo")
                    if len(rows) >= PLACEHOLDER and len({(row.caption, *row.labels) for row in rows.itertuples()}) > 1]
    yield from finding("photos of 3 samples or more that differ in text: placeholders?", "all", placeholders, "kept")

    # labels of one product under differing names, and labels that the gallery lacks
    labels = {split: set(part["labels"].explode().dropna()) for split, part in parts.items()}
    spellings = defaultdict(list)
    for label in sorted(set().union(*labels.values())):
        spellings[spelling(label)].append(label)
    several = [group for group in spellings.values() if len(group) > 1]
    yield from finding("labels that differ by case, width, spaces or punctuation alone", "all", several, "kept apart")
    if labels["gallery"]:
        lacking = sorted((labels["val"] | labels["test"]) - labels["gallery"])
        yield from finding("labels of queries that the gallery lacks", "all", lacking, "kept; no ranking can find them")


def refuse_oddities(catalog: Catalog) -> None:
    """Raise an InputError with a line for each finding and remark; that photos are still to be fetched is none."""
    lines = [f"{row[1]}: {row[2]:,} {row[0]} ({row[3]})" for row in audit(catalog).itertuples(index=False)]
    lines += [remark for remark in catalog.remarks() if "capture download" not in remark]
    raise_faults([f"--strict: {line}" for line in lines])


def write(found: pd.DataFrame | Iterable[str], file: Path) -> None:
    """Write an audit, or faults, as spreadsheets want it, without formulas, and never over a file that is not ours."""
    table = found if isinstance(found, pd.DataFrame) else pd.DataFrame({FAULTS: list(found)})
    claim_file(file, *OURS, b"sample_id,address,reason")  # the last: of a download
    with write_atomically(file) as beside:
        table.replace(r"^(?=[=+\-@\t\r])", "'", regex=True).to_csv(beside, index=False, encoding="utf-8-sig")


def write_quality(catalog: Catalog) -> None:
    """Write what is odd in a catalog to its `quality.csv`, and print it."""
    file = catalog.folder / "quality.csv"
    odd = audit(catalog)
    write(odd, file)
    print(f"odd in it, with examples in {file}:" if len(odd) else "nothing is odd in it")
    for row in odd.itertuples(index=False):
        print(f"{row[1]}: {row[2]:,} {row[0]} ({row[3]}): {row[4]}")
