"""Represent queries and gallery items by vectors: of a whole photo or of each instance.

The paper speaks of instances (detected products), the released code makes one vector an
image; both query levels are here. The gallery is embedded at the level of the queries.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from capture_lib.model.capture import Capture
from capture_lib.proposals.instances import InstanceSettings, instances_of
from capture_lib.training.batches import Pairs

Vectors = dict[str, np.ndarray]  # named vectors of the same n things, (n, ·) each
LEVELS = ("instance", "image")
POOLED = ("region_pooled", "text_pooled")  # H_IMG, H_TXT
CONTRASTIVE = ("region_contrastive", "text_contrastive")

REPRESENTATIONS = {  # the vectors that each joins; a product multiplies the first two
    "product": POOLED,
    "joint": POOLED,
    "joint image": POOLED[:1],
    "joint text": POOLED[1:],
    "contrastive": CONTRASTIVE,
    "contrastive image": CONTRASTIVE[:1],
    "contrastive text": CONTRASTIVE[1:],
    "product, contrastive": POOLED + CONTRASTIVE,
    "all": POOLED + CONTRASTIVE,
    "regions": ("regions",),
    "words": ("words",),
}
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the regions in a fusion with the words
FUSIONS = tuple(f"fusion {weight}" for weight in WEIGHTS)
SHARES = (0.3, 0.5, 0.7)  # of the model's vectors in a blend with a fusion
BLENDS = tuple(f"blend {name} {share} {weight}"
               for name in ("product", "joint", "contrastive", "all")
               for share in SHARES for weight in WEIGHTS[1:4])
REPRESENTATIONS.update({name: ("regions", "words") for name in FUSIONS})
for blend in BLENDS:
    REPRESENTATIONS[blend] = REPRESENTATIONS[blend.split()[1]] + ("regions", "words")


@dataclass(frozen=True)
class RetrievalSettings:
    """Defaults of every profile."""

    depth: int = 100  # length of a ranking
    text_dimensions: int = 256  # of the character n-gram vectors
    wccn: bool = False  # ours: map vectors by WCCN, and offer "beyond/instance"


@dataclass(frozen=True)
class EmbeddedSet:
    """The queries of a split, or the gallery, embedded at both levels."""

    ids: list[str]
    labels: list[list[str]]
    captions: list[str]
    owners: np.ndarray  # (n,) int64: which of the ids instance i belongs to
    regions: np.ndarray  # (n,) int64: which region of its photo instance i is
    image: Vectors  # one row an id
    instance: Vectors  # one row an instance

    def vectors(self, level: str) -> Vectors:
        """Return the vectors of a level, "image" or "instance"."""
        return self.image if level == "image" else self.instance


class Words:
    """Character n-gram vectors, the text-only baseline: TF-IDF, reduced by an SVD."""

    def __init__(self, captions: list[str], settings: RetrievalSettings, seed: int) -> None:
        from sklearn.decomposition import TruncatedSVD  # slow to import
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.tfidf = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        counts = self.tfidf.fit_transform(captions)
        width = min(settings.text_dimensions, min(counts.shape) - 1)
        self.svd = TruncatedSVD(width, random_state=seed).fit(counts)

    def vectors(self, captions: list[str]) -> np.ndarray:
        """Return vectors (n, D) float32, zero where no n-gram is known."""
        counts = self.tfidf.transform(captions)
        return self.svd.transform(counts).astype(np.float32)


@torch.inference_mode()
def embed(model: Capture, pairs: Pairs, chosen: np.ndarray, regions: np.ndarray | None,
          batch: int = 256) -> Vectors:
    """Return the model's four vectors, (n, E) float32 each, of pairs `chosen` (n,).

    Each pair keeps the one region in `regions` (n,), or all of them where None.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {name: [] for name in POOLED + CONTRASTIVE}
    for start in range(0, len(chosen), batch):
        part = slice(start, start + batch)
        inputs = pairs.batch(chosen[part], None if regions is None else regions[part])
        outputs = model(**{name: value.to(device) for name, value in inputs.items()})
        for name, found in parts.items():
            found.append(outputs[name].float().cpu().numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def embed_samples(table: pd.DataFrame, pairs: Pairs, model: Capture | None,
                  words: Words | None, settings: InstanceSettings, single: bool,
                  levels: Collection[str] = LEVELS) -> EmbeddedSet:
    """Embed the samples of `table`, whose rows are those of `pairs`, at some levels.

    Without a model or words, their vectors are left out. Where each photo shows a `single`
    product, its best region is the instance.
    """
    rows = np.arange(len(pairs.rows))
    owners, regions = rows, np.zeros_like(rows)
    if not single:
        owners, regions = instances_of(pairs.store, pairs.rows, settings)

    # the model's vectors
    image, instance = {}, {}
    if model and "image" in levels:
        image = embed(model, pairs, rows, None)
    if model and "instance" in levels:
        instance = embed(model, pairs, owners, regions)

    # region features and n-grams, which need no model
    features = pairs.store.features[pairs.rows[owners], regions]
    instance["regions"] = np.asarray(features, np.float32)
    captions = list(table["caption"])
    if words:
        image["words"] = words.vectors(captions)
        instance["words"] = image["words"][owners]
    return EmbeddedSet(list(table["sample_id"]), list(table["labels"]), captions,
                       owners, regions, image, instance)


def represent(vectors: Vectors, representation: str) -> np.ndarray:
    """Return a representation (n, ·) float32, rows of length 1."""
    # where two parts are weighted, cosines of the whole are the weighted means of theirs
    if representation.startswith("blend"):
        _, name, share, weight = representation.split()
        share = float(share)
        model = represent(vectors, name)
        fusion = represent(vectors, f"fusion {weight}")
        return np.concatenate([share**0.5 * model, (1 - share) ** 0.5 * fusion], 1)
    parts = [unit(vectors[name]) for name in REPRESENTATIONS[representation]]
    if representation.startswith("fusion"):
        weight = float(representation.split()[1])
        parts = [np.sqrt(weight) * parts[0], np.sqrt(1 - weight) * parts[1]]
    if representation.startswith("product"):
        parts[:2] = [unit(parts[0] * parts[1])]
    return unit(np.concatenate(parts, 1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows (n, D) to length 1, as float32; a zero row stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    lengths[lengths == 0] = 1
    return (vectors / lengths[:, None]).astype(np.float32)
