"""Vectors of photos (as in the released code) or of each instance (as in the paper)."""

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from capture_lib.model.capture import Capture
from capture_lib.proposals.instances import InstanceSettings, instances_of
from capture_lib.training.batches import Pairs
from capture_lib.utils import read_text, write_json

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
    embedder: str = ""  # an image-text model of transformers, a name or a folder, whose vectors are compared too


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
    texts = set()
    seen = set()
    shared = set()
    for text in map(letters, captions):
        if len(text) > 1:
            texts.add(text)
            shared |= seen.intersection(text)
            seen.update(text)
        if len(texts) > 1 and len(shared) > 1:  # most often after a few captions
            return True
    return False


class Words:
    """Character n-gram vectors, the text-only baseline: TF-IDF, reduced by an SVD; zeros of captions without text."""

    def __init__(self, captions: list[str], settings: RetrievalSettings, seed: int) -> None:
        self.columns: dict[str, int] = {}  # of V n-grams
        self.rarity = np.zeros(0)  # (V,) inverse document frequencies
        self.directions = np.zeros((0, 1))  # (V, D)
        if not carry_text(captions):
            return
        from sklearn.decomposition import TruncatedSVD  # slow to import
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        counts = tfidf.fit_transform(captions)
        width = min(settings.text_dimensions, min(counts.shape) - 1)
        with np.errstate(invalid="ignore"):  # a share of no variance, of two captions
            svd = TruncatedSVD(width, random_state=seed).fit(counts)
        self.columns = tfidf.vocabulary_
        self.rarity = tfidf.idf_
        self.directions = np.ascontiguousarray(svd.components_.T)

    def save(self, folder: Path) -> None:
        """Write what was fitted into a folder."""
        write_json(folder / "n-grams.json", sorted(self.columns, key=self.columns.get))
        np.save(folder / "rarity.npy", self.rarity)
        np.save(folder / "directions.npy", self.directions)

    @classmethod
    def load(cls, folder: Path) -> "Words":
        """Return what `save` wrote; nothing is fitted, and of the directions only rows in use are read."""
        words = cls([], RetrievalSettings(), 0)
        grams = json.loads(read_text(folder / "n-grams.json"))
        words.columns = {gram: column for column, gram in enumerate(grams)}
        words.rarity = np.load(folder / "rarity.npy")
        words.directions = np.load(folder / "directions.npy", mmap_mode="r")
        return words

    def vectors(self, captions: list[str]) -> ndarray:
        """Return vectors (n, D) float32, zero where no n-gram is known: scikit-learn's, which need not be imported."""
        vectors = np.zeros((len(captions), self.directions.shape[1]), np.float32)
        for row, caption in enumerate(captions):
            # count its n-grams
            text = re.sub(r"\s\s+", " ", caption.lower())
            grams = Counter(text[start:start + n] for n in (1, 2, 3) for start in range(len(text) - n + 1))
            counts = {self.columns[gram]: count for gram, count in grams.items() if gram in self.columns}
            if not counts:
                continue
            # TF-IDF, of length 1: squares are added one by one, as scikit-learn does
            columns = sorted(counts)
            weights = (np.log([counts[column] for column in columns]) + 1) * self.rarity[columns]
            weights /= np.sqrt(np.cumsum(weights ** 2)[-1])
            vectors[row] = (weights[:, None] * self.directions[columns]).sum(0)
        return vectors


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
    owners, regions = instances_of(pairs.store, pairs.rows, settings, single)

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


def save_set(samples: EmbeddedSet, folder: Path) -> None:
    """Write all arrays of an embedded set into a folder."""
    for level in LEVELS:
        (folder / level).mkdir(parents=True)
        for name, rows in samples.vectors(level).items():
            np.save(folder / level / f"{name}.npy", rows)
    for name in ("owners", "regions", "boxes"):
        np.save(folder / f"{name}.npy", getattr(samples, name))


def load_set(table: pd.DataFrame, folder: Path) -> EmbeddedSet:
    """Return the embedded set that was written of the samples of `table`; arrays are read when they are used."""
    read = partial(np.load, mmap_mode="r")
    arrays = [read(folder / f"{name}.npy") for name in ("owners", "regions", "boxes")]
    levels = {}
    for level in LEVELS:
        levels[level] = {file.stem: read(file) for file in sorted((folder / level).glob("*.npy"))}
    return EmbeddedSet(list(table["sample_id"]), list(table["labels"]), *arrays, **levels)


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
