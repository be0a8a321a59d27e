"""From regions and captions to rankings: vectors, the faiss index, one list per query.

A query is asked per image (all regions and the caption make one vector) or per instance (each detected product makes
a vector with the caption, and the lists are merged). The paper speaks of instances, the released code makes one
vector per image; both are here. Gallery items are embedded in the same form as the queries.
"""

from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from capture_lib.model.capture import Capture
from capture_lib.proposals.instances import InstanceSettings, instances_of
from capture_lib.retrieval import index
from capture_lib.retrieval.index import Index
from capture_lib.retrieval.metrics import per_query
from capture_lib.training.batches import Pairs
from capture_lib.utils import write_atomically

Vectors = dict[str, np.ndarray]  # named vectors of the same n things, (n, ·) each


@dataclass(frozen=True)
class RetrievalSettings:
    """Defaults of every profile."""

    depth: int = 100  # length of a ranking
    text_dimensions: int = 256  # of the character n-gram vectors
    matched: bool = False  # ours: vectors whitened by mined pairs (`whitening`), and the method "beyond/instance"
    index: str = "exact"  # of a live search: exact, ivf or hnsw (`index.KINDS`); an evaluation is always exact

    def __post_init__(self) -> None:
        index.known(self.index)


LEVELS = ("instance", "image")
MERGES = ("score", "rounds", "balanced")
YIELDING, YIELD = "yielding", 0.002  # ours: what a hit's score loses for each place in its instance's list


@dataclass(frozen=True)
class Method:
    """A way to search: the form of its queries, and the readings and merges that val may choose from."""

    level: str  # instance or image
    representations: tuple[str, ...]
    merges: tuple[str, ...] = MERGES
    augmented: bool = False  # the gallery, by `smooth`


@dataclass(frozen=True)
class Choice:
    """A reading, a way to merge the lists of a query's instances, and whether the gallery is smoothed."""

    representation: str
    merge: str = "score"
    augmented: bool = False


REPRESENTATIONS = {  # which blocks a reading joins; "product" multiplies the first two
    "product": ("region_pooled", "text_pooled"),
    "joint": ("region_pooled", "text_pooled"),
    "joint image": ("region_pooled",),
    "joint text": ("text_pooled",),
    "contrastive": ("region_contrastive", "text_contrastive"),
    "contrastive image": ("region_contrastive",),
    "contrastive text": ("text_contrastive",),
    "product, contrastive": ("region_pooled", "text_pooled", "region_contrastive", "text_contrastive"),
    "all": ("region_pooled", "text_pooled", "region_contrastive", "text_contrastive"),
    "regions": ("regions",),
    "words": ("words",),
} | {f"fusion {weight}": ("regions", "words") for weight in (0.2, 0.35, 0.5, 0.65, 0.8)}  # weight of the regions
PAPER = ("product",)  # H_IMG × H_TXT
REPRESENTATIONS |= {f"blend {name} {share} {weight}": (*REPRESENTATIONS[name], "regions", "words")
             for name in ("product", "joint", "contrastive", "all") for share in (0.3, 0.5, 0.7)
             for weight in (0.35, 0.5, 0.65)}  # shares: of the vectors; of the regions in the fusion beside them
BLENDS = tuple(name for name in REPRESENTATIONS if name.startswith("blend"))
OF_CAPTURE = ("product", "joint", "joint image", "contrastive", "contrastive image", "product, contrastive", "all")
METHODS = {
    "capture/instance": Method("instance", PAPER),
    "capture/image": Method("image", PAPER),
    "capture-chosen/instance": Method("instance", OF_CAPTURE),
    "capture-chosen/image": Method("image", OF_CAPTURE),
    "image-only": Method("instance", ("regions",)),
    "text-only": Method("image", ("words",)),
    "late-fusion": Method("instance", tuple(name for name in REPRESENTATIONS if name.startswith("fusion"))),
    "beyond/instance": Method("instance", BLENDS, (YIELDING,), augmented=True),  # ours, of matched vectors
}


@dataclass(frozen=True)
class EmbeddedSet:
    """The queries of a split, or the gallery, as vectors in both forms."""

    ids: list[str]
    labels: list[list[str]]
    captions: list[str]
    owners: np.ndarray  # (n,) int64: which of the ids instance i belongs to
    regions: np.ndarray  # (n,) int64: which region of its photo instance i is
    image: Vectors  # one row an id
    instance: Vectors  # one row an instance

    def vectors(self, level: str) -> Vectors:
        """The vectors of a form, "image" or "instance"."""
        return self.image if level == "image" else self.instance


@dataclass(frozen=True)
class Ranking:
    """The answer to one query, best first: gallery rows, scores (cosine), and the instance that each hit came from."""

    rows: np.ndarray
    scores: np.ndarray
    instances: np.ndarray


# ----------------------------------------------------------------------------------------------- vectors


class Words:
    """Captions as character n-gram vectors, the text-only baseline: TF-IDF of 1- to 3-grams, reduced by SVD."""

    def __init__(self, captions: list[str], settings: RetrievalSettings, seed: int) -> None:
        self.tfidf = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        counts = self.tfidf.fit_transform(captions)
        self.svd = TruncatedSVD(min(settings.text_dimensions, min(counts.shape) - 1), random_state=seed).fit(counts)

    def vectors(self, captions: list[str]) -> np.ndarray:
        """(n, D) float32."""
        return self.svd.transform(self.tfidf.transform(captions)).astype(np.float32)


@torch.inference_mode()
def embed(model: Capture, pairs: Pairs, chosen: np.ndarray, regions: np.ndarray | None, batch: int = 256) -> Vectors:
    """The model's four vectors of pairs `chosen` (n,), each with all regions or with the one in `regions` (n,)."""
    device = next(model.parameters()).device
    names = ("text_pooled", "region_pooled", "text_contrastive", "region_contrastive")
    parts = []
    for first in range(0, len(chosen), batch):
        here = slice(first, first + batch)
        inputs = pairs.batch(chosen[here], None if regions is None else regions[here])
        out = model(**{name: value.to(device) for name, value in inputs.items()})
        parts.append([out[name].float().cpu().numpy() for name in names])
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def embed_samples(table: pd.DataFrame, pairs: Pairs, model: Capture | None, words: Words | None,
               settings: InstanceSettings, single: bool, levels: Collection[str] = LEVELS) -> EmbeddedSet:
    """Embeds the samples of `table`, whose rows are those of `pairs`; `single`: each photo shows one product.

    Without a model, or without words, their blocks are left out, and the methods that need them with them; so are the
    model's of a form that nobody asks for.
    """
    if single:
        owners, regions = np.arange(len(pairs.rows)), np.zeros(len(pairs.rows), np.int64)
    else:
        owners, regions = instances_of(pairs.store, pairs.rows, settings)
    image = embed(model, pairs, np.arange(len(pairs.rows)), None) if model and "image" in levels else {}
    instance = embed(model, pairs, owners, regions) if model and "instance" in levels else {}
    instance["regions"] = np.asarray(pairs.store.features[pairs.rows[owners], regions], np.float32)
    if words:
        image["words"] = words.vectors(list(table["caption"]))
        instance["words"] = image["words"][owners]
    return EmbeddedSet(list(table["sample_id"]), list(table["labels"]), list(table["caption"]), owners, regions, image,
                instance)


def read(vectors: Vectors, representation: str) -> np.ndarray:
    """The vectors (n, ·) float32, of length 1, that a reading takes from the blocks."""
    if representation.startswith("blend"):
        _, name, share, weight = representation.split()
        raw = read(vectors, f"fusion {weight}")
        return np.concatenate([float(share) ** 0.5 * read(vectors, name), (1 - float(share)) ** 0.5 * raw], 1)
    parts = [unit(vectors[name]) for name in REPRESENTATIONS[representation]]
    if representation.startswith("product"):
        parts = [unit(parts[0] * parts[1]), *parts[2:]]
    if representation.startswith("fusion"):  # the cosine of the whole is then the weighted mean of the two cosines
        weight = float(representation.split()[1])
        parts = [np.sqrt(weight) * parts[0], np.sqrt(1 - weight) * parts[1]]
    return unit(np.concatenate(parts, 1))


def smooth(vectors: np.ndarray, neighbours: int = 4, share: float = 0.6) -> np.ndarray:
    """Vectors (n, D) of length 1, each moved towards the mean of its nearest, itself among them; of length 1 again.

    Photos of one product then stand closer together. Database-side feature augmentation, as Turcot and Lowe (2009)
    and Arandjelović and Zisserman (2012) do for one photo's neighbours. Sizes as val has chosen; it hardly moves
    between 3 and 6 neighbours.
    """
    _, near = search(vectors, vectors, min(neighbours, len(vectors)))
    return unit((1 - share) * vectors + share * unit(vectors[near].mean(1)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1; a zero row stays zero."""
    return normalize(vectors).astype(np.float32)


# ---------------------------------------------------------------------------------------------- rankings


def search(gallery: np.ndarray, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search by inner product: scores and gallery rows, (n, depth) each, best first."""
    return exact(gallery).search(queries, depth)


def exact(gallery: np.ndarray) -> Index:
    """An exact index that holds vectors (n, D) by their row."""
    made = index.make("exact", gallery.shape[1])
    made.add(np.arange(len(gallery)), gallery)
    return made


def rank(queries: EmbeddedSet, gallery: EmbeddedSet, level: str, choice: Choice, depth: int = 100) -> list[Ranking]:
    """One ranking for each query of a side."""
    return rank_in(held(gallery, level, choice), queries, level, choice, depth)


def held(gallery: EmbeddedSet, level: str, choice: Choice) -> Index:
    """An exact index of the gallery by its row, as a choice reads it."""
    vectors = read(gallery.vectors(level), choice.representation)
    return exact(smooth(vectors) if choice.augmented else vectors)


def rank_in(items: Index, queries: EmbeddedSet, level: str, choice: Choice, depth: int = 100) -> list[Ranking]:
    """One ranking for each query of a side, from an index that holds the gallery by the same form and reading."""
    scores, rows = items.search(read(queries.vectors(level), choice.representation), depth)
    return merge_all(queries, level, rows, scores, choice.merge, depth)


def merge_all(queries: EmbeddedSet, level: str, rows: np.ndarray, scores: np.ndarray, how: str, depth: int) -> list[Ranking]:
    """One ranking for each query of a side, from the lists (n, depth) of all that was asked in a form."""
    owners = np.arange(len(queries.ids)) if level == "image" else queries.owners
    firsts = np.searchsorted(owners, np.arange(len(queries.ids) + 1))
    return [merge(rows[low:high], scores[low:high], how, depth) for low, high in zip(firsts, firsts[1:], strict=False)]


def merge(rows: np.ndarray, scores: np.ndarray, how: str, depth: int) -> Ranking:
    """Merges the lists of a query's instances, (k, depth) each; every gallery row keeps its first place only.

    Args:
        how: "score" sorts all hits by their score, which suits mAP. "rounds" takes the first of each list, then the
            second …; an instance whose hit stands there already has lost its turn. "balanced" lets each instance bring
            its next hit that isn't there yet in every turn, the better score first: all instances have the same share,
            as mAR expects, until a list is used up. "yielding" (ours) sorts by score less 0.002 for every place in its
            list: an instance that has brought many hits gives way to one that has brought few.
    """
    if how == "balanced":
        kept = take_turns(rows.tolist(), scores.tolist(), depth)
        return Ranking(rows.ravel()[kept], scores.ravel()[kept], kept // rows.shape[1])
    place = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    by = {"score": -scores, YIELDING: YIELD * place - scores}.get(how, place)
    order = np.argsort(by, axis=None, kind="stable")
    if how == "rounds":  # within a round, the better score first
        order = np.lexsort((-scores.ravel(), place.ravel()))
    _, first = np.unique(rows.ravel()[order], return_index=True)
    kept = order[np.sort(first)][:depth]
    return Ranking(rows.ravel()[kept], scores.ravel()[kept], kept // rows.shape[1])


def take_turns(rows: list[list[int]], scores: list[list[float]], depth: int) -> np.ndarray:
    """Where in the lists of a query's instances, laid end to end, the hits of "balanced" stand, (≤ depth,) int64.

    Every list has the same length and its best score first; instances that are tied take turns in their order.
    """
    width, seen, kept = len(rows[0]), set(), []
    nexts = [(0, -own[0], instance, 0) for instance, own in enumerate(scores) if own]
    heapify(nexts)
    while nexts and len(kept) < depth:
        turn, _, instance, place = nexts[0]
        if rows[instance][place] not in seen:
            seen.add(rows[instance][place])
            kept.append(instance * width + place)
            turn += 1  # this instance has brought its hit
        if place + 1 < width:
            heapreplace(nexts, (turn, -scores[instance][place + 1], instance, place + 1))
        else:
            heappop(nexts)
    return np.array(kept, np.int64)


def chance(queries: EmbeddedSet, gallery: EmbeddedSet, depth: int, seed: int) -> list[Ranking]:
    """A random ranking for each query: what a figure is without any knowledge."""
    rng = np.random.default_rng([seed, 4])
    most = min(depth, len(gallery.ids))
    return [Ranking(rng.permutation(len(gallery.ids))[:most], np.zeros(most), np.zeros(most, int))
            for _ in queries.ids]


def write_hits(file: Path, queries: EmbeddedSet, gallery: EmbeddedSet, rankings: list[Ranking]) -> None:
    """Writes a parquet with a row a hit: query_id, rank (from 1), gallery_id, score, instance (counted from 0)."""
    parts = [pd.DataFrame({"query_id": query, "rank": np.arange(1, len(ranking.rows) + 1),
                           "gallery_id": [gallery.ids[row] for row in ranking.rows], "score": ranking.scores,
                           "instance": ranking.instances})
             for query, ranking in zip(queries.ids, rankings, strict=True)]
    with write_atomically(file) as beside:
        pd.concat(parts, ignore_index=True).to_parquet(beside)


def score(rankings: list[Ranking], queries: EmbeddedSet, gallery: EmbeddedSet) -> pd.DataFrame:
    """Every figure for every query, both definitions (`metrics.per_query`)."""
    gallery_labels = [labels[0] if labels else "" for labels in gallery.labels]  # no query asks for an empty label
    return per_query([ranking.rows for ranking in rankings], queries.labels, gallery_labels)


def possible_methods(queries: EmbeddedSet, matched: bool = False) -> dict[str, Method]:
    """The methods whose blocks the data gives: without captions, say, there is no text to search by.

    `matched`: the vectors are whitened, and our own method is among them.
    """
    return {name: method for name, method in METHODS.items() if matched or not method.augmented
            if set(REPRESENTATIONS[method.representations[0]]) <= set(queries.image if method.level == "image" else queries.instance)}


def choose(method: Method, val: EmbeddedSet | None, gallery: EmbeddedSet, depth: int = 100) -> tuple[Choice, dict[str, float]]:
    """The reading and merge with the best standard mAP@10 on val, and the figure of each that was tried.

    Without a labelled val, the first reading, merged by score.
    """
    merges = method.merges if method.level == "instance" else method.merges[:1]
    options = [Choice(representation, how, method.augmented) for representation in method.representations for how in merges]
    if val is None:
        return options[0], {}
    figures = []
    for representation in method.representations:  # searched once, merged in every way
        items = held(gallery, method.level, Choice(representation, augmented=method.augmented))
        scores, rows = items.search(read(val.vectors(method.level), representation), depth)
        figures += [score(merge_all(val, method.level, rows, scores, how, depth), val, gallery)
                    ["standard", "mAP@10"].mean() for how in merges]
    tried = {f"{option.representation}, {option.merge}": float(figure)
             for option, figure in zip(options, figures, strict=True)}
    return options[int(np.argmax(figures))], tried
