"""Vectors of photos (as in the released code) or of each instance (as in the paper)."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from capture_lib.model.capture import Capture
from capture_lib.proposals.instances import InstanceSettings, instances_of
from capture_lib.training.batches import Pairs

Vectors = dict[str, ndarray]  # named vectors of the same n things, (n, ·) each
LEVELS = ("instance", "image")
PARTS = {  # of the model's vectors; a part of another name is the vectors of that name
    "joint": ("region_pooled", "text_pooled"),  # H_IMG and H_TXT
    "contrastive": ("region_contrastive", "text_contrastive"),
}
OUTPUTS = ("region_pooled", "text_pooled", "region_contrastive", "text_contrastive")


@dataclass(frozen=True)
class RetrievalSettings:
    """Defaults of every profile."""

    depth: int = 100  # length of a ranking
    text_dimensions: int = 256  # of the character n-gram vectors


@dataclass(frozen=True)
class EmbeddedSet:
    """The queries of a split, or the gallery, embedded at both levels."""

    ids: list[str]
    labels: list[list[str]]
    owners: ndarray  # (n,) int64: which of the ids instance i belongs to
    regions: ndarray  # (n,) int64: which region of its photo instance i is
    boxes: ndarray  # (n, 4) of the instances, xyxy fractions
    image: Vectors  # one row an id
    instance: Vectors  # one row an instance

    def vectors(self, level: str) -> Vectors:
        """Return the vectors of a level, "image" or "instance"."""
        return self.image if level == "image" else self.instance


def letters(caption: str) -> str:
    """Return the letters and digits of a caption."""
    return "".join(re.findall(r"\w", caption.lower()))


def carry_text(captions: list[str]) -> bool:
    """Return whether captions differ, and share two letters or more; "-", "无" or an emoji stands for no caption."""
    texts = [text for text in map(letters, captions) if len(text) > 1]
    counts = Counter(character for text in texts for character in set(text))
    shared = [character for character, count in counts.items() if count > 1]
    return len(set(texts)) > 1 and len(shared) > 1


class Words:
    """Character n-gram vectors, the text-only baseline: TF-IDF, reduced by an SVD; zeros of captions without text."""

    def __init__(self, captions: list[str], settings: RetrievalSettings, seed: int) -> None:
        from sklearn.decomposition import TruncatedSVD  # slow to import
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.svd = None
        if not carry_text(captions):
            return
        self.tfidf = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        counts = self.tfidf.fit_transform(captions)
        width = min(settings.text_dimensions, min(counts.shape) - 1)
        with np.errstate(invalid="ignore"):  # a share of no variance, of two captions
            self.svd = TruncatedSVD(width, random_state=seed).fit(counts)

    def vectors(self, captions: list[str]) -> ndarray:
        """Return vectors (n, D) float32, zero where no n-gram is known."""
        if not self.svd:
            return np.zeros((len(captions), 1), np.float32)
        return self.svd.transform(self.tfidf.transform(captions)).astype(np.float32)


@torch.inference_mode()
def embed(model: Capture, pairs: Pairs, chosen: ndarray, regions: ndarray | None,
          batch: int = 256) -> Vectors:
    """Return the model's vectors (n, E) of pairs (n,), of one region each or of all.

    Those of one region have its own output token too, `region_token`.
    """
    device = next(model.parameters()).device
    vectors = {}
    for start in range(0, len(chosen), batch):
        part = slice(start, start + batch)
        inputs = pairs.batch(chosen[part], None if regions is None else regions[part])
        outputs = model(**{name: value.to(device) for name, value in inputs.items()})
        found = {name: outputs[name] for name in OUTPUTS}
        if regions is not None:
            found["region_token"] = outputs["region_sequence"][:, 1]
        for name, rows in found.items():
            vectors.setdefault(name, []).append(rows.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in vectors.items()}


def embed_samples(table: pd.DataFrame, pairs: Pairs, model: Capture | None,
                  words: Words | None, settings: InstanceSettings, single: bool,
                  levels: Collection[str] = LEVELS) -> EmbeddedSet:
    """Embed the samples of `table`, the rows of `pairs`, by what there is of model and words;
    where each photo shows a `single` product, its best region is the instance."""
    rows = np.arange(len(pairs.rows))
    owners, regions = rows, np.zeros_like(rows)
    if not single:
        owners, regions = instances_of(pairs.store, pairs.rows, settings)

    # the model's vectors
    image = embed(model, pairs, rows, None) if model and "image" in levels else {}
    instance = embed(model, pairs, owners, regions) if model and "instance" in levels else {}

    # region features and n-grams, which need no model
    places = pairs.rows[owners], regions
    features = pairs.store.features[places]
    instance["regions"] = np.asarray(features, np.float32)
    if words:
        image["words"] = words.vectors(list(table["caption"]))
        instance["words"] = image["words"][owners]
    return EmbeddedSet(list(table["sample_id"]), list(table["labels"]), owners, regions,
                       pairs.store.boxes[places], image, instance)


def represent(vectors: Vectors, name: str) -> ndarray:
    """Return a representation as rows (n, ·): parts side by side, as in "0.7 regions + 0.3 words".

    Rows have length 1, and their cosine is the weighted mean of the parts' cosines. Two names are
    H_IMG times H_TXT: "product", and "raw product", of which no row is scaled.
    """
    if name == "raw product":
        return vectors["region_pooled"] * vectors["text_pooled"]
    columns = []
    for term in name.split(" + "):
        weight, _, part = term.rpartition(" ")
        if part == "product":
            blocks = [unit(vectors["region_pooled"]) * unit(vectors["text_pooled"])]
        else:
            blocks = [unit(vectors[block]) for block in PARTS.get(part, (part,))]
        rows = unit(np.concatenate(blocks, 1))
        columns.append(rows * np.float32(weight or 1) ** 0.5)
    return unit(np.concatenate(columns, 1))


def vectors_of(name: str) -> set[str]:
    """Return the names of the vectors that a representation is made of."""
    found = set()
    for term in name.split(" + "):
        part = term.rpartition(" ")[2]
        found.update(PARTS.get("joint" if part == "product" else part, (part,)))
    return found


def unit(vectors: ndarray) -> ndarray:
    """Scale rows (n, D) to length 1, as float32; a zero row stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    lengths[lengths == 0] = 1
    return (vectors / lengths[:, None]).astype(np.float32)
