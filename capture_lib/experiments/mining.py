"""Pairs of photos of one product, mined without labels: what WCCN learns from (notebook 08)."""

from dataclasses import dataclass

import numpy as np

from capture_lib.proposals.instances import InstanceSettings, find_instances
from capture_lib.retrieval.embedding import RetrievalSettings, Words, unit
from capture_lib.retrieval.ranking import build_index
from capture_lib.training.batches import Pairs
from capture_lib.utils import say

MIN_PARTS = 32  # fewer photos of one product are too few to learn from
NEIGHBOURS = 10  # photos that count as showing the same product
WEIGHT = 0.65  # of the region features in the similarity that finds them, as val chose; words have the rest


@dataclass(frozen=True)
class Mined:
    """Photos that show one product, and their nearest neighbours."""

    parts: np.ndarray  # (S,) int64: rows of the pairs whose photo shows one instance
    near: np.ndarray  # (S, 10) int64: for each, the nearest others among the S


def mine_neighbours(pairs: Pairs, captions: list[str], seed: int) -> Mined | None:
    """Return the photos of one product with their nearest neighbours by regions and words together.

    A photo with one instance and its caption speak of one product; where both modalities agree,
    another photo likely shows the same. No label, product or true box is read.

    Returns:
        None, with a line that says so, where too few photos show one product.
    """
    store = pairs.store
    single = []
    for row in pairs.rows:
        count = store.counts[row]
        instances = find_instances(store.boxes[row, :count], store.scores[row, :count], InstanceSettings())
        single.append(len(instances) == 1)
    parts = np.flatnonzero(single)
    if len(parts) < MIN_PARTS:
        say(f"{len(parts)} photos show one product, fewer than {MIN_PARTS}: no pairs are mined")
        return None

    # put regions and words side by side: the cosine is the weighted mean of both
    texts = [captions[part] for part in parts]
    words = unit(Words(texts, RetrievalSettings(), seed).vectors(texts))
    regions = unit(np.asarray(store.features[pairs.rows[parts], 0], np.float32))
    fused = np.concatenate([WEIGHT ** 0.5 * regions, (1 - WEIGHT) ** 0.5 * words], 1)

    # drop each photo from its own neighbours, or the last one where it is not among them
    near = build_index(fused).search(fused, NEIGHBOURS + 1)[1]
    itself = near == np.arange(len(parts))[:, None]
    itself[~itself.any(1), -1] = True
    return Mined(parts, near[~itself].reshape(len(parts), NEIGHBOURS))
