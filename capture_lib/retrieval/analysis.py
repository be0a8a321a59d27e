"""A closer look at retrieval: neighbours in the gallery, precision at every rank, kinds of mistakes, attention.

Labels say more than "right" and "wrong": "BRAND line, claim, kind and shade" in one line of text. What is read from
them here (`parse_label`) is read from the text alone, so it works for the rendered world and for Product1M's lists;
where a label does not say its brand or its kind, both are unknown and nothing is made up.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE

from capture_lib.model.capture import Capture
from capture_lib.retrieval.embedding import METHODS, Choice, EmbeddedSet, Ranking, read, search
from capture_lib.retrieval.metrics import CUTOFFS, RESAMPLES, Rankings, judge
from capture_lib.training.batches import Pairs

NEIGHBOURS = 10  # of a gallery photo
KIND_WORDS = {  # general words of cosmetics shops; of those in a label, the one that ends last says the kind
    "toner": "水 爽肤水 柔肤水 化妆水 洁肤水 润肤水 精华水",
    "lotion": "乳 乳液 精华乳 保湿乳 润肤乳",
    "serum": "精华 精华液 精华露 精华油 原液 肌底液 美容液",
    "cream": "霜 面霜 日霜 晚霜 凝霜",
    "eye care": "眼霜 眼部精华",
    "cleanser": "洁面 洁面乳 洁面膏 洁面霜 洁面啫喱 洁面皂 洗面奶 洗颜霜",
    "mask": "面膜", "sunscreen": "防晒 防晒霜 防晒乳 防晒液", "ampoule": "安瓶 安瓶精华", "gift set": "礼盒",
    "mist": "喷雾", "remover": "卸妆水 卸妆油 卸妆乳 卸妆啫喱",
    "lipstick": "口红 唇膏", "lip gloss": "唇釉 唇蜜", "lip balm": "润唇膏 护唇膏",
    "cushion, powder": "气垫 粉饼", "foundation": "粉底 粉底液", "eye shadow": "眼影 眼影盘", "mascara": "睫毛膏",
    "brow, eyeliner": "眉笔 眼线笔", "hand cream": "护手霜", "body care": "沐浴露 身体乳 身体霜",
    "hair care": "洗发水 护发素", "hand wash": "洗手液", "perfume": "香水",
}
KIND_OF = {word: kind for kind, words in KIND_WORDS.items() for word in words.split()}


# ------------------------------------------------------------------------------------------- what labels say


@dataclass(frozen=True)
class Named:
    """What a label says; brand and kind are empty where it doesn't. `product` is the label up to its kind."""

    brand: str
    kind: str
    product: str


@lru_cache(maxsize=100_000)
def parse_label(label: str) -> Named:
    """Reads a label: the brand is the first of several words, the kind the word of `KIND_OF` that ends last.

    What follows the kind's word is a size, shade or scent: labels that differ there alone have the same `product`.
    """
    brand, _, name = label.strip().partition(" ")
    if not name.strip():
        brand, name = "", label
    ends = [(name.rfind(word) + len(word), len(word), word) for word in KIND_OF if word in name]
    if not ends:
        return Named(brand, "", label)
    end, _, word = max(ends)
    return Named(brand, KIND_OF[word], f"{brand} {name[:end].strip()}".strip())


def groups(labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels, brands and kinds (n,) of the same things, empty strings where unknown.

    One that less than half of the labels tell, or in which all are alike or no two are, is left out.
    """
    read = [parse_label(label) for label in labels]
    found = {"label": list(labels), "brand": [named.brand for named in read], "kind": [named.kind for named in read]}
    return {name: np.array(values, object) for name, values in found.items()
            if sum(map(bool, values)) * 2 >= len(values) and 1 < len(set(values) - {""}) < sum(map(bool, values))}


def first_labels(side: EmbeddedSet) -> list[str]:
    """The one label of each photo of a gallery, empty where unknown."""
    return [labels[0] if labels else "" for labels in side.labels]


# ------------------------------------------------------------------------------ the gallery against itself


def neighbours(vectors: np.ndarray, asked: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The k nearest rows to each of the rows `asked` (q,) among vectors (n, D) of length 1, itself left out: (q, k).

    Fewer where there are no k others.
    """
    _, rows = search(vectors, vectors[asked], min(k, len(vectors) - 1) + 1)
    itself = rows == asked[:, None]
    itself[~itself.any(1), -1] = True  # more than k others are as near as itself: the last has to go
    return rows[~itself].reshape(len(asked), -1)


def random_neighbours(count: int, asked: np.ndarray, k: int, seed: int) -> np.ndarray:
    """What chance gives in place of `neighbours`: k other rows of `count`, (q, k)."""
    rng = np.random.default_rng([seed, 5])
    rows = np.stack([rng.choice(count - 1, min(k, count - 1), replace=False) for _ in asked])
    return rows + (rows >= asked[:, None])


def alike(near: np.ndarray, asked: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `asked` whose group is known, the share of its neighbours in its group, and what chance gives.

    Args:
        near: (q, k) neighbours of the rows `asked` (q,).
        of: (n,) the group of every row, empty where unknown.
    """
    known = of[asked] != ""
    asked, near = asked[known], near[known]
    size = pd.Series(of).map(Counter(of)).to_numpy()[asked]
    return (of[near] == of[asked][:, None]).mean(1), (size - 1) / (len(of) - 1)


def single_product(gallery: EmbeddedSet, choices: dict[str, Choice], seed: int) -> dict[str, pd.DataFrame]:
    """Every gallery photo asks the others, by each method and by chance; none finds itself.

    Photos whose label no other one has, or that have none, are not asked.

    Returns:
        by method standard mAP@10 and R@1 as fractions; the index says which gallery row asked. Empty where none can.
    """
    labels = first_labels(gallery)
    count = Counter(labels)
    asked = np.flatnonzero([label != "" and count[label] > 1 for label in labels])
    if not len(asked):
        return {}
    near = {}
    for name, choice in choices.items():
        vectors = gallery.image if METHODS[name].level == "image" else gallery.instance
        near[name] = neighbours(read(vectors, choice.representation), asked)
    near["chance"] = random_neighbours(len(labels), asked, NEIGHBOURS, seed)
    return {name: score_neighbours(rows, asked, labels) for name, rows in near.items()}


def score_neighbours(near: np.ndarray, asked: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Standard mAP@10 and R@1 of each of the rows `asked` (q,) with neighbours `near` (q, 10), best first."""
    held = np.array(labels, object)
    hit = held[near] == held[asked][:, None]  # (q, k)
    precision = hit.cumsum(1) / np.arange(1, hit.shape[1] + 1)
    others = pd.Series(held).map(Counter(labels)).to_numpy()[asked] - 1
    return pd.DataFrame({"mAP@10": (hit * precision).sum(1) / np.minimum(others, NEIGHBOURS),
                         "R@1": hit[:, 0].astype(float)}, index=asked)


def flat_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """A t-SNE picture of vectors (n, D) by their cosines, n > 3: (n, 2)."""
    perplexity = min(30, (len(vectors) - 1) / 3)
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed).fit_transform(vectors)


# ------------------------------------------------------------------------- one list for all; every rank


def popular(val_labels: Sequence[list[str]], gallery_labels: Sequence[str], depth: int) -> np.ndarray:
    """The popularity baseline: one list for every query, gallery rows (depth,) at most.

    First stand all photos of the label that most val queries ask for, then all of the next; equal ones in the order
    of the gallery. By the standard definition no list for all does better at mAP@10 where every label has ten photos
    and val asks as test does. One photo of each label in turn finds more different products, and by the released
    definition, which forgives misses, it does better.
    """
    asked = Counter(label for labels in val_labels for label in set(labels))
    first = {label: row for row, label in reversed(list(enumerate(gallery_labels)))}
    order = sorted(range(len(gallery_labels)),
                   key=lambda row: (-asked[gallery_labels[row]], first[gallery_labels[row]], row))
    return np.array(order[:depth], np.int64)


def precision_at(rankings: Rankings, query_labels: Sequence[list[str]], gallery_labels: Sequence[str]) -> np.ndarray:
    """Standard Prec@k of each query for k = 1 … 100: (Q, 100); arguments as for `metrics.per_query`."""
    return judge(rankings, query_labels, gallery_labels).hits[:, 1:] / np.arange(1, max(CUTOFFS) + 1)


def best_precision(query_labels: Sequence[list[str]], gallery_labels: Sequence[str]) -> np.ndarray:
    """The Prec@k of a ranking without mistakes, (Q, 100): it falls where the right photos are used up."""
    held, places = Counter(gallery_labels), np.arange(1, max(CUTOFFS) + 1)
    positives = np.array([sum(held[label] for label in set(labels)) for labels in query_labels])
    return np.minimum(places, positives[:, None]) / places


# --------------------------------------------------------------------------------------------- mistakes

# how near a hit comes to what a query asks for: the first that fits
SORTS = ("right", "another size or shade", "same brand and kind", "same brand", "same kind", "unknown", "neither")


def sort_of(hit: str, asked: str) -> int:
    """Which of SORTS the label of a hit is, when the label `asked` is looked for; scents count as shades.

    "neither" is said only where both labels tell brand and kind.
    """
    found, wanted = parse_label(hit), parse_label(asked)
    brand, kind = found.brand == wanted.brand != "", found.kind == wanted.kind != ""
    untold = "" in (found.brand, found.kind, wanted.brand, wanted.kind)
    same_product = brand and kind and found.product == wanted.product
    return (hit == asked != "", same_product, brand and kind, brand, kind, untold, True).index(True)


def closest(query_labels: Sequence[list[str]], names: Sequence[str]) -> np.ndarray:
    """How near each label of `names` comes to a query: its SORTS index under the query's nearest label, (Q, L)."""
    asked = sorted({label for labels in query_labels for label in labels})
    place = {label: row for row, label in enumerate(asked)}
    table = np.array([[sort_of(name, label) for name in names] for label in [*asked, ""]], np.int8)
    return np.stack([table[[place[label] for label in labels] or [-1]].min(0) for labels in query_labels])


def sorts_of_hits(rankings: Sequence[Ranking], query_labels: Sequence[list[str]], gallery_labels: Sequence[str],
                  depth: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """How many of the first `depth` hits of each query are of each sort, and how many of the whole gallery: (Q, S)."""
    names, number = np.unique(np.array(gallery_labels, str), return_inverse=True)
    near, held = closest(query_labels, names.tolist()), np.bincount(number, minlength=len(names))
    hits = [np.bincount(row[number[ranking.rows[:depth]]], minlength=len(SORTS))
            for row, ranking in zip(near, rankings, strict=True)]
    return np.stack(hits), np.stack([np.bincount(row, held, len(SORTS)) for row in near])


def shares_of_wrong(counts: np.ndarray, held: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]] | None:
    """Of all wrong hits, the share of each sort but "right": 95% intervals of a bootstrap over queries, and chance.

    Args:
        counts, held: (Q, S) hits and gallery items of each sort, as from `sorts_of_hits`.

    Returns:
        `{value, low, high, chance}` by sort; chance: each query's wrong hits drawn from the wrong items of the
        gallery instead. None where no hit is wrong.
    """
    wrong, others = counts[:, 1:], held[:, 1:]
    if not wrong.sum():
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(wrong), np.full(len(wrong), 1 / len(wrong)), RESAMPLES) @ wrong  # (resamples, S - 1)
    low, high = np.percentile(drawn / np.maximum(drawn.sum(1, keepdims=True), 1), [2.5, 97.5], axis=0)
    blind = wrong.sum(1) @ (others / np.maximum(others.sum(1, keepdims=True), 1)) / wrong.sum()
    columns = zip(wrong.sum(0) / wrong.sum(), low, high, blind, strict=True)
    return {name: dict(zip(("value", "low", "high", "chance"), map(float, column), strict=True))
            for name, column in zip(SORTS[1:], columns, strict=True)}


def confused(rankings: Sequence[Ranking], query_labels: Sequence[list[str]], gallery_labels: Sequence[str],
             depth: int = 10) -> pd.DataFrame:
    """Which label was asked for and which was found in its place, the most frequent pair first.

    A wrong hit counts for the label of its query that it comes nearest to; where two come equally near it is left
    out, for then nobody can tell which was meant.
    """
    pairs: Counter[tuple[str, str, str]] = Counter()
    for ranking, labels in zip(rankings, query_labels, strict=True):
        for hit in (gallery_labels[row] for row in ranking.rows[:depth]):
            near = {label: sort_of(hit, label) for label in labels}
            best = [label for label, sort in near.items() if sort == min(near.values())]
            if len(best) == 1 and SORTS[near[best[0]]] not in ("right", "unknown", "neither"):
                pairs[best[0], hit, SORTS[near[best[0]]]] += 1
    rows = [(*pair, count) for pair, count in pairs.most_common()]
    return pd.DataFrame(rows, columns=["asked for", "found in its place", "sort", "hits"])


# -------------------------------------------------------------------------------------------- attention


@torch.inference_mode()
def attention_of(model: Capture, pairs: Pairs, chosen: np.ndarray, regions: np.ndarray | None = None
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Where H_TXT and H_IMG take their information from in the last joint layer, averaged over its heads.

    Args:
        chosen: numbers (n,) of pairs; regions: the one region (n,) that each keeps, as an instance, or None for all.

    Returns:
        weights on the tokens (n, 2, L), and on the global token and the regions (n, 2, R+1), H_TXT first. As
        multiples of an even share: 1 is what each would get if H looked everywhere alike.
    """
    device = next(model.parameters()).device
    inputs = pairs.batch(chosen, regions)
    maps = model(**{name: value.to(device) for name, value in inputs.items()}, attention=True)["attention"]["joint"]
    length = inputs["input_ids"].shape[1]
    looks = maps[-1].float().mean(1)[:, [0, length]].cpu()  # (n, 2, L+R+1), of the first token of each stream
    real = inputs["text_mask"].sum(1) + inputs["region_mask"].sum(1)
    looks = (looks * real[:, None, None]).numpy()
    return looks[:, :, :length], looks[:, :, length:]


def attention_shares(words: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Shares (n, 2, 3) of the weight of H_TXT and H_IMG on words, on regions and on the global token, from the
    weights that `attention_of` gives.
    """
    parts = np.stack([words.sum(-1), seen[..., 1:].sum(-1), seen[..., 0]], -1)
    return parts / parts.sum(-1, keepdims=True)
