"""Answer one query by a run's stages: which gallery photos show the products of this photo?"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from tokenizers import BertWordPieceTokenizer
from torch import nn

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import comparison, evaluation, stages
from capture_lib.experiments.run import Run
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store
from capture_lib.proposals.detector import to_tensor
from capture_lib.proposals.instances import InstanceSettings, find_instances, match
from capture_lib.proposals.region_store import Proposer, RegionSettings, RegionStore
from capture_lib.retrieval import embedding, foundation, ranking
from capture_lib.retrieval.embedding import EmbeddedSet, Words
from capture_lib.retrieval.ranking import METHODS, Ranking
from capture_lib.training.batches import BatchSettings, make_pairs
from capture_lib.utils import pick_device

UNTRIED = "capture-beside-raw/instance"  # answers where val cannot say what is best
SHOWN = 10  # instances of a photo, at most
WORDLESS = ("image-only", "foundation-image")  # can answer a photo without a caption
NAMES = {  # of methods, in words, by the first part of their names
    "capture-chosen": "CAPTURE", "capture": "CAPTURE as in the paper",
    "capture-raw-product": "CAPTURE as in the released code", "capture-beside-raw": "CAPTURE beside raw vectors",
    "capture-beside-foundation": "CAPTURE beside the vectors of a pretrained image-text model",
    "image-only": "image alone", "text-only": "text alone", "late-fusion": "late fusion of image and text",
    "foundation-image": "pretrained image-text model, image alone",
    "foundation-text": "pretrained image-text model, text alone",
    "foundation-fusion": "pretrained image-text model, late fusion",
    "one-stream": "one-stream (as UNITER)", "two-stream": "two-stream (as ViLBERT)",
    "dual-encoder": "dual encoder (as CLIP)", "image-stream": "dual encoder, images alone",
    "text-stream": "dual encoder, captions alone", "chance": "chance", "popularity": "most frequent labels of val"}
VECTORS = {
    "raw product": "product H_IMG × H_TXT, unscaled", "product": "product H_IMG × H_TXT", "joint": "H_IMG and H_TXT",
    "region_token": "its region's token", "regions": "region features", "words": "caption n-grams",
    "foundation_image": "its vector of the crop", "foundation_text": "its vector of the caption", " + ": " beside "}


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
    mark: str = "unknown"  # what it shows, as `judge` says


@dataclass(frozen=True)
class Answer:
    """The hits of each of the k instances of a photo, best first, and what was compared."""

    method: str  # of `ranking.METHODS`
    representation: str
    how: str  # both in words
    photo: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (k, 4) xyxy fractions
    scores: np.ndarray  # (k,) objectness
    hits: list[list[Hit]]


@dataclass
class Searcher:
    """Everything that answering needs, loaded once."""

    store: RegionStore | None  # of the catalog's photos
    networks: Callable[[], tuple[Proposer, nn.Module]]  # for photos that it does not describe; slow to load
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
    taught: bool = False  # have captions taught the encoder?
    image_text: Callable[[], foundation.ImageText] | None = None  # loads a pretrained one, where the profile names it
    indices: dict[tuple[str, str], faiss.Index] = field(default_factory=dict, repr=False)

    def search(self, image: Path, caption: str = "", depth: int = 10, method: str = "",
               known: str = "") -> Answer:
        """Find the products of a photo, embed each with the caption, search the gallery.

        By default the method answers that is best on val. A photo without any product has no hits.
        `known`: the sample of the catalog whose photo it is.
        """
        photo = load_photo(image)
        store = self.store if known else self.describe(photo)
        row = store.rows([known or "query"])[0]
        boxes, scores = (array[row, :store.counts[row]] for array in (store.boxes, store.scores))
        name = method or self.best("instance", caption)
        representation = self.representation(name)
        compared = name, representation, self.how(name, caption)
        if not find_instances(boxes, scores, self.instances):
            return Answer(*compared, photo, boxes[:0], scores[:0], [])

        # a vector of each instance
        sample = {"sample_id": known or "query", "caption": caption, "labels": []}
        query = self.embed_query(sample, store, photo if "foundation" in representation else None)
        vectors = embedding.represent(query.instance, representation)

        # the nearest gallery items of each
        cosines, rows = ranking.search_index(self.index(representation), vectors, depth)
        shown = telling(ranking.comb_max(rows, cosines, rows.size), len(rows))
        hits = []
        for pairs in map(zip, rows[shown].tolist(), cosines[shown].tolist()):
            hits.append([Hit(**vars(self.items[row]), score=score) for row, score in pairs])
        return Answer(*compared, photo, query.boxes[shown], scores[query.regions[shown]], hits)

    def representation(self, method: str) -> str:
        """Return what val chose for a method, or else the first of what it may choose from."""
        return self.choices.get(method, {"representation": METHODS[method].representations[0]})["representation"]

    def best(self, level: str, caption: str = "") -> str:
        """Return the method of a level that is best on val; without a caption, of those that need none."""
        on_val = {name: row["val"] for name, row in self.choices.items()
                  if row["val"] is not None and METHODS[name].level == level and (caption or name in WORDLESS)}
        untried = UNTRIED if caption and self.model else "image-only"
        return max(on_val, key=on_val.get, default=untried)

    def how(self, method: str, caption: str = "") -> str:
        """Return in words how is compared and, in a line of its own, which method answers better on val."""
        vectors = re.sub("|".join(map(re.escape, VECTORS)), lambda part: VECTORS[part[0]], self.representation(method))
        lines = [f"{NAMES[method.split('/')[0]]}, {vectors}"]
        if self.taught and method not in comparison.BLIND:
            lines[0] += "; captions taught the region encoder (ours, not the paper's)"
        best = self.best(METHODS[method].level, caption)
        figures = [self.choices.get(name, {}).get("val") for name in (best, method)]
        if caption and None not in figures and figures[0] > figures[1]:  # val's queries had captions
            lines.append(f"On val, {NAMES[best.split('/')[0]]} answers better.")
        return "\n".join(lines)

    def describe(self, photo: np.ndarray, name: str = "query") -> RegionStore:
        """Return the regions of a photo (H, W, 3) uint8 as a store of one row, of that name."""
        square, extent = region_store.square(photo, self.regions.photo_size)
        square = to_tensor(square[None]).to(pick_device())
        found = region_store.describe(square, extent[None], *self.networks(), self.regions.max_regions)
        boxes, scores, features = next(found)
        return RegionStore(features[None], boxes[None], scores[None], np.array([len(boxes)]), [name])

    def embed(self, table: pd.DataFrame, store: RegionStore, single: bool) -> EmbeddedSet:
        """Embed photos of a store, each of a `single` product or of several."""
        pairs = make_pairs(table, store, self.tokenizer, self.batches)
        return embedding.embed_samples(table, pairs, self.model, self.words, self.instances, single, self.levels)

    def embed_query(self, sample: dict, store: RegionStore, photo: np.ndarray | None) -> EmbeddedSet:
        """Embed one sample of a store; given its photo (H, W, 3) uint8, by the image-text model too."""
        query = self.embed(pd.DataFrame([sample], dtype=object), store, single=False)
        if photo is not None:
            model = self.image_text()
            images = model.images([(photo, box) for box in query.boxes], workers=0)
            foundation.add_vectors(query, images, model.texts([sample["caption"]]))
        return query

    def index(self, representation: str, level: str = "instance") -> faiss.Index:
        """Return an index of the gallery, built at the first query."""
        if (level, representation) not in self.indices:
            self.indices[level, representation] = ranking.build_index(self.vectors(representation, level))
        return self.indices[level, representation]

    def vectors(self, representation: str, level: str = "instance") -> np.ndarray:
        """Return the gallery's vectors (G, D) float32."""
        return embedding.represent(self.gallery.vectors(level), representation)


def open_searcher(run: Run, levels: Sequence[str] = ("instance",)) -> Searcher:
    """Load a run's stages, training what is missing, and its gallery; all photos are embedded where it has none."""
    profile = run.profile
    gallery = evaluation.embedded(run).get("gallery")
    table = stages.samples(run, *(["gallery"] if gallery else []))
    photos = table["sample_id"].map(run.catalog.photos)
    items = dict(enumerate(map(Item, table["sample_id"], photos, table["caption"], table["labels"])))
    networks = cache(lambda: (stages.proposer(run), stages.trained_encoder(run)[0]))
    trained = stages.pretrained(run)
    store, _ = stages.region_store(run)
    embedder = profile.retrieval.embedder
    image_text = cache(lambda: foundation.ImageText(embedder, profile.encoder.margin)) if embedder else None
    searcher = Searcher(store, networks, trained.tokenizer, trained.model, stages.caption_words(run), gallery, items,
                        profile.regions, profile.instances, profile.batches, comparison.choices(run), levels,
                        bool(profile.encoder.captions), image_text)
    if not gallery:
        print(f"{run.catalog.name} has no gallery: searching all its {len(table):,} photos")
        searcher.gallery = searcher.embed(table, store, single=True)
    return searcher


def telling(merged: Ranking, count: int) -> list[int]:
    """Return which of a photo's `count` instances to show: all, or of many those that bring the first hits, in order.

    Objectness, learned from composites, orders the boxes of real photos worse than what they find does.
    """
    if count <= SHOWN:
        return list(range(count))
    return list(dict.fromkeys(merged.instances.tolist()))[:SHOWN]


def best_run(run: Run) -> Run:
    """Return the run that answers: captions have taught its region encoder, where they carry text."""
    return run.taught() if stages.captions_speak(run) else run


def answer(run: Run, image: Path, caption: str, depth: int = 10) -> Answer:
    """Answer a query by the best run; hits are marked where it is a photo of the catalog."""
    run = best_run(run)
    alike = [name for name, photo in run.catalog.photos.items() if photo.name == image.name and photo.samefile(image)]
    found = open_searcher(run).search(image, caption, depth, known="".join(alike[:1]))
    return marked(found, run.catalog.table.set_index("sample_id", drop=False).loc[alike[0]]) if alike else found


# ---- what hits show, where labels are known: for a reader's eyes, never for an answer


def marked(found: Answer, sample: pd.Series) -> Answer:
    """Return the answer to a sample's photo with its hits marked."""
    hits = []
    for own, labels in zip(found.hits, labels_of_boxes(sample, found.photo, found.boxes), strict=True):
        hits.append([replace(hit, mark=judge(hit.labels, sample["labels"], labels)) for hit in own])
    return replace(found, hits=hits)


def labels_of_boxes(sample: pd.Series, photo: np.ndarray, boxes: np.ndarray) -> list[set[str] | None]:
    """Return the labels of the true boxes that each box (k, 4), in fractions, finds; None: true boxes are not known."""
    if not sample["boxes"]:
        return [None] * len(boxes)
    height, width = photo.shape[:2]
    found = match(np.array(sample["boxes"]) / [width, height, width, height], boxes)
    own = [set() for _ in boxes]
    for place, label in zip(found, sample["box_labels"], strict=True):
        if place >= 0:
            own[place].update(label.split("#;#"))
    return own


def judge(labels: Collection[str], asked: Collection[str], own: Collection[str] | None = None) -> str:
    """Return what an item shows: "right", a product of the box, whose labels are `own`, or where these are not known
    one of the photo, whose labels are `asked`; "other": another product of the photo; "wrong"; "unknown".
    """
    if not labels or not asked:
        return "unknown"
    if not set(labels).isdisjoint(asked if own is None else own):
        return "right"
    return "wrong" if set(labels).isdisjoint(asked) else "other"
