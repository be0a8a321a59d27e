"""How good a ranking is: mAP@N, mAR@N and Prec@N of every query, by two definitions.

A hit is an item with any of the query's labels. `released` is the published script: it
divides the average precision by the hits found, `standard`, the formulas, by those possible.
Which one the paper's table used is unknown.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from capture_lib.retrieval.statistics import RESAMPLES, bootstrap

CUTOFFS = (10, 50, 100)
DEFINITIONS = ("released", "standard")
FIGURES = ("mAP", "mAR", "Prec")
NO_ITEM = -1  # an id that the gallery does not know
END = -2  # a place after a ranking's end
Rankings = Sequence[np.ndarray]  # gallery rows for each query, best first
Labels = Sequence[list[str]]  # of each query, or of each item


def per_query(rankings: Rankings, query_labels: Labels, gallery_labels: Labels) -> pd.DataFrame:
    """Score each query on its own.

    Args:
        rankings: Q int arrays of gallery rows, best first, no row twice; -1 is an unknown id.
        query_labels: Q lists; a label is repeated where its product is.
        gallery_labels: a list for each gallery row, or its only label.

    Returns:
        fractions in [0, 1], float64, one row a query, columns (definition, figure@N).
    """
    rows, named, available, possible, match = match_labels(rankings, query_labels, gallery_labels)
    labels = named.sum(1, keepdims=True).clip(1)  # (Q, 1)
    distinct = (named > 0).sum(1).clip(1)  # (Q,)

    # hits among the first k places, and the sum of the precisions at them, for k = 0, 1 …
    hit = match.any(1)  # (Q, R)
    hits = np.zeros((len(hit), hit.shape[1] + 1), int)
    hits[:, 1:] = hit.cumsum(1)
    precisions = hits / np.arange(hits.shape[1]).clip(1)
    precisions[:, 1:] *= hit
    precisions = precisions.cumsum(1)

    # the script never looks beyond the positives, label after label, where repeated ones count
    # again; a label that the gallery lacks is an error, which leaves zeros
    scored = (available > 0).all(1, where=named > 0)
    reach = (named * available).sum(1) * scored
    reach = np.minimum(reach, (rows != END).sum(1))

    figures = np.zeros((2, 3, len(CUTOFFS), len(rows)))
    for place, n in enumerate(CUTOFFS):
        found = match[:, :, :n].sum(2)  # (Q, L)

        # released: k places, divided by the hits found; an unknown id is an error in the recall
        k = np.minimum(n, reach)
        at_k = np.arange(len(k)), k
        average = precisions[at_k] / hits[at_k].clip(1)
        expected = np.minimum(named * (n // labels), available)
        recall = np.minimum(found, expected) / expected.clip(1)
        recalled = scored & (rows[:, :n] != NO_ITEM).all(1)
        recall = recall.sum(1) / distinct * recalled
        figures[0, :, place] = average, recall, hits[at_k] / k.clip(1)

        # standard: N places, divided by the hits possible
        average = precisions[:, n] / possible.clip(1, n)
        expected = np.rint(named / labels * n).astype(int)
        expected = np.minimum(expected, available)
        recall = np.minimum(found, expected) / expected.clip(1)
        figures[1, :, place] = average, recall.sum(1) / distinct, hits[:, n] / n

    names = [f"{figure}@{n}" for figure, n in product(FIGURES, CUTOFFS)]
    columns = pd.MultiIndex.from_product([DEFINITIONS, names])
    return pd.DataFrame(figures.reshape(len(columns), -1).T, columns=columns)


def per_box(rankings: Rankings, found: np.ndarray, box_labels: Sequence[str],
            gallery_labels: Labels) -> pd.DataFrame:
    """Score each true box by the ranking of the instance that found it, against its own label.

    Args:
        rankings: the ranking of each instance, as in `per_query`.
        found: (T,) which instance found box t; -1 is none, and the box counts 0.
        box_labels: T labels.

    Returns:
        fractions, one row a box: found, mAP@10 (standard), R@1 (is the first place a hit?).
    """
    nothing = np.zeros(0, int)
    own = [rankings[instance] if instance >= 0 else nothing for instance in found]
    wanted = [label.split("#;#") for label in box_labels]
    scores = per_query(own, wanted, gallery_labels)["standard", "mAP@10"]
    *_, match = match_labels(own, wanted, gallery_labels)
    return pd.DataFrame({
        "found": found >= 0, "mAP@10": scores, "R@1": match[:, :, 0].any(1)}).astype(float)


def match_labels(rankings: Rankings, query_labels: Labels, gallery_labels: Labels
                 ) -> tuple[np.ndarray, ...]:
    """Compare Q rankings, up to place R = 100, with the labels of their queries, L at most.

    Returns:
        the gallery row at each place (Q, R); how often the query names the label and how many
        items have it, (Q, L) each; how many items have any of its labels (Q,); whether the item
        at a place has the label, (Q, L, R) bool.
    """
    # number the labels, and the distinct sets of them that items have
    sets: dict[frozenset[str], int] = {}
    item_sets = []
    for item in gallery_labels:
        labels = frozenset([item] if isinstance(item, str) else item)
        item_sets.append(sets.setdefault(labels, len(sets)))
    number = {label: place for place, label in enumerate(set().union(*sets))}
    members = np.full((len(sets) + 1, max(map(len, sets), default=0)), -2)  # -2 is no label
    for labels, place in sets.items():
        members[place, :len(labels)] = [number[label] for label in labels]

    shape = len(query_labels), max(map(len, query_labels), default=0)
    asked = np.full(shape, -1)  # -1 is no label of the gallery, or none at all
    named = np.zeros(shape, int)
    rows = np.full((len(query_labels), max(CUTOFFS)), END)
    for query, (ranking, labels) in enumerate(zip(rankings, query_labels, strict=True)):
        counts = Counter(labels)
        asked[query, :len(counts)] = [number.get(label, -1) for label in counts]
        named[query, :len(counts)] = list(counts.values())
        rows[query, :len(ranking)] = ranking[:max(CUTOFFS)]

    # count the items of each label, and those of each query, where no item counts twice
    sizes = np.bincount(np.array(item_sets, int), minlength=len(members))
    holds = incidence(members, len(number))
    available = np.append(sizes @ holds, 0)[asked]  # label -1 reads the last
    possible = (incidence(asked, len(number)) @ holds.T > 0) @ sizes

    # compare each place with one label of its item after the other
    ranked = np.array([*item_sets, len(sets), len(sets)])[rows]  # NO_ITEM and END: no labels
    match = np.zeros((*shape, max(CUTOFFS)), bool)
    for label in members.T:
        match |= asked[:, :, None] == label[ranked][:, None]
    return rows, named, available, possible, match


def incidence(numbers: np.ndarray, count: int) -> csr_array:
    """Return which of `count` labels each row of label numbers (n, L) has: (n, count), 0 or 1."""
    rows, places = np.nonzero(numbers >= 0)
    ones = np.ones(len(rows), int)
    return csr_array((ones, (rows, numbers[rows, places])), (len(numbers), count))


def summarise(scores: pd.DataFrame, resamples: int = RESAMPLES) -> dict[str, dict]:
    """Return {definition: {figure: mean and 95% interval over queries}}."""
    summary = {"released": {}, "standard": {}}
    intervals = bootstrap(scores.to_numpy(), resamples, 0)
    for (definition, figure), interval in zip(scores.columns, intervals, strict=True):
        summary[definition][figure] = interval
    return summary
