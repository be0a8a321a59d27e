"""What is odd in a catalog: counted, with examples, and said whatever the catalog was made of."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from capture_lib.catalog.labels import spelling
from capture_lib.catalog.photos import FORMATS
from capture_lib.catalog.table import SPLITS, Catalog, finding
from capture_lib.utils import claim_file, raise_faults, write_atomically

COLUMNS = ["what", "split", "count", "example", "what we do"]
FAULTS = "faults that `capture catalog` found"
OURS = (b"\xef\xbb\xbf" + ",".join(COLUMNS).encode(), b"\xef\xbb\xbf" + FAULTS.encode())  # how these files begin
MAX_OVERHANG = 2  # pixels that rounding may push a box over the edge
JOINED = re.compile("[,;|，；、]")
CUT_NUMBER = re.compile(r"-?\d(\.\d+)?e\+\d+", re.I)  # 6.92165E+12, as spreadsheets and floats leave it
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # what a terminal obeys, but tabs and line ends
PLACEHOLDER = 3  # samples of differing text with one photo: "no picture yet", or a shop's "removed"


def audit(catalog: Catalog) -> pd.DataFrame:
    """Return the columns `COLUMNS`: what reading the rows changed, and what is odd in them and in their photos."""
    table = catalog.table.assign(photo=catalog.table["sample_id"].map(catalog.contents))
    outside = []
    for row in catalog.boxed(*SPLITS).itertuples():
        size = photo_size(catalog.photos[row.sample_id])
        outside += [(row.sample_id, box) for box in row.boxes if size and strays(box, size)]
    strayed = finding("boxes that are not in their photo", "all", outside, "kept: not in pixels of the upright photo?")
    return pd.DataFrame([*catalog.noted, *table_findings(table), *strayed], columns=COLUMNS)


def strays(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Return True where a box is over the edge of a photo of this width and height, or has no pixel in it."""
    inside = np.clip(box, 0, [*size, *size])
    return np.abs(inside - box).max() > MAX_OVERHANG or (inside[2:] - inside[:2]).min() < 1


def printable(text: str) -> str:
    """Return a text with blanks in the place of control codes and of what else is not shown."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def photo_size(photo: Path) -> tuple[int, int] | None:
    """Return width and height of a photo, upright, without decoding it; None where it cannot be read."""
    with suppress(Exception), Image.open(photo, formats=FORMATS) as opened:
        told = "exif" in opened.info or opened.format == "TIFF"  # Pillow would decode a PNG to look for it
        turned = told and opened.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return opened.size[::-1] if turned else opened.size


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
            theirs = parts[one][["image", "mirror"] if column in ("image", "mirror") else [column]]
            shared = part[column].isin(set(theirs.stack().dropna()) - {""})
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

    # boxes, and texts that were damaged before they came here
    boxed = table[table["boxes"].map(len) > 0]
    small = [boxes for boxes in boxed["boxes"] if max(map(max, boxes)) <= 1]
    yield from finding("photos whose boxes are within 0 to 1", "all", small, "kept: fractions? boxes are in pixels")
    strange = [sorted(set(row.box_labels) - set(row.labels)) for row in boxed.itertuples() if row.labels]
    yield from finding("photos with labels of boxes that are none of theirs", "all", [*filter(None, strange)], "kept")
    texts = [text for row in table.itertuples() for text in (row.caption, *row.labels) if CONTROL.search(text)]
    yield from finding("texts with control codes", "all", texts, "kept: a terminal may obey them")
    named = [name for row in table.itertuples() for name in (row.sample_id, *row.labels) if CUT_NUMBER.fullmatch(name)]
    yield from finding("ids and labels in scientific notation", "all", named,
                       "kept, digits are lost: format the column as text")

    # labels of one product under differing names, and labels that the gallery lacks
    labels = {split: set(part["labels"].explode().dropna()) for split, part in parts.items()}
    known = set().union(*labels.values())
    joined = [label for label in sorted(known)
              if JOINED.search(label) and known.intersection(map(str.strip, JOINED.split(label)))]
    yield from finding("labels that are others joined by , ; or |", "all", joined, "kept as one; join labels by #;#")
    spellings = defaultdict(list)
    for label in sorted(known):
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


def add_faults(faults: Iterable[str], file: Path) -> None:
    """Add the rows that were left out to those that earlier commands wrote to `file`; write nothing without any."""
    old = []
    with suppress(ValueError):  # what was damaged is written anew
        old = pd.read_csv(file).iloc[:, 0] if file.is_file() else []
    if faults:
        write(dict.fromkeys([*old, *faults]), file)


def write_quality(catalog: Catalog) -> None:
    """Write what is odd in a catalog to its `quality.csv`, and print it."""
    file = catalog.folder / "quality.csv"
    odd = audit(catalog)
    write(odd, file)
    print(f"odd in it, with examples in {file}:" if len(odd) else "nothing is odd in it")
    for row in odd.itertuples(index=False):
        print(f"{row[1]}: {row[2]:,} {row[0]} ({row[3]}): {row[4]}")
