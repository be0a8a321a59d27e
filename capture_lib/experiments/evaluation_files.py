"""Rankings on disk: in the released format, with the score of every hit, and `capture evaluate`."""

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.retrieval.metrics import NO_ITEM, per_query, summarise
from capture_lib.retrieval.ranking import Ranking
from capture_lib.retrieval.statistics import RESAMPLES
from capture_lib.utils import InputError, raise_faults, read_text, write_atomically


def read_rankings(file: Path, queries: Container[str] | None = None) -> dict[str, list[str]]:
    """Read `query_id,gallery_id,…` a line, best first; only `queries` may ask, where given."""
    rankings: dict[str, list[str]] = {}
    faults = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        query, *items = map(str.strip, line.split(","))
        place = f"{file}, line {number}"
        if not query or not items or "" in items:
            faults.append(f"{place}: an id is missing; expected query_id,gallery_id,gallery_id,…")
        elif query in rankings:
            faults.append(f"{place}: query {query!r:.80} has a line already; keep one of them")
        elif queries is not None and query not in queries:
            faults.append(f"{place}: query {query!r:.80} is not in the query lists; remove the line")
        elif len(set(items)) < len(items):
            item, count = Counter(items).most_common(1)[0]
            faults.append(f"{place}: gallery id {item!r:.80} stands {count} times; keep its first place only")
        rankings[query] = items
    if not rankings:
        faults.append(f"{file}: holds no ranking; expected lines of query_id,gallery_id,…")
    raise_faults(faults)
    return rankings


def write_rankings(file: Path, queries: Sequence[str], gallery: Sequence[str], rankings: list[Ranking]) -> None:
    """Write `query_id,gallery_id,…` a line as text, and a row a hit, with its rank from 1, as parquet."""
    text = ""
    tables = []
    for query, found in zip(queries, rankings, strict=True):
        items = [gallery[row] for row in found.rows]
        text += ",".join((query, *items)) + "\n"
        tables.append(pd.DataFrame({"query_id": query, "rank": range(1, len(items) + 1), "gallery_id": items,
                                    "score": found.scores, "instance": found.instances}))
    with write_atomically(file.with_suffix(".txt")) as beside:
        beside.write_text(text, encoding="utf-8")
    with write_atomically(file.with_suffix(".parquet")) as beside:
        pd.concat(tables, ignore_index=True).to_parquet(beside)


def evaluate_lists(lists: Path, file: Path, resamples: int = RESAMPLES) -> dict:
    """Score a rankings file against the released dev and test lists; "warnings" say what else lowers it."""
    files = find_lists(lists)
    parts = {split: read_list(files[split]) for split in ("gallery", "test", "val") if split in files}
    gallery = parts.pop("gallery", None)
    if gallery is None or not parts:
        raise InputError(f"{lists}: needs the gallery list and the dev or test list to score a ranking")
    labels = pd.concat(parts.values()).set_index("sample_id")["labels"].to_dict()
    rankings = read_rankings(file, labels)
    asked = [labels[query] for query in rankings]
    gallery_labels = list(gallery["labels"].str[0].fillna(""))
    row = {item: row for row, item in enumerate(gallery["sample_id"])}
    rows = [np.array([row.get(item, NO_ITEM) for item in items]) for items in rankings.values()]
    notes = []
    known = set(gallery_labels)
    for split, part in parts.items():
        if count := (~part["sample_id"].isin(rankings)).sum():
            notes.append(f"{files[split].name}: {count:,} queries have no ranking and are left out")
    if count := sum(not own or not known.issuperset(own) for own in asked):
        notes.append(f"{count:,} of {len(rows):,} queries have no label, or one that no gallery item has: "
                     "released counts them as 0, standard counts that label as never found")
    if count := sum(NO_ITEM in found for found in rows):
        notes.append(f"{count:,} of {len(rows):,} rankings hold ids that the gallery lacks: "
                     "each is a miss, and released counts the recall of such a query as 0")
    return {"queries": len(rankings), **summarise(per_query(rows, asked, gallery_labels), resamples), "warnings": notes}
