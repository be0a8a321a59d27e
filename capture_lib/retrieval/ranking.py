"""Rank a gallery for queries: methods, the faiss index, CombMAX, the choice on val."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

from capture_lib.retrieval.embedding import BLENDS, FUSIONS, REPRESENTATIONS, EmbeddedSet, represent, unit
from capture_lib.retrieval.metrics import per_query
from capture_lib.utils import write_atomically


@dataclass(frozen=True)
class Method:
    """A way to search: its query level, and the representations that val chooses from."""

    level: str  # instance or image
    representations: tuple[str, ...]
    augmented: bool = False  # the gallery, by `augment_gallery`


@dataclass(frozen=True)
class Choice:
    """The representation of a method, and whether its gallery is augmented."""

    representation: str
    augmented: bool = False


Hits = tuple[np.ndarray, np.ndarray]  # scores and ids, (n, depth) each, best first
PAPER = ("product",)
OF_CAPTURE = ("product", "joint", "joint image", "contrastive", "contrastive image",
              "product, contrastive", "all")
METHODS = {
    "capture/instance": Method("instance", PAPER),
    "capture/image": Method("image", PAPER),
    "capture-chosen/instance": Method("instance", OF_CAPTURE),
    "capture-chosen/image": Method("image", OF_CAPTURE),
    "image-only": Method("instance", ("regions",)),
    "text-only": Method("image", ("words",)),
    "late-fusion": Method("instance", FUSIONS),
    "beyond/instance": Method("instance", BLENDS, augmented=True),  # ours, after WCCN
}


@dataclass(frozen=True)
class Ranking:
    """The answer to one query, best first."""

    rows: np.ndarray  # (k,) rows of the gallery
    scores: np.ndarray  # (k,) cosines
    instances: np.ndarray  # (k,) the instance of the query that brought each hit


def build_index(vectors: np.ndarray, ids: np.ndarray | None = None) -> faiss.Index:
    """Return an exact index by inner product of vectors (n, D) float32.

    A search gives `ids` (n,) int64, or rows where None. On the CPU a gallery may change:
    `index.add_with_ids(vectors, ids)` adds items, `index.remove_ids(ids)` removes some.
    """
    index = faiss.index_factory(vectors.shape[1], "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, np.arange(len(vectors)) if ids is None else ids)
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    return index


def search_index(index: faiss.Index, queries: np.ndarray, depth: int) -> Hits:
    """Search an index for queries (n, D); `depth` is cut to its size."""
    return index.search(queries, min(depth, index.ntotal))


def search(gallery: np.ndarray, queries: np.ndarray, depth: int) -> Hits:
    """Search the rows of a gallery (G, D) for queries (n, D)."""
    return search_index(build_index(gallery), queries, depth)


def augment_gallery(vectors: np.ndarray, neighbours: int = 4, share: float = 0.6
                    ) -> np.ndarray:
    """Move vectors (n, D) of length 1 towards the mean of their nearest, themselves among them.

    Database-side feature augmentation (Turcot and Lowe, 2009; Arandjelović and Zisserman,
    2012), with sizes as val chose.
    """
    _, nearest = search(vectors, vectors, neighbours)
    means = unit(vectors[nearest].mean(1))
    return unit((1 - share) * vectors + share * means)


def rank(queries: EmbeddedSet, gallery: EmbeddedSet, level: str, choice: Choice,
         depth: int = 100) -> list[Ranking]:
    """Rank the gallery for each query."""
    vectors = represent(gallery.vectors(level), choice.representation)
    if choice.augmented:
        vectors = augment_gallery(vectors)
    return rank_in(build_index(vectors), queries, level, choice, depth)


def rank_in(index: faiss.Index, queries: EmbeddedSet, level: str, choice: Choice,
            depth: int = 100) -> list[Ranking]:
    """Rank an index of the gallery, made by the same choice, for each query."""
    vectors = represent(queries.vectors(level), choice.representation)
    scores, rows = search_index(index, vectors, depth)

    # merge the lists of each query; those of its instances follow one another
    count = len(queries.ids)
    owners = np.arange(count) if level == "image" else queries.owners
    starts = np.searchsorted(owners, np.arange(count + 1))
    rankings = []
    for number in range(count):
        part = slice(starts[number], starts[number + 1])
        rankings.append(comb_max(rows[part], scores[part], depth))
    return rankings


def comb_max(rows: np.ndarray, scores: np.ndarray, depth: int) -> Ranking:
    """Merge the lists (k, d) of k instances by CombMAX: each item keeps its best score."""
    order = np.argsort(-scores, axis=None, kind="stable")  # ties: instance after instance
    # the best place of each item
    _, first = np.unique(rows.ravel()[order], return_index=True)
    kept = order[np.sort(first)][:depth]
    return Ranking(rows.ravel()[kept], scores.ravel()[kept], kept // rows.shape[1])


def chance(queries: EmbeddedSet, gallery: EmbeddedSet, depth: int, seed: int
           ) -> list[Ranking]:
    """Rank at random for each query: what a figure is without any knowledge."""
    rng = np.random.default_rng([seed, 4])
    rankings = []
    for _ in queries.ids:
        rankings.append(unscored(rng.permutation(len(gallery.ids))[:depth]))
    return rankings


def unscored(rows: np.ndarray) -> Ranking:
    """Return a ranking of gallery rows (k,) that knows no cosines."""
    return Ranking(rows, np.zeros(len(rows)), np.zeros(len(rows), int))


def popularity(val_labels: Sequence[list[str]], gallery_labels: Sequence[str], depth: int
               ) -> np.ndarray:
    """Return one list for all queries, gallery rows (depth,): photos of the label that most
    val queries ask for, then of the next; equal ones in the order of the gallery."""
    wanted = Counter(label for labels in val_labels for label in set(labels))
    labels = pd.Series(list(gallery_labels), dtype=object)
    first, _ = pd.factorize(labels)  # numbers labels by their first photo
    demand = labels.map(wanted).fillna(0)
    return np.lexsort((first, -demand))[:depth]


def score(rankings: list[Ranking], queries: EmbeddedSet, gallery: EmbeddedSet
          ) -> pd.DataFrame:
    """Return every figure of every query, both definitions (`metrics.per_query`)."""
    rows = [ranking.rows for ranking in rankings]
    return per_query(rows, queries.labels, first_labels(gallery))


def first_labels(gallery: EmbeddedSet) -> list[str]:
    """Return the one label of each gallery photo, empty where unknown."""
    return [labels[0] if labels else "" for labels in gallery.labels]


def possible_methods(queries: EmbeddedSet, wccn: bool = False) -> dict[str, Method]:
    """Return the methods whose vectors are there; ours too where they are mapped by WCCN."""
    methods = {}
    for name, method in METHODS.items():
        needed = set(REPRESENTATIONS[method.representations[0]])
        possible = needed <= queries.vectors(method.level).keys()
        if possible and (wccn or not method.augmented):
            methods[name] = method
    return methods


def choose(method: Method, val: EmbeddedSet | None, gallery: EmbeddedSet, depth: int = 100
           ) -> tuple[Choice, dict[str, float]]:
    """Return the choice with the best standard mAP@10 on val, and the figure of each.

    Without a labelled val: the first representation, and no figures.
    """
    tried = {}
    for representation in method.representations if val else ():
        choice = Choice(representation, method.augmented)
        scores = score(rank(val, gallery, method.level, choice, depth), val, gallery)
        tried[representation] = float(scores["standard", "mAP@10"].mean())
    best = max(tried, key=tried.get, default=method.representations[0])
    return Choice(best, method.augmented), tried


def write_hits(file: Path, queries: EmbeddedSet, gallery: EmbeddedSet,
               rankings: list[Ranking]) -> None:
    """Write a parquet, a row a hit: query_id, rank (from 1), gallery_id, score, instance."""
    ids = np.array(gallery.ids, object)
    tables = []
    for query, ranking in zip(queries.ids, rankings, strict=True):
        places = np.arange(1, len(ranking.rows) + 1)
        tables.append(pd.DataFrame({
            "query_id": query, "rank": places, "gallery_id": ids[ranking.rows],
            "score": ranking.scores, "instance": ranking.instances}))
    with write_atomically(file) as beside:
        pd.concat(tables, ignore_index=True).to_parquet(beside)
