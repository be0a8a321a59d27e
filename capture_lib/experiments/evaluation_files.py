"""Rankings on disk: in the released format, with the score of every hit, and `capture evaluate`."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.catalog.labels import is_missing
from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.catalog.table import checked
from capture_lib.retrieval.metrics import CUTOFFS, NO_ITEM, per_query, summarise
from capture_lib.retrieval.ranking import Ranking
from capture_lib.retrieval.statistics import RESAMPLES
from capture_lib.utils import InputError, raise_faults, read_text, write_atomically

LAYOUT = "query_id,gallery_id,gallery_id,… a line, best first"
OTHER_LAYOUTS = {  # by what a line of theirs holds
    "JSON or lists in brackets": r"(^|,)\s*[\[{(]",
    "ids in quotes": "[\"']",
    "pairs of an id and a score": r":[-+]?\.?\d",
    "decimal numbers among ids": r",\s*[-+]?\d*\.\d+(e[-+]?\d+)?\s*(,|$)",
    "ids between blanks, tabs, bars or semicolons": r"[^\s,]\s*[\s;|]\s*[^\s,]",
}
FILLERS = {"", "-1", "-1.0"}  # at the end of a ranking: of spreadsheets, and of faiss where it finds no more
# an id without folder, leading zeros, and the ending of a photo or of a float
bare = partial(re.compile(r"^(.*[/\\])?0*|\.(jpe?g|png|webp|gif|bmp|0)$", re.IGNORECASE).sub, "")


def read_rankings(file: Path, queries: Collection[str], gallery: Collection[str]) -> dict[str, list[str]]:
    """Read a ranking a line; InputError: faulty lines, another layout, ids that the lists lack or write otherwise."""
    rankings: dict[str, list[str]] = {}
    faults = []
    strange_queries: dict[str, str] = {}  # with the place of each
    strange_items: dict[str, str] = {}
    again = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        query, *items = map(str.strip, line.split(","))
        while items and items[-1] not in gallery and (items[-1] in FILLERS or is_missing(items[-1])):
            items.pop()

        # what is unknown may be of another layout
        unknown = [item for item in items if item not in gallery]
        for name, pattern in OTHER_LAYOUTS.items() if unknown or query not in queries else ():
            if re.search(pattern, line.strip()[:1000], re.IGNORECASE):
                raise InputError(f"{place}: {line.strip()!r:.60} looks like {name}; expected {LAYOUT}")

        # one fault a line
        if not query or not FILLERS.isdisjoint(unknown):
            faults.append(f"{place}: an id is missing (empty or -1) before others; expected {LAYOUT}")
        elif query in rankings:
            again.append(f"{place}: query {query!r:.80} has a line already; keep one of them, with all its hits")
        elif query not in queries:
            strange_queries[query] = place
        elif len(set(items)) < len(items):
            item, count = Counter(items).most_common(1)[0]
            faults.append(f"{place}: gallery id {item!r:.80} stands {count} times; keep its first place only")
        else:
            for item in unknown:
                strange_items.setdefault(item, place)
        rankings[query] = items

    # look at all lines, and at all unknown ids, together; a few of the gallery are misses
    if len(again) >= max(2, len(rankings)):
        raise InputError(f"{again[0]}; {len(again):,} such lines look like a row a hit; expected {LAYOUT}")
    faults += again
    if not rankings:
        faults.append(f"{file}: holds no ranking; expected {LAYOUT}")
    faults += form_faults("query", strange_queries, len(rankings), queries, 0)
    faults += form_faults("gallery", strange_items, len(set(chain(*rankings.values()))), gallery, 0.5)
    raise_faults(faults)
    refuse_columns(file, rankings, gallery)
    return rankings


def form_faults(kind: str, unknown: dict[str, str], count: int, known: Collection[str], most: float) -> list[str]:
    """Return a fault where unknown ids, with places, are known ones written otherwise, or too many of `count` ids."""
    written = {bare(item): item for item in known} if unknown else {}
    alike = [item for item in unknown if bare(item) in written]
    if not alike and len(unknown) <= most * count:
        return []
    item = (alike or list(unknown))[0]
    example = written.get(bare(item), next(iter(known)))
    return [f"{unknown[item]}: {kind} id {item!r:.80} is not in the lists, as {len(unknown):,} of {count:,} are not; "
            f"write ids as the lists do, such as {example!r:.80}, or remove the line, if it is a header"]


def refuse_columns(file: Path, rankings: dict[str, list[str]], gallery: Collection[str]) -> None:
    """Raise InputError where nearly all lines have an unknown id at one place, as ranks, scores and labels are."""
    filled = [items for items in rankings.values() if items]
    total = sum(item not in gallery for item in chain(*filled))
    enough = max(2, len(filled) / 2)
    for end, step in (("", 1), (" from the end", -1)):
        odd = {}
        for place, column in enumerate(zip_longest(*(items[::step] for items in filled)), start=1):
            there = [item for item in column if item is not None]
            unknown = [item for item in there if item not in gallery]
            if len(there) >= enough and len(unknown) >= 0.9 * len(there):
                odd[place] = unknown
        # of a few lines, some misses meet at one place by chance
        if odd and (len(filled) >= 20 or 2 * sum(map(len, odd.values())) > total):
            place, unknown = next(iter(odd.items()))
            raise InputError(f"{file}: hit {place}{end} is not in the gallery in {len(unknown):,} of {len(filled):,} "
                             f"lines ({unknown[0]!r:.40}): a rank, a score, a label or the query? expected {LAYOUT}")


def write_rankings(file: Path, queries: Sequence[str], gallery: Sequence[str], rankings: list[Ranking]) -> None:
    """Write `query_id,gallery_id,…` a line as text, and a row a hit, with its rank from 1, as parquet."""
    names = np.array(gallery, object)
    lines = [",".join((query, *names[found.rows])) + "\n" for query, found in zip(queries, rankings, strict=True)]
    columns = {"query_id": [], "rank": [], "score": [], "gallery_id": [], "instance": []}
    for query, found in zip(queries, rankings, strict=True):
        unknown = np.full(len(found.rows), np.nan)
        columns["query_id"].append(np.full(len(found.rows), query, object))
        columns["rank"].append(np.arange(1, len(found.rows) + 1))
        columns["score"].append(unknown if found.scores is None else found.scores)
        columns["gallery_id"].append(names[found.rows])
        columns["instance"].append(unknown if found.instances is None else found.instances)
    table = pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    with write_atomically(file.with_suffix(".txt")) as beside:
        beside.write_text("".join(lines), encoding="utf-8")
    with write_atomically(file.with_suffix(".parquet")) as beside:
        table.to_parquet(beside)


def evaluate_lists(lists: Path, file: Path, missing: str = "zero", resamples: int = RESAMPLES) -> dict:
    """Score a rankings file against the released dev and test lists; "warnings" say what else changes the figures.

    Queries without labels are not scored; `missing`: those without a ranking count as "zero", or "leave-out".
    """
    # read the lists
    files = find_lists(lists)
    parts = {split: read_list(files[split]) for split in ("gallery", "test", "val") if split in files}
    gallery = parts.pop("gallery", None)
    if gallery is None or not parts:
        raise InputError(f"{lists}: needs the gallery list and the dev or test list to score a ranking")
    queries = pd.concat(parts.values())
    checked(pd.concat([gallery, queries])[["sample_id"]].assign(split="test", image="-"))  # ids alone

    # read the rankings, and add those that are missing
    labels = queries.set_index("sample_id")["labels"].to_dict()
    row = {item: row for row, item in enumerate(gallery["sample_id"])}
    rankings = read_rankings(file, labels, row)
    empty = sum(not items for items in rankings.values())
    notes = [f"{empty:,} of {len(rankings):,} rankings are empty; each counts as 0"] if empty else []
    for split, part in parts.items():
        absent = [query for query in part["sample_id"] if query not in rankings]
        zero = missing == "zero" and len(absent) < len(part)
        if absent:
            notes.append(f"{files[split].name}: {len(absent):,} queries have no ranking and "
                         + ("count as 0 (as --missing zero says)" if zero else "are left out"))
        rankings |= dict.fromkeys(absent if zero else (), [])

    # score the queries with labels
    found = {query: items for query, items in rankings.items() if labels[query]}
    known = set(chain(*gallery["labels"]))
    if not any(found.values()) or not known:
        raise InputError(f"{lists}: no query of {file} with a hit, or no gallery photo, has a label; nothing to score")
    asked = [labels[query] for query in found]
    rows = [np.array([row.get(item, NO_ITEM) for item in items], int) for items in found.values()]
    figures = summarise(per_query(rows, asked, list(gallery["labels"])), resamples)

    # say what lowers the figures
    told = {
        "queries have a label that no gallery item has: released counts them as 0, standard counts that label as never "
        "found": sum(not known.issuperset(own) for own in asked),
        "rankings hold ids that the gallery lacks: each is a miss, and released counts the recall of such a query as 0":
        sum(NO_ITEM in own for own in rows),
        f"rankings hold more than {max(CUTOFFS)} ids: the rest is not looked at":
        sum(len(own) > max(CUTOFFS) for own in rows)}
    notes += [f"{count:,} of {len(rows):,} {what}" for what, count in told.items() if count]
    return {"queries": len(rankings), "labelled": len(found), **figures, "warnings": notes}
