"""Answer one query: which gallery photos show the products of this photo?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from tokenizers import BertWordPieceTokenizer
from torch import nn

from capture_lib.catalog.photos import load_photo
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.instances import InstanceSettings, find_instances
from capture_lib.proposals.region_store import RegionSettings, RegionStore
from capture_lib.retrieval import embedding, ranking, wccn
from capture_lib.retrieval.embedding import EmbeddedSet, Words
from capture_lib.retrieval.ranking import Choice
from capture_lib.training.batches import BatchSettings, make_pairs
from capture_lib.utils import pick_device

BASELINE = ("image-only", Choice("regions"))


@dataclass(frozen=True)
class Item:
    """A photo of the gallery."""

    sample_id: str
    path: Path
    caption: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Hit(Item):
    """A photo of the gallery that answers a query; its score is the cosine."""

    score: float = 0.0


@dataclass(frozen=True)
class Answer:
    """The hits of each of the k instances of a photo, best first, and what was compared."""

    method: str  # of `ranking.METHODS`
    representation: str
    photo: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (k, 4) xyxy fractions
    scores: np.ndarray  # (k,) objectness
    hits: list[list[Hit]]


@dataclass
class Searcher:
    """Everything that answering needs, loaded once. The gallery is never augmented here."""

    detector: Detector
    encoder: nn.Module
    tokenizer: BertWordPieceTokenizer
    model: Capture | None
    words: Words | None
    gallery: EmbeddedSet
    items: dict[int, Item]  # by row of the gallery
    regions: RegionSettings
    instances: InstanceSettings
    batches: BatchSettings
    choices: dict[str, dict] = field(default_factory=dict)  # of val, by method
    maps: dict[str, np.ndarray] = field(default_factory=dict)  # of WCCN, where it is used
    levels: Sequence[str] = ("instance",)  # at which the gallery is embedded
    indices: dict[tuple[str, str], faiss.Index] = field(default_factory=dict, repr=False)

    def search(self, image: Path, caption: str = "", depth: int = 10) -> Answer:
        """Find the products of a photo, embed each with the caption, search the gallery.

        The method per instance that is best on val answers; region features alone do without a
        caption, or before val has chosen. A photo without any product has no hits.
        """
        photo = load_photo(image)
        store = self.describe(photo)
        boxes, scores = store.boxes[0], store.scores[0]
        if not find_instances(boxes, scores, self.instances):
            return Answer("image-only", "regions", photo, boxes[:0], scores[:0], [])

        # a vector of each instance
        row = {"sample_id": "query", "caption": caption, "labels": []}
        query = self.embed(pd.DataFrame([row], dtype=object), store, False, bool(caption))
        method, choice = self.best_method(query) if caption else BASELINE
        vectors = embedding.represent(query.instance, choice.representation)

        # the nearest gallery items of each
        index = self.index(choice.representation)
        cosines, rows = ranking.search_index(index, vectors, depth)
        hits = []
        for values, items in zip(cosines, rows, strict=True):
            hits.append([Hit(**vars(self.items[item]), score=float(value))
                         for value, item in zip(values, items, strict=True)])
        return Answer(method, choice.representation, photo, boxes[query.regions],
                      scores[query.regions], hits)

    def best_method(self, query: EmbeddedSet) -> tuple[str, Choice]:
        """Return the possible method per instance that is best on val, and its choice."""
        best, figure = BASELINE, -1.0
        for name, method in ranking.possible_methods(query, bool(self.maps)).items():
            stored = self.choices.get(name, {"val": None})
            if method.level == "instance" and stored["val"] is not None:
                if stored["val"] > figure:
                    best = name, Choice(stored["representation"])
                    figure = stored["val"]
        return best

    def describe(self, photo: np.ndarray, name: str = "query") -> RegionStore:
        """Return the regions of a photo (H, W, 3) uint8 as a store of one row, of that name."""
        square, extent = region_store.square(photo, self.regions.photo_size)
        square = to_tensor(square[None]).to(pick_device())
        found = region_store.describe(
            square, extent[None], self.detector, self.encoder, self.regions.max_regions)
        boxes, scores, features = next(found)
        counts = np.array([len(boxes)])
        return RegionStore(features[None], boxes[None], scores[None], counts, [name])

    def embed(self, table: pd.DataFrame, store: RegionStore, single: bool, worded: bool = True
              ) -> EmbeddedSet:
        """Embed photos of a store, with a table's sample_id, caption and labels.

        `single`: each photo shows one product. `worded`: with character n-grams.
        """
        pairs = make_pairs(table, store, self.tokenizer, self.batches)
        words = self.words if worded else None
        samples = embedding.embed_samples(
            table, pairs, self.model, words, self.instances, single, self.levels)
        return wccn.apply_maps(samples, self.maps)

    def index(self, representation: str, level: str = "instance") -> faiss.Index:
        """Return an index of the gallery, built at the first query."""
        key = level, representation
        if key not in self.indices:
            self.indices[key] = ranking.build_index(self.vectors(representation, level))
        return self.indices[key]

    def vectors(self, representation: str, level: str = "instance") -> np.ndarray:
        """Return the gallery's vectors (G, D) float32."""
        return embedding.represent(self.gallery.vectors(level), representation)
