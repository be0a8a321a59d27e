"""Rank a gallery for queries: methods, the faiss index, CombMAX, the choice on val."""

from dataclasses import dataclass

import faiss
import numpy as np
import pandas as pd
from numpy import ndarray

from capture_lib.retrieval.embedding import EmbeddedSet, represent, vectors_of
from capture_lib.retrieval.metrics import per_query


@dataclass(frozen=True)
class Method:
    """A way to search: its query level, and the representations that val chooses from."""

    level: str  # instance or image
    representations: tuple[str, ...]


OF_IMAGES = ("product", "joint", "contrastive", "product + contrastive", "joint + contrastive")
OF_INSTANCES = (*OF_IMAGES, "region_token", "region_token + contrastive")
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
FUSIONS = tuple(f"{share} regions + {1 - share:.2g} words" for share in SHARES)
FOUNDATION = tuple(f"{share} foundation_image + {1 - share:.2g} foundation_text" for share in SHARES)
BESIDE_RAW = (  # the model's share beside late fusion's
    "0.3 contrastive + 0.45 regions + 0.25 words",
    "0.5 contrastive + 0.32 regions + 0.18 words",
    "0.7 contrastive + 0.2 regions + 0.1 words",
    "0.25 region_token + 0.25 contrastive + 0.32 regions + 0.18 words")
BESIDE_FOUNDATION = tuple(  # the same, with the vectors of an image-text model
    name.replace("regions", "foundation_image").replace("words", "foundation_text") for name in BESIDE_RAW)
METHODS = {
    "capture/instance": Method("instance", ("product",)),  # the paper's reading
    "capture/image": Method("image", ("product",)),
    "capture-raw-product/instance": Method("instance", ("raw product",)),
    "capture-chosen/instance": Method("instance", OF_INSTANCES),
    "capture-chosen/image": Method("image", OF_IMAGES),
    "capture-beside-raw/instance": Method("instance", BESIDE_RAW),
    "capture-beside-foundation/instance": Method("instance", BESIDE_FOUNDATION),
    "image-only": Method("instance", ("regions",)),
    "text-only": Method("image", ("words",)),
    "late-fusion": Method("instance", FUSIONS),
    "foundation-image": Method("instance", ("foundation_image",)),
    "foundation-text": Method("image", ("foundation_text",)),
    "foundation-fusion": Method("instance", FOUNDATION),
}


@dataclass(frozen=True)
class Ranking:
    """The answer to one query, best first."""

    rows: ndarray  # (k,) rows of the gallery
    scores: ndarray | None = None  # (k,) cosines; None where nothing was compared
    instances: ndarray | None = None  # (k,) the query's instance that brought each hit


def build_index(vectors: ndarray, ids: ndarray | None = None) -> faiss.Index:
    """Return an exact index by inner product of vectors (n, D), numbered by `ids` or by row.

    On the CPU, `index.add_with_ids(vectors, ids)` and `index.remove_ids(ids)` change it.
    """
    index = faiss.index_factory(vectors.shape[1], "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    if ids is None:
        ids = np.arange(len(vectors))
    index.add_with_ids(vectors, ids)
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    return index


def search_index(index: faiss.Index, queries: ndarray, depth: int) -> tuple[ndarray, ...]:
    """Return scores and ids (n, depth), best first; `depth` is cut to the index's size."""
    return index.search(queries, min(depth, index.ntotal))


def search(queries: EmbeddedSet, gallery: EmbeddedSet, level: str, representation: str,
           depth: int = 100) -> tuple[ndarray, ...]:
    """Return scores and gallery rows (n, depth), the list of each of the n vectors of a level."""
    index = build_index(represent(gallery.vectors(level), representation))
    return search_index(index, represent(queries.vectors(level), representation), depth)


def merge(queries: EmbeddedSet, level: str, scores: ndarray, rows: ndarray, depth: int = 100
          ) -> list[Ranking]:
    """Merge the lists of each query; those of its instances follow one another."""
    owners = queries.owners if level == "instance" else np.arange(len(queries.ids))
    starts = np.searchsorted(owners, np.arange(1, len(queries.ids)))
    lists = zip(np.split(rows, starts), np.split(scores, starts), strict=True)
    return [comb_max(*pair, depth) for pair in lists]


def rank(queries: EmbeddedSet, gallery: EmbeddedSet, level: str, representation: str,
         depth: int = 100) -> list[Ranking]:
    """Rank the gallery for each query."""
    return merge(queries, level, *search(queries, gallery, level, representation, depth), depth)


def comb_max(rows: ndarray, scores: ndarray, depth: int) -> Ranking:
    """Merge the lists (k, d) of k instances by CombMAX: each item keeps its best score."""
    order = np.argsort(-scores, axis=None, kind="stable")  # ties: instance after instance
    _, first = np.unique(rows.take(order), return_index=True)  # best place of each item
    kept = order[np.sort(first)][:depth]
    return Ranking(rows.take(kept), scores.take(kept), kept // rows.shape[1])


def score(rankings: list[Ranking], queries: EmbeddedSet, gallery: EmbeddedSet
          ) -> pd.DataFrame:
    """Return every figure of each query that has labels, whose number is the index."""
    labelled = [query for query, labels in enumerate(queries.labels) if labels]
    rows = [rankings[query].rows for query in labelled]
    asked = [queries.labels[query] for query in labelled]
    return per_query(rows, asked, gallery.labels).set_axis(labelled)


def possible(methods: dict[str, Method], queries: EmbeddedSet) -> dict[str, Method]:
    """Return the methods whose vectors are there."""
    found = {}
    for name, method in methods.items():
        needed = set().union(*map(vectors_of, method.representations))
        if needed <= queries.vectors(method.level).keys():
            found[name] = method
    return found


def choose(method: Method, val: EmbeddedSet | None, gallery: EmbeddedSet, depth: int = 100
           ) -> tuple[str, dict[str, float]]:
    """Return the representation with the best standard mAP@10 on val, and the figure of each;
    without a labelled val, the first representation and no figures."""
    tried = {}
    for name in method.representations if val else ():
        rankings = rank(val, gallery, method.level, name, depth)
        scores = score(rankings, val, gallery)
        tried[name] = scores["standard", "mAP@10"].mean()
    best = max(tried, key=tried.get, default=method.representations[0])
    return best, tried
