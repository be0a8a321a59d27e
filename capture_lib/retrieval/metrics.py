"""How good a ranking is: mAP@N, mAR@N and Prec@N, each in two definitions, with confidence intervals.

A query is a photo of several products; its ranking is one list of gallery items, best first. A ranked item
is a hit when its label is one of the query's. Two definitions of every figure are in use:

- `released`: what the evaluation script published with the paper computes. It looks at the first
  k = min(N, positives with repeated labels counted again, length of the ranking) places and divides the
  average precision by the hits FOUND: one hit at rank 1 and nine misses have AP@10 = 1. Errors count as 0.
- `standard`: the formulas, as the public evaluation code of VIMER-UMS has them. The average precision is
  divided by the hits that were POSSIBLE, min(N, positives): the same ranking has AP@10 = 0.1 (where there
  are ten positives or more).

Which of the two the paper's table used is unknown, so both are always reported.
"""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.catalog.table import read_text
from capture_lib.retrieval.statistics import RESAMPLES, bootstrap
from capture_lib.retrieval.statistics import paired_difference as paired_difference  # offered here too
from capture_lib.utils import InputError, raise_faults, write_atomically

CUTOFFS = (10, 50, 100)
DEFINITIONS = ("released", "standard")
FIGURES = ("mAP", "mAR", "Prec")
NO_ITEM = -1  # an id that the gallery does not know, or a place after the end of a short ranking
NO_LABEL = -2  # fills up the labels of a query that has fewer than others
Rankings = Sequence[np.ndarray]  # gallery rows for each query, best first
Labels = Sequence[list[str]]  # the labels of each query
COLUMN_IN_FRONT = ((0, 0), (1, 0))  # of running sums: 0 among the first 0 places


def per_query(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]) -> pd.DataFrame:
    """Scores each query on its own.

    Args:
        rankings: Q one-dimensional int arrays of gallery rows, best first, no row twice; -1 stands for an id
            that the gallery does not know; places after the 100th are ignored.
        query_labels: Q lists; a label is repeated where the product is (two bottles of it in the photo).
        gallery_labels: one label for each gallery row.

    Returns:
        float64 fractions in [0, 1], one row a query, columns (definition, figure):
        `scores["standard"]["mAP@10"]` is the average precision of each query. A label that the gallery lacks
        makes its query 0 in `released`; in `standard` it is a label of which nothing was found.
    """
    evaluated = judge(rankings, query_labels, gallery_labels)
    columns = {}
    for n in CUTOFFS:
        found = evaluated.match[:, :, :n].sum(axis=2, dtype=np.uint8)  # (Q, L), at most 100
        for definition, scores in zip(DEFINITIONS, (released, standard), strict=True):
            for figure, values in scores(evaluated, found, n).items():
                columns[definition, f"{figure}@{n}"] = values
    order = [(d, f"{figure}@{n}") for d in DEFINITIONS for figure in FIGURES for n in CUTOFFS]
    return pd.DataFrame(columns)[order]


@dataclass(frozen=True)
class LabelMatches:
    """Each ranked item compared with each label of its query: Q queries, R = 100 places, L labels at most."""

    length: np.ndarray  # (Q,) places that the ranking fills
    unknown: np.ndarray  # (Q, R) bool, the id at this place is not in the gallery
    named: np.ndarray  # (Q, L) how many times the query names the label; 0 = no label here
    available: np.ndarray  # (Q, L) gallery items of the label
    match: np.ndarray  # (Q, L, R) bool, the item at this place has the label
    hits: np.ndarray  # (Q, R + 1) column k: hits among the first k places
    precisions: np.ndarray  # (Q, R + 1) column k: sum of the precision at each of these hits


def judge(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]) -> LabelMatches:
    """Compares rankings with labels; arguments as for `per_query`."""
    if len(rankings) != len(query_labels):
        raise ValueError(f"{len(rankings)} rankings for {len(query_labels)} queries")
    labels, named, gallery = encode_labels(query_labels, gallery_labels)
    rows, length = pad(rankings, max(CUTOFFS))  # (Q, R)
    places = np.arange(1, rows.shape[1] + 1)
    ranked = np.append(gallery, NO_ITEM)[rows]  # (Q, R) labels; row -1 reads the appended one
    match = labels[:, :, None] == ranked[:, None, :]  # (Q, L, R)
    hit = match.any(axis=1)  # (Q, R)
    hits = hit.cumsum(axis=1)
    per_label = np.bincount(gallery, minlength=labels.max(initial=0) + 1)  # gallery items of each label
    return LabelMatches(
        length=length,
        unknown=(rows == NO_ITEM) & (places <= length[:, None]),
        named=named,
        available=np.where(named > 0, per_label[np.maximum(labels, 0)], 0),
        match=match,
        hits=np.pad(hits, COLUMN_IN_FRONT),
        precisions=np.pad(np.cumsum(hit * hits / places, axis=1), COLUMN_IN_FRONT),
    )


def released(evaluated: LabelMatches, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The figures at N of the released script, with what its catch-all `except` leaves of a query.

    A label that the gallery lacks stops the script before its first figure: all are 0. An id that the gallery
    lacks, or an expected count of 0 (with more labels than N), stops it in the recall: only that is 0.
    """
    labels = evaluated.named.sum(axis=1)
    positives = (evaluated.named * evaluated.available).sum(axis=1)
    scored = ((evaluated.named == 0) | (evaluated.available > 0)).all(axis=1)
    k = np.minimum(np.minimum(n, positives), evaluated.length) * scored
    hits = evaluated.hits[np.arange(len(k)), k]
    expected = np.minimum(evaluated.named * (n // np.maximum(labels, 1))[:, None], evaluated.available)
    recalled = scored & ~evaluated.unknown[:, :n].any(axis=1)
    return {
        "mAP": ratio(evaluated.precisions[np.arange(len(k)), k], hits),
        "mAR": mean_recall(evaluated, found, expected) * recalled,
        "Prec": ratio(hits, k),
    }


def standard(evaluated: LabelMatches, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The figures at N by the formulas; a short ranking counts as one with misses at its end."""
    positives = evaluated.available.sum(axis=1)
    share = ratio(evaluated.named, evaluated.named.sum(axis=1, keepdims=True))
    expected = np.minimum(np.rint(share * n).astype(int), evaluated.available)
    return {
        "mAP": ratio(evaluated.precisions[:, n], np.minimum(n, positives)),
        "mAR": mean_recall(evaluated, found, expected),
        "Prec": evaluated.hits[:, n] / n,
    }


def mean_recall(evaluated: LabelMatches, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Mean over a query's distinct labels of found / expected, 1 at most, and 0 where none is expected."""
    recall = ratio(np.minimum(found, expected), expected)  # (Q, L)
    return ratio(recall.sum(axis=1), (evaluated.named > 0).sum(axis=1))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the denominator is 0."""
    return np.where(denominator == 0, 0.0, numerator / np.maximum(denominator, 1))


def pad(rankings: Rankings, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rankings as one int array (Q, width), cut or filled up with NO_ITEM, and their lengths (Q,)."""
    rankings = [ranking[:width] for ranking in rankings]
    length = np.array([len(ranking) for ranking in rankings], dtype=int)
    rows = np.full((len(rankings), width), NO_ITEM)
    rows[np.arange(width) < length[:, None]] = np.concatenate([np.empty(0, dtype=int), *rankings])
    return rows, length


def encode_labels(query_labels: Labels, gallery_labels: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Labels as numbers: the distinct ones of each query (Q, L), their counts (Q, L), the gallery's (G,)."""
    number = {label: i for i, label in enumerate(dict.fromkeys(chain(gallery_labels, *query_labels)))}
    gallery = np.array([number[label] for label in gallery_labels], dtype=int)
    asked = np.array([number[label] for labels in query_labels for label in labels], dtype=int)
    query = np.repeat(np.arange(len(query_labels)), [len(labels) for labels in query_labels])
    size = max(len(number), 1)
    pairs, counts = np.unique(query * size + asked, return_counts=True)  # sorted by query
    query, label = np.divmod(pairs, size)
    distinct = np.bincount(query, minlength=len(query_labels))  # (Q,) labels of each query
    used = np.arange(distinct.max(initial=0)) < distinct[:, None]  # (Q, L)
    labels, named = np.full(used.shape, NO_LABEL), np.zeros(used.shape, dtype=int)
    labels[used], named[used] = label, counts
    return labels, named, gallery


def summarise(scores: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict[str, dict]]:
    """The mean over queries of each figure, as `{definition: {figure: {"value", "low", "high"}}}`.

    low and high bound the 95% percentile interval of a bootstrap over queries: how far the figure depends on
    which queries were drawn. What another training seed would change is not in it.
    """
    summary: dict[str, dict[str, dict]] = {definition: {} for definition in DEFINITIONS}
    intervals = bootstrap(scores.to_numpy(), resamples, seed)
    for (definition, figure), interval in zip(scores.columns, intervals, strict=True):
        summary[definition][figure] = interval
    return summary


def read_rankings(file: Path, queries: Container[str] | None = None) -> dict[str, list[str]]:
    """Reads `query_id,gallery_id,…`, one query a line, best first; blank lines are skipped.

    Args:
        queries: the ids that may stand in the file, where that is known.

    Raises:
        InputError: the file cannot be read or is empty; a line lacks an id; a query is unknown or has two
            lines; a gallery id stands twice in a line (each would count as a hit).
    """
    rankings: dict[str, list[str]] = {}
    faults = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        query, *ranking = (field.strip() for field in line.split(","))
        found = faults_of_ranking(query, ranking)
        if query in rankings:
            found.append(f"query {query!r:.80} has a line already; keep one of them")
        if queries is not None and query not in queries:
            found.append(f"query {query!r:.80} is not in the query lists; remove the line")
        faults += [f"{file}, line {number}: {fault}" for fault in found]
        rankings[query] = ranking
    raise_faults(faults)
    if not rankings:
        raise InputError(f"{file}: holds no ranking; expected lines of query_id,gallery_id,gallery_id,…")
    return rankings


def faults_of_ranking(query: str, ranking: list[str]) -> list[str]:
    """What is wrong with one line of a rankings file by itself."""
    if not query or not ranking or "" in ranking:
        return ["an id is missing; expected query_id,gallery_id,gallery_id,… without empty fields"]
    item, count = Counter(ranking).most_common(1)[0]
    return [f"gallery id {item!r:.80} stands {count} times; keep its first place only"] if count > 1 else []


def write_rankings(file: Path, ids: Sequence[str], rankings: Sequence[Sequence[str]]) -> None:
    """Writes `query_id,gallery_id,…` a line; `rankings[i]` are the gallery ids for query `ids[i]`."""
    lines = [",".join((query, *ranking)) for query, ranking in zip(ids, rankings, strict=True)]
    with write_atomically(file) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluate_lists(lists: Path, rankings_file: Path, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Scores a rankings file against the released lists in a folder, as the released script does.

    Every query in the rankings file counts once; dev and test queries are averaged together.

    Returns:
        `{"queries": count, "released": …, "standard": …, "warnings": [sentence, …]}`, see `summarise`.

    Raises:
        InputError: the folder lacks the gallery list or both query lists; a file is not in its format; the
            rankings hold an unknown query.
    """
    files = find_lists(lists)
    if "gallery" not in files or not files.keys() & {"val", "test"}:
        raise InputError(f"{lists}: needs the gallery list and the dev or test list to score a ranking")
    gallery = labels_by_id(files["gallery"])
    queries = {name: labels_by_id(files[name]) for name in ("test", "val") if name in files}
    labels = {query: named for part in queries.values() for query, named in part.items()}
    rankings = read_rankings(rankings_file, labels)
    row = {sample: index for index, sample in enumerate(gallery)}
    rows = [np.array([row.get(item, NO_ITEM) for item in ranking]) for ranking in rankings.values()]
    asked = [labels[query] for query in rankings]
    held = [named[0] if named else "" for named in gallery.values()]  # a gallery photo shows one product
    left_out = {files[name].name: len(part.keys() - rankings.keys()) for name, part in queries.items()}
    said = [f"{name}: {n:,} queries have no ranking and are left out" for name, n in left_out.items() if n]
    figures = summarise(per_query(rows, asked, held), resamples, seed)
    return {"queries": len(rankings), **figures, "warnings": said + warnings(rows, asked, held)}


def labels_by_id(file: Path) -> dict[str, list[str]]:
    """The labels of each sample in a released list."""
    table = read_list(file)
    return dict(zip(table["sample_id"], table["labels"], strict=True))


def warnings(rankings: Rankings, query_labels: Labels, gallery_labels: Sequence[str]) -> list[str]:
    """What lowers the figures and is not the ranking's fault, a sentence each; as in `per_query`."""
    held, total = set(gallery_labels), len(query_labels)
    lacking = sum(not labels or not held.issuperset(labels) for labels in query_labels)
    strange = sum(NO_ITEM in ranking for ranking in rankings)
    said = []
    if lacking:
        said.append(f"{lacking:,} of {total:,} queries have no label, or one that no gallery item has: "
                    "released counts them as 0, standard counts that label as never found")
    if strange:
        said.append(f"{strange:,} of {total:,} rankings hold ids that the gallery lacks: each is a miss, "
                    "and released counts the recall of such a query as 0")
    return said
