"""Answer one query by a run's stages: which gallery photos show the products of this photo?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from tokenizers import BertWordPieceTokenizer
from torch import nn

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import comparison, stages
from capture_lib.experiments.run import Run
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.instances import InstanceSettings, find_instances
from capture_lib.proposals.region_store import RegionSettings, RegionStore
from capture_lib.retrieval import embedding, ranking
from capture_lib.retrieval.embedding import EmbeddedSet, Words
from capture_lib.training.batches import BatchSettings, make_pairs
from capture_lib.utils import pick_device

CAPTURE = "capture-chosen/instance"  # the method that answers


@dataclass(frozen=True)
class Item:
    """A photo of the gallery."""

    sample_id: str
    path: Path
    caption: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Hit(Item):
    """An item that answers a query."""

    score: float = 0.0  # the cosine


@dataclass(frozen=True)
class Answer:
    """The hits of each of the k instances of a photo, best first, and what was compared."""

    method: str  # of `ranking.METHODS`
    representation: str
    better: str  # the method that is better on val, if there is one
    photo: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (k, 4) xyxy fractions
    scores: np.ndarray  # (k,) objectness
    hits: list[list[Hit]]


@dataclass
class Searcher:
    """Everything that answering needs, loaded once."""

    detector: Detector
    encoder: nn.Module
    tokenizer: BertWordPieceTokenizer
    model: Capture | None
    words: Words | None
    gallery: EmbeddedSet | None  # set by `open_searcher`
    items: dict[int, Item]  # by row of the gallery
    regions: RegionSettings
    instances: InstanceSettings
    batches: BatchSettings
    choices: dict[str, dict] = field(default_factory=dict)  # of val, by method
    levels: Sequence[str] = ("instance",)  # at which the gallery is embedded
    indices: dict[tuple[str, str], faiss.Index] = field(default_factory=dict, repr=False)

    def search(self, image: Path, caption: str = "", depth: int = 10) -> Answer:
        """Find the products of a photo, embed each with the caption, search the gallery.

        CAPTURE answers, as val has chosen; region features alone do without a caption or a model.
        A photo without any product has no hits.
        """
        photo = load_photo(image)
        store = self.describe(photo)
        boxes, scores = store.boxes[0], store.scores[0]
        name = CAPTURE if caption and self.model else "image-only"
        method = ranking.METHODS[name]
        best = self.choices.get(name, {"representation": method.representations[0], "val": None})
        representation = best["representation"]
        if not find_instances(boxes, scores, self.instances):
            return Answer(name, representation, "", photo, boxes[:0], scores[:0], [])

        # is another method per instance better on val?
        on_val = {other: row["val"] for other, row in self.choices.items() if row["val"] is not None and caption}
        on_val = {other: figure for other, figure in on_val.items() if ranking.METHODS[other].level == "instance"}
        better = max(on_val, key=on_val.get, default=name)
        better = "" if better == name else better

        # a vector of each instance
        row = {"sample_id": "query", "caption": caption, "labels": []}
        query = self.embed(pd.DataFrame([row], dtype=object), store, False, bool(caption))
        vectors = embedding.represent(query.instance, representation)

        # the nearest gallery items of each
        cosines, rows = ranking.search_index(self.index(representation), vectors, depth)
        hits = []
        for pairs in map(zip, rows.tolist(), cosines.tolist()):
            hits.append([Hit(**vars(self.items[row]), score=score) for row, score in pairs])
        return Answer(name, representation, better, photo, boxes[query.regions], scores[query.regions], hits)

    def describe(self, photo: np.ndarray, name: str = "query") -> RegionStore:
        """Return the regions of a photo (H, W, 3) uint8 as a store of one row, of that name."""
        square, extent = region_store.square(photo, self.regions.photo_size)
        square = to_tensor(square[None]).to(pick_device())
        found = region_store.describe(square, extent[None], self.detector, self.encoder, self.regions.max_regions)
        boxes, scores, features = next(found)
        return RegionStore(features[None], boxes[None], scores[None], np.array([len(boxes)]), [name])

    def embed(self, table: pd.DataFrame, store: RegionStore, single: bool, worded: bool = True) -> EmbeddedSet:
        """Embed photos of a store, each of a `single` product or of several; `worded`: with n-grams."""
        pairs = make_pairs(table, store, self.tokenizer, self.batches)
        words = self.words if worded else None
        return embedding.embed_samples(table, pairs, self.model, words, self.instances, single, self.levels)

    def index(self, representation: str, level: str = "instance") -> faiss.Index:
        """Return an index of the gallery, built at the first query."""
        if (level, representation) not in self.indices:
            self.indices[level, representation] = ranking.build_index(self.vectors(representation, level))
        return self.indices[level, representation]

    def vectors(self, representation: str, level: str = "instance") -> np.ndarray:
        """Return the gallery's vectors (G, D) float32."""
        return embedding.represent(self.gallery.vectors(level), representation)


def open_searcher(run: Run, levels: Sequence[str] = ("instance",)) -> Searcher:
    """Load a run's stages, training what is missing, and embed its gallery (or all photos) at some levels."""
    store, _ = stages.region_store(run)
    trained = stages.pretrained(run)
    profile = run.profile
    table = stages.samples(run, "gallery")
    if table.empty:
        table = stages.samples(run)
        print(f"{run.catalog.name} has no gallery: searching all its {len(table):,} photos")
    photos = table["sample_id"].map(run.catalog.photos)
    items = dict(enumerate(map(Item, table["sample_id"], photos, table["caption"], table["labels"])))
    searcher = Searcher(stages.trained_detector(run)[0], stages.trained_encoder(run)[0], trained.tokenizer,
                        trained.model, stages.caption_words(run), None, items, profile.regions, profile.instances,
                        profile.batches, comparison.choices(run), levels)
    searcher.gallery = searcher.embed(table, store, single=True)
    return searcher
