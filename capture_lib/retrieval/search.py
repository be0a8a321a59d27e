"""Answering one query: which photos of the catalog show the products of this photo?

The gallery of a live searcher may grow and shrink, in memory; `capture catalog --add` makes a stored catalog grow.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from torch import nn

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.instances import find_instances
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import index
from capture_lib.retrieval import wccn as whitening
from capture_lib.retrieval.embedding import Choice, EmbeddedSet, Words
from capture_lib.retrieval.index import Index
from capture_lib.training import batches
from capture_lib.utils import InputError, pick_device, write_atomically

ASKED = ("instance",)  # the form of `capture search`


@dataclass(frozen=True)
class Item:
    """A photo of the gallery."""

    sample_id: str
    path: Path
    caption: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Hit:
    """A photo of the catalog that answers a query; score is the cosine."""

    sample_id: str
    score: float
    caption: str
    labels: list[str]
    path: Path


@dataclass(frozen=True)
class Answer:
    """A query photo (H, W, 3) uint8, its instances (k, 4) xyxy fractions with objectness (k,), and each one's hits.

    `method` and `reading` say what was compared (`retrieval.METHODS`).
    """

    method: str
    representation: str
    photo: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    hits: list[list[Hit]]


@dataclass
class Searcher:
    """Everything that answering needs, loaded once.

    The items of the gallery are numbered, those that are added go on counting, and no number is used twice. It is
    never smoothed here (`retrieval.smooth`), for it changes.
    """

    run: Run
    detector: Detector
    encoder: nn.Module
    trained: stages.Pretrained
    words: Words | None
    gallery: EmbeddedSet
    choices: dict[str, dict]
    levels: Sequence[str] = ASKED
    maps: dict[str, np.ndarray] = field(default_factory=dict)  # by which vectors are whitened, where a profile says so
    added: list[EmbeddedSet] = field(default_factory=list)
    items: dict[int, Item] = field(init=False)  # by number; without those that were removed
    indices: dict[tuple[str, str], Index] = field(init=False, default_factory=dict)  # by form, reading; once asked for

    def __post_init__(self) -> None:
        side, photos = self.gallery, self.run.catalog.photos
        self.items = {number: Item(sample, photos[sample], caption, labels) for number, (sample, caption, labels)
                      in enumerate(zip(side.ids, side.captions, side.labels, strict=True))}

    @classmethod
    def open(cls, run: Run, levels: Sequence[str] = ASKED) -> "Searcher":
        """Loads the run's trained stages (training what is missing) and embeds the gallery in the forms asked for.

        A catalog without a gallery is searched as a whole.
        """
        store, _ = stages.region_store(run)
        trained = stages.pretrained(run)
        table = stages.samples(run, "gallery")
        if table.empty:
            table = stages.photographed(run)
            print(f"{run.catalog.name} has no gallery: searching all its {len(table):,} photos")
        pairs = stages.pairs_of(run, table, store, trained)
        words = stages.caption_words(run) if any(table["caption"]) else None
        gallery = retrieval.embed_samples(table, pairs, trained.model, words, run.profile.instances, True, levels)
        maps = stages.maps_of(run, trained, words)
        return cls(run, stages.trained_detector(run)[0], stages.trained_encoder(run)[0], trained, words,
                   whitening.mapped(gallery, maps), stages.stored_choices(run), levels, maps)

    def ask(self, image: Path, caption: str = "", most: int = 10) -> Answer:
        """Detects the products of a photo, embeds each with the caption and searches the gallery.

        Of the methods that ask per instance, the best on val answers; without a caption, or before notebook 05 has
        chosen, the region features alone are compared. A photo without any product has no instance and no hits.
        """
        photo = load_photo(image)
        one = self.describe(photo)
        if not find_instances(one.boxes[0], one.scores[0], self.run.profile.instances):
            return Answer("image-only", "regions", photo, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [])
        table = pd.DataFrame([{"sample_id": "query", "caption": caption, "labels": []}], dtype=object)
        query = self.embed(table, one, single=False, worded=bool(caption))
        methods = retrieval.possible_methods(query, self.run.profile.retrieval.matched)
        possible = {name for name, method in methods.items() if method.level == "instance"}
        method, choice = best_on_val(self.choices, possible) if caption else ("image-only", Choice("regions"))
        scores, numbers = self.index(choice.representation).search(retrieval.read(query.instance, choice.representation), most)
        hits = [self.hits(found, values) for found, values in zip(numbers, scores, strict=True)]
        return Answer(method, choice.representation, photo, one.boxes[0, query.regions], one.scores[0, query.regions], hits)

    def describe(self, photo: np.ndarray, name: str = "query") -> RegionStore:
        """The regions of one photo, in the form of a store with one row of that name."""
        settings = self.run.profile.regions
        square = to_tensor(regions.square(photo, settings.photo_size)[None]).to(pick_device())
        boxes, scores, features = next(regions.describe(
            square, regions.filled(photo)[None], self.detector, self.encoder, settings.max_regions))
        return RegionStore(features[None], boxes[None], scores[None], np.array([len(boxes)]), [name])

    def index(self, representation: str, level: str = "instance") -> Index:
        """The gallery by a reading: filled for the first query, kept for those that follow, and changed with it."""
        if (level, representation) not in self.indices:
            vectors = self.vectors(representation, level)
            numbers = np.array(sorted(self.items), np.int64)
            made = index.make(self.run.profile.retrieval.index, vectors.shape[1])
            made.add(numbers, vectors[numbers])
            self.indices[level, representation] = made
        return self.indices[level, representation]

    def vectors(self, representation: str, level: str = "instance") -> np.ndarray:
        """What a reading takes from every item, by number, those that were removed included: (n, D) float32."""
        sides = (self.gallery, *self.added)
        return np.concatenate([retrieval.read(side.vectors(level), representation) for side in sides])

    def embed(self, table: pd.DataFrame, store: RegionStore, single: bool, worded: bool = True) -> EmbeddedSet:
        """Photos of a store as vectors, with the captions of a table (columns sample_id, caption, labels).

        `single`: each shows one product. Without `worded`, their character n-grams are left out.
        """
        pairs = batches.make_pairs(table, store, self.trained.tokenizer, self.run.profile.batches)
        side = retrieval.embed_samples(table, pairs, self.trained.model, self.words if worded else None,
                                    self.run.profile.instances, single, self.levels)
        return whitening.mapped(side, self.maps)

    def add(self, items: list[Item]) -> None:
        """Describes and embeds photos of single products and adds them to the gallery; nothing is built anew.

        Raises:
            InputError: an id is in the gallery or given twice, or a photo cannot be read; then nothing is added.
        """
        names = {item.sample_id for item in self.items.values()}
        for item in items:
            if item.sample_id in names:
                raise InputError(f"{item.sample_id}: in the gallery already, or given twice; take another id")
            names.add(item.sample_id)
        first = sum(len(side.ids) for side in (self.gallery, *self.added))
        for number, (item, side) in enumerate([(item, self.embed_item(item)) for item in items], start=first):
            for (level, representation), held in self.indices.items():
                held.add(np.array([number]), retrieval.read(side.vectors(level), representation))
            self.added.append(side)
            self.items[number] = item

    def embed_item(self, item: Item) -> EmbeddedSet:
        """One photo of a single product as vectors."""
        table = pd.DataFrame([{"sample_id": item.sample_id, "caption": item.caption, "labels": list(item.labels)}],
                             dtype=object)
        return self.embed(table, self.describe(load_photo(item.path), item.sample_id), single=True)

    def remove(self, ids: list[str]) -> None:
        """Takes items out of the gallery.

        Raises:
            InputError: an id is not in the gallery, or given twice; then nothing is removed.
        """
        numbers = {item.sample_id: number for number, item in self.items.items()}
        for sample, count in Counter(ids).items():
            if sample not in numbers or count > 1:
                raise InputError(f"{sample}: " + ("given twice" if sample in numbers else "the gallery has no such id"))
        gone = np.array([numbers[sample] for sample in ids], np.int64)
        for held in self.indices.values():
            held.remove(gone)
        for number in gone:
            del self.items[number]

    def hits(self, numbers: np.ndarray, scores: np.ndarray) -> list[Hit]:
        """The items of some numbers, best first."""
        found = [self.items[number] for number in numbers]
        return [Hit(item.sample_id, float(score), item.caption, item.labels, item.path)
                for item, score in zip(found, scores, strict=True)]


def best_on_val(stored: dict[str, dict], possible: set[str]) -> tuple[str, Choice]:
    """Of the possible methods the one with the best figure on val, and its reading, as notebook 05 stored them."""
    figures = {name: found["val"] for name, found in stored.items() if name in possible and found["val"] is not None}
    if not figures:
        return "image-only", Choice("regions")
    best = max(figures, key=figures.get)
    return best, Choice(stored[best]["reading"], stored[best]["merge"])


def draw(answer: Answer, file: Path, most: int = 5) -> Path:
    """Saves a picture: the query with its boxes, and a row of hits for each instance; without any, the query alone."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from capture_lib.report import figures

    figures.setup()
    labels = [str(number + 1) for number in range(len(answer.boxes))]
    rows = max(1, len(answer.hits))
    fig, axes = plt.subplots(rows, most + 1, squeeze=False, figsize=(2.2 * (most + 1), 2.6 * rows))
    for ax in axes.ravel():
        ax.axis("off")
    axes[0, 0].imshow(answer.photo)
    for row, hits in enumerate(answer.hits):
        box = answer.boxes[row:row + 1]
        axes[row, 0].imshow(figures.draw_boxes(answer.photo, box, labels[row:row + 1], fractions=True))
        axes[row, 0].set_title(f"product {row + 1}")
        for ax, hit in zip(axes[row, 1:], hits, strict=False):
            ax.imshow(load_photo(hit.path))
            ax.set_title(f"{hit.score:.2f}\n{'; '.join(hit.labels)[:14]}", fontsize="small", parse_math=False)
    with write_atomically(file) as beside:
        fig.savefig(beside, format=file.suffix.lstrip(".") or "jpg", dpi=80)
    plt.close(fig)
    return file
