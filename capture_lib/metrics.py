"""How good is a ranking: mAP@N, mAR@N and Prec@N, each in two definitions, with confidence intervals.

A query is a photo of several products; its ranking is one list of gallery items, best first. A ranked item is a
hit when its label is one of the query's. Two definitions of every figure are in use:

- `released`: what the evaluation script published with the paper computes. It looks at the first
  k = min(N, positives counted once per repeated label, length of the ranking) places. Average precision is divided
  by the hits FOUND, so one hit at rank 1 and nine misses have AP@10 = 1. Its errors are swallowed and count as 0.
- `standard`: the formulas, as the evaluation code of VIMER-UMS has them. Average precision is divided by the hits
  that were POSSIBLE, min(N, positives): the same ranking has AP@10 = 0.1 (with ten positives or more).

Which of the two the paper's table used is unknown, so both are always reported.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib import catalog, paths

CUTOFFS = (10, 50, 100)
DEFINITIONS = ("released", "standard")
RESAMPLES = 1000

NO_ITEM = -1  # an unknown gallery id, or a place after the end of a short ranking
NO_LABEL = -2  # an unused slot of a query that has fewer labels than others


@dataclass(frozen=True)
class Judgements:
    """Every ranked item compared with every label of its query: all that both definitions need.

    Q queries, R = 100 places, L = the largest number of distinct labels that a query has.
    """

    length: np.ndarray  # (Q,) places that the ranking fills
    unknown: np.ndarray  # (Q, R) bool, ranked ids that are not in the gallery
    named: np.ndarray  # (Q, L) how many times the query names the label; 0 = unused slot
    available: np.ndarray  # (Q, L) gallery items that carry the label
    match: np.ndarray  # (Q, L, R) bool, the item at this place carries this label
    hits: np.ndarray  # (Q, R + 1) hits among the first k places, for k = 0 … R
    precisions: np.ndarray  # (Q, R + 1) sum of the precision at each hit among the first k places

    @property
    def label_missing(self) -> np.ndarray:
        """(Q,) bool: the query has no label, or one that no gallery item carries."""
        return ((self.named > 0) & (self.available == 0)).any(axis=1) | (self.named == 0).all(axis=1)


def judge(rankings: list[np.ndarray], query_labels: list[list[str]], gallery_labels: list[str]) -> Judgements:
    """Compare rankings with labels.

    rankings: Q one-dimensional int arrays of gallery rows, best first; -1 = an id that the gallery does not know;
    no row stands twice in a ranking; places after the 100th are ignored. query_labels: Q lists, a label is repeated
    when the product is (two bottles of the same). gallery_labels: one label per gallery row.
    """
    if len(rankings) != len(query_labels):
        raise ValueError(f"{len(rankings)} rankings for {len(query_labels)} queries")
    distinct, named, gallery = _encode_labels(query_labels, gallery_labels)
    rows, length = _pad(rankings, max(CUTOFFS), NO_ITEM)
    ranked = np.append(gallery, NO_ITEM)[rows]  # (Q, R) label of each ranked item; row -1 picks the last: NO_ITEM
    match = distinct[:, :, None] == ranked[:, None, :]  # (Q, L, R)
    hit = match.any(axis=1)  # (Q, R)
    hits = hit.cumsum(axis=1)
    precision = np.where(hit, hits / np.arange(1, ranked.shape[1] + 1), 0.0)
    return Judgements(
        length=length,
        unknown=(rows == NO_ITEM) & (np.arange(ranked.shape[1]) < length[:, None]),
        named=named,
        available=np.append(np.bincount(gallery, minlength=distinct.max(initial=0) + 1), 0)[distinct] * (named > 0),
        match=match,
        hits=_start_at_zero(hits),
        precisions=_start_at_zero(precision.cumsum(axis=1)),
    )


def per_query(
    rankings: list[np.ndarray], query_labels: list[list[str]], gallery_labels: list[str]
) -> pd.DataFrame:
    """Score every query on its own; arguments as for `judge`.

    Returns float64 fractions in [0, 1], one row per query and the columns (definition, figure), so that
    `scores["standard"]["mAP@10"]` is the average precision of each query. A query with a label that the gallery
    lacks counts as 0 throughout in `released`, and as "never found" for that label in `standard`.
    """
    judged = judge(rankings, query_labels, gallery_labels)
    columns = {}
    for n in CUTOFFS:
        found = judged.match[:, :, :n].sum(axis=2, dtype=np.uint8)  # (Q, L), at most 100
        for definition, score in zip(DEFINITIONS, (_released, _standard), strict=True):
            for figure, values in score(judged, found, n).items():
                columns[definition, f"{figure}@{n}"] = values
    order = [(d, f"{figure}@{n}") for d in DEFINITIONS for figure in ("mAP", "mAR", "Prec") for n in CUTOFFS]
    return pd.DataFrame(columns)[order]


def _released(judged: Judgements, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The released script, with what its bare `except` makes of a query: the figure in progress stays 0.

    A missing label stops it before the first figure; an unknown gallery id, or an expected count of zero (more
    labels than N), stops it in the recall, when average precision and precision are already counted.
    """
    labels = judged.named.sum(axis=1)
    positives = (judged.named * judged.available).sum(axis=1)
    k = np.where(judged.label_missing, 0, np.minimum(np.minimum(n, positives), judged.length))[:, None]
    hits = np.take_along_axis(judged.hits, k, axis=1)[:, 0]
    precisions = np.take_along_axis(judged.precisions, k, axis=1)[:, 0]
    expected = np.minimum(judged.named * (n // np.maximum(labels, 1))[:, None], judged.available)
    stopped = judged.label_missing | judged.unknown[:, :n].any(axis=1) | (labels > n)
    return {
        "mAP": _ratio(precisions, hits),
        "mAR": np.where(stopped, 0.0, _mean_recall(judged, found, expected)),
        "Prec": _ratio(hits, k[:, 0]),
    }


def _standard(judged: Judgements, found: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The formulas: a short ranking is a ranking with misses at its end."""
    positives = judged.available.sum(axis=1)
    share = _ratio(judged.named, judged.named.sum(axis=1, keepdims=True))
    expected = np.minimum(np.rint(share * n).astype(int), judged.available)
    return {
        "mAP": _ratio(judged.precisions[:, n], np.minimum(positives, n)),
        "mAR": _mean_recall(judged, found, expected),
        "Prec": judged.hits[:, n] / n,
    }


def _mean_recall(judged: Judgements, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Mean over the query's distinct labels of found / expected, at most 1 each; 0 where none is expected."""
    recall = _ratio(np.minimum(found, expected), expected)  # (Q, L)
    return _ratio(recall.sum(axis=1), (judged.named > 0).sum(axis=1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return numerator / np.where(denominator == 0, 1, denominator) * (denominator != 0)


def _start_at_zero(sums: np.ndarray) -> np.ndarray:
    """(Q, R) running sums -> (Q, R + 1), with a first column for "the first 0 places"."""
    return np.pad(sums, ((0, 0), (1, 0)))


def _pad(rows: list[np.ndarray], width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of different lengths -> an int array (Q, width) filled up with `fill`, and the lengths (Q,)."""
    length = np.array([min(len(row), width) for row in rows], dtype=int)
    padded = np.full((len(rows), width), fill)
    padded[np.arange(width) < length[:, None]] = np.concatenate([row[:width] for row in rows] or [[]])
    return padded, length


def _encode_labels(query_labels: list[list[str]], gallery_labels: list[str]) -> tuple[np.ndarray, ...]:
    """Labels as numbers: each query's distinct ones (Q, L), how often it names them (Q, L), the gallery's (G,)."""
    counted = [Counter(labels) for labels in query_labels]
    flat = [label for counts in counted for label in counts]
    codes, _ = pd.factorize(np.array([*gallery_labels, *flat], dtype=object))
    gallery, flat_codes = np.split(codes, [len(gallery_labels)])
    width = max((len(counts) for counts in counted), default=0)
    ends = np.cumsum([len(counts) for counts in counted])[:-1]
    distinct, _ = _pad(np.split(flat_codes, ends), width, NO_LABEL)
    named, _ = _pad([np.fromiter(counts.values(), int) for counts in counted], width, 0)
    return distinct, named, gallery
