"""How good a ranking is: mAP@N, mAR@N and Prec@N by two definitions, with intervals.

A query is a photo of several products; a ranked gallery item is a hit when its label is one
of the query's. Which definition the paper's table used is unknown, so both are reported:

- `released`, the published script: it looks at the first k = min(N, positives with repeated
  labels counted again, length) places and divides the average precision by the hits FOUND:
  one hit at rank 1 and nine misses have AP@10 = 1. Its errors count as 0.
- `standard`, the formulas: it divides by the hits that were POSSIBLE, min(N, positives). The
  same ranking has AP@10 = 0.1, where there are ten positives or more.
"""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.retrieval.statistics import RESAMPLES, bootstrap
from capture_lib.utils import InputError, raise_faults, read_text, write_atomically

CUTOFFS = (10, 50, 100)
DEFINITIONS = ("released", "standard")
FIGURES = ("mAP", "mAR", "Prec")
NO_ITEM = -1  # an id that the gallery does not know, or a place after a ranking's end
NO_LABEL = -2  # fills up the labels of a query that has fewer than others
Rankings = Sequence[np.ndarray]  # gallery rows for each query, best first
Labels = Sequence[list[str]]  # the labels of each query


def per_query(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]
              ) -> pd.DataFrame:
    """Score each query on its own.

    Args:
        rankings: Q int arrays of gallery rows, best first, no row twice; -1 is an unknown id.
        query_labels: Q lists; a label is repeated where its product is.
        gallery_labels: one label for each gallery row.

    Returns:
        fractions in [0, 1], float64, one row a query, columns (definition, figure@N).
    """
    matches = match_labels(rankings, query_labels, gallery_labels)
    columns = {}
    for n in CUTOFFS:
        found = matches.match[:, :, :n].sum(axis=2, dtype=np.uint8)  # (Q, L)
        for definition, compute in zip(DEFINITIONS, (released, standard), strict=True):
            for figure, values in compute(matches, found, n).items():
                columns[definition, f"{figure}@{n}"] = values
    names = [f"{figure}@{n}" for figure, n in product(FIGURES, CUTOFFS)]
    return pd.DataFrame(columns)[list(product(DEFINITIONS, names))]


@dataclass(frozen=True)
class LabelMatches:
    """Q rankings of R = 100 places compared with the L labels at most of their queries."""

    length: np.ndarray  # (Q,) places that the ranking fills
    unknown: np.ndarray  # (Q, R) bool, the id at this place is not in the gallery
    named: np.ndarray  # (Q, L) how many times the query names the label; 0 = no label
    available: np.ndarray  # (Q, L) gallery items of the label
    match: np.ndarray  # (Q, L, R) bool, the item at this place has the label
    hits: np.ndarray  # (Q, R + 1) column k: hits among the first k places
    precisions: np.ndarray  # (Q, R + 1) column k: sum of the precisions at these hits


def match_labels(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]
                 ) -> LabelMatches:
    """Compare rankings with labels; arguments as for `per_query`."""
    if len(rankings) != len(query_labels):
        raise ValueError(f"{len(rankings)} rankings for {len(query_labels)} queries")
    labels, named, gallery = encode_labels(query_labels, gallery_labels)

    # cut the rankings, or fill them up
    places = np.arange(1, max(CUTOFFS) + 1)
    cut = [ranking[:len(places)] for ranking in rankings]
    length = np.array(list(map(len, cut)), int)
    rows = np.full((len(cut), len(places)), NO_ITEM)  # (Q, R)
    rows[places <= length[:, None]] = np.concatenate([np.empty(0, int), *cut])

    # the label at each place; row -1 reads the appended one
    ranked = np.append(gallery, NO_ITEM)[rows]
    match = labels[:, :, None] == ranked[:, None, :]  # (Q, L, R)
    hit = match.any(axis=1)  # (Q, R)
    hits = hit.cumsum(axis=1)
    precisions = np.cumsum(hit * hits / places, axis=1)

    # gallery items of each label
    per_label = np.bincount(gallery, minlength=labels.max(initial=0) + 1)
    available = np.where(named > 0, per_label[np.maximum(labels, 0)], 0)
    unknown = (rows == NO_ITEM) & (places <= length[:, None])
    start = ((0, 0), (1, 0))  # a column in front: 0 among the first 0 places
    return LabelMatches(length, unknown, named, available, match, np.pad(hits, start),
                        np.pad(precisions, start))


def encode_labels(query_labels: Labels, gallery_labels: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Number labels: those of each query (Q, L), their counts (Q, L), the gallery's (G,)."""
    count = len(query_labels)
    size = len(gallery_labels)
    numbers, _ = pd.factorize(np.array([*gallery_labels, *chain(*query_labels)], object))
    query = np.repeat(np.arange(count), list(map(len, query_labels)))

    # count each label of each query; sorted by query
    base = numbers.max(initial=0) + 1
    pairs, counts = np.unique(query * base + numbers[size:], return_counts=True)
    query, number = np.divmod(pairs, base)

    # a row a query, filled from the left
    distinct = np.bincount(query, minlength=count)  # (Q,)
    used = np.arange(distinct.max(initial=0)) < distinct[:, None]  # (Q, L)
    labels = np.full(used.shape, NO_LABEL)
    labels[used] = number
    named = np.zeros(used.shape, int)
    named[used] = counts
    return labels, named, numbers[:size]


def released(matches: LabelMatches, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Return the figures at N of the script, with what its catch-all `except` leaves.

    A label that the gallery lacks stops it before its first figure: all are 0. An id that the
    gallery lacks, or more labels than N, stops it in the recall: only that is 0.
    """
    labels = matches.named.sum(axis=1)
    positives = (matches.named * matches.available).sum(axis=1)
    scored = ((matches.named == 0) | (matches.available > 0)).all(axis=1)
    k = np.minimum(np.minimum(n, positives), matches.length) * scored
    queries = np.arange(len(k))
    hits = matches.hits[queries, k]
    share = (n // np.maximum(labels, 1))[:, None]
    expected = np.minimum(matches.named * share, matches.available)
    recalled = scored & ~matches.unknown[:, :n].any(axis=1)
    recall = mean_recall(matches, found, expected) * recalled
    return {"mAP": ratio(matches.precisions[queries, k], hits), "mAR": recall, "Prec": ratio(hits, k)}


def standard(matches: LabelMatches, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Return the figures at N by the formulas; a short ranking ends in misses."""
    positives = matches.available.sum(axis=1)
    share = ratio(matches.named, matches.named.sum(axis=1, keepdims=True))
    expected = np.minimum(np.rint(share * n).astype(int), matches.available)
    precision = ratio(matches.precisions[:, n], np.minimum(n, positives))
    recall = mean_recall(matches, found, expected)
    return {"mAP": precision, "mAR": recall, "Prec": matches.hits[:, n] / n}


def mean_recall(matches: LabelMatches, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return found / expected, at most 1, as a mean over each query's distinct labels."""
    recall = ratio(np.minimum(found, expected), expected)  # (Q, L)
    return ratio(recall.sum(axis=1), (matches.named > 0).sum(axis=1))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, and 0 where the denominator is 0."""
    return np.where(denominator == 0, 0.0, numerator / np.maximum(denominator, 1))


def summarise(scores: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict]:
    """Return the mean over queries of each figure with its 95% bootstrap interval over them,
    as `{definition: {figure: {"value", "low", "high"}}}`."""
    summary: dict[str, dict] = {}
    intervals = bootstrap(scores.to_numpy(), resamples, seed)
    for (definition, figure), interval in zip(scores.columns, intervals, strict=True):
        summary.setdefault(definition, {})[figure] = interval
    return summary


def read_rankings(file: Path, queries: Container[str] | None = None) -> dict[str, list[str]]:
    """Read `query_id,gallery_id,…` a line, best first; only `queries` may ask, where given.

    Raises:
        InputError: the file cannot be read or is empty; a line lacks an id; a query is unknown
            or has two lines; a gallery id stands twice in a line (each would count as a hit).
    """
    rankings: dict[str, list[str]] = {}
    faults = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        query, *ranking = map(str.strip, line.split(","))
        fault = ""
        if not line.strip():
            continue
        if not query or not ranking or "" in ranking:
            fault = "an id is missing; expected query_id,gallery_id,gallery_id,…"
        elif query in rankings:
            fault = f"query {query!r:.80} has a line already; keep one of them"
        elif queries is not None and query not in queries:
            fault = f"query {query!r:.80} is not in the query lists; remove the line"
        elif len(set(ranking)) < len(ranking):
            item, count = Counter(ranking).most_common(1)[0]
            fault = f"gallery id {item!r:.80} stands {count} times; keep its first place only"
        if fault:
            faults.append(f"{file}, line {number}: {fault}")
        rankings[query] = ranking
    raise_faults(faults)
    if not rankings:
        raise InputError(f"{file}: holds no ranking; expected lines of query_id,gallery_id,…")
    return rankings


def write_rankings(file: Path, ids: Sequence[str], rankings: Sequence[Sequence[str]]) -> None:
    """Write `query_id,gallery_id,…` a line; `rankings[i]` are the hits of query `ids[i]`."""
    text = ""
    for query, ranking in zip(ids, rankings, strict=True):
        text += ",".join((query, *ranking)) + "\n"
    with write_atomically(file) as beside:
        beside.write_text(text, encoding="utf-8")


def evaluate_lists(lists: Path, file: Path, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Score a rankings file against the released lists in a folder, dev and test together.

    Returns:
        `summarise`'s figures, with "queries", their number, and "warnings", sentences.

    Raises:
        InputError: a list is missing or not in its format; the rankings hold an unknown query.
    """
    files = find_lists(lists)
    if "gallery" not in files or not files.keys() & {"val", "test"}:
        raise InputError(f"{lists}: needs the gallery list and the dev or test list to score a ranking")
    gallery = read_list(files["gallery"])
    parts = {split: read_list(files[split]) for split in ("test", "val") if split in files}
    queries = pd.concat(parts.values())
    labels = dict(zip(queries["sample_id"], queries["labels"], strict=True))
    rankings = read_rankings(file, labels)

    # gallery rows in place of ids; a gallery photo shows one product
    row = dict(zip(gallery["sample_id"], range(len(gallery)), strict=True))
    rows = []
    for ranking in rankings.values():
        rows.append(np.array([row.get(item, NO_ITEM) for item in ranking]))
    query_labels = list(map(labels.get, rankings))
    gallery_labels = list(gallery["labels"].str[0].fillna(""))
    scores = per_query(rows, query_labels, gallery_labels)
    figures = summarise(scores, resamples, seed)

    notes = []
    for split, part in parts.items():
        count = int((~part["sample_id"].isin(rankings)).sum())
        if count:
            notes.append(f"{files[split].name}: {count:,} queries have no ranking and are left out")
    notes += warnings(rows, query_labels, gallery_labels)
    return {"queries": len(rankings), **figures, "warnings": notes}


def warnings(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]) -> list[str]:
    """Return what lowers the figures and is not the ranking's fault, a sentence each."""
    known = set(gallery_labels)
    total = len(rankings)
    lacking = sum(not labels or not known.issuperset(labels) for labels in query_labels)
    strange = sum(NO_ITEM in ranking for ranking in rankings)
    notes = []
    if lacking:
        notes.append(f"{lacking:,} of {total:,} queries have no label, or one that no "
                     "gallery item has: released counts them as 0, standard counts that "
                     "label as never found")
    if strange:
        notes.append(f"{strange:,} of {total:,} rankings hold ids that the gallery lacks: "
                     "each is a miss, and released counts the recall of such a query as 0")
    return notes
