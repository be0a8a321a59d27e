"""How hard a catalog is before anything is learned: nearest neighbours of simple features of true boxes and captions.

A world's settings are fixed by these figures and by the captions' statistics, never by how CAPTURE fares.
"""

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.region_encoder import CropEncoder, EncoderSettings
from capture_lib.proposals.region_store import RegionSettings, encode_boxes
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval.embedding import Choice, EmbeddedSet, Ranking, RetrievalSettings, Words
from capture_lib.retrieval.metrics import RESAMPLES, bootstrap
from capture_lib.utils import pick_device, progress

DEPTH = 100  # of the rankings
BINS = 4  # of red, green and blue each


def difficulty(catalog: Catalog, split: str = "val", seed: int = 0) -> dict[str, dict[str, float]]:
    """Standard mAP@10 over the queries of a split, `{value, low, high}` for each way to search.

    `chance`: random rankings. `colour`: colour histograms of true boxes. `random_backbone`: a convolutional network
    as it is before training, on true boxes. `text`: character n-grams of captions, weighted as in the train split.
    The lists of a query's boxes are merged by score.

    Raises:
        ValueError: the split or the gallery has no photos with true boxes.
    """
    queries, gallery = catalog.boxed(split), catalog.boxed("gallery")
    if queries.empty or gallery.empty:
        raise ValueError(f"split {split} or the gallery has no photos with true boxes")
    torch.manual_seed(seed)
    network = CropEncoder(EncoderSettings()).to(pick_device()).eval()
    words = Words(list(catalog.split("train")["caption"]), RetrievalSettings(), seed)
    ways = {"colour": partial(_colours, catalog), "random_backbone": partial(_described, catalog, network),
            "text": partial(_worded, words)}
    asked, held = _side(queries), _side(gallery)
    figures = {"chance": retrieval.chance(asked, held, DEPTH, seed)}
    for name, vectors in ways.items():
        sides = [replace(side, instance={"regions": vectors(table)})
                 for side, table in ((asked, queries), (held, gallery))]
        figures[name] = retrieval.rank(*sides, "instance", Choice("regions"), DEPTH)
    return {name: _standard(rankings, asked, held, seed) for name, rankings in figures.items()}


def _side(table: pd.DataFrame) -> EmbeddedSet:
    """Samples without vectors; each true box is an instance."""
    owners = np.repeat(np.arange(len(table)), table["boxes"].map(len))
    return EmbeddedSet(list(table["sample_id"]), list(table["labels"]), list(table["caption"]), owners,
                np.zeros(len(owners), np.int64), {}, {})


def _colours(catalog: Catalog, table: pd.DataFrame) -> np.ndarray:
    """Square roots of the colour histograms of true boxes, (boxes, BINS³): their cosine is the histograms' overlap."""
    rows = progress(table.itertuples(), "colour histograms", len(table))
    return np.stack([_histogram(photo, box) for row in rows
                     for photo in [load_photo(catalog.photos[row.sample_id])] for box in row.boxes])


def _histogram(photo: np.ndarray, box: list[float]) -> np.ndarray:
    x1, y1, x2, y2 = (round(v) for v in box)
    counts = cv2.calcHist([photo[y1:y2, x1:x2]], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return np.sqrt(counts.ravel() / counts.sum())


def _described(catalog: Catalog, network: CropEncoder, table: pd.DataFrame) -> np.ndarray:
    paths = [catalog.photos[sample] for sample in table["sample_id"]]
    return encode_boxes(paths, [np.array(boxes, np.float32) for boxes in table["boxes"]], network, RegionSettings())


def _worded(words: Words, table: pd.DataFrame) -> np.ndarray:
    return np.repeat(words.vectors(list(table["caption"])), table["boxes"].map(len), axis=0)


def _standard(rankings: list[Ranking], queries: EmbeddedSet, gallery: EmbeddedSet, seed: int) -> dict[str, float]:
    scores = retrieval.score(rankings, queries, gallery)["standard", "mAP@10"]
    return bootstrap(scores.to_numpy()[:, None], RESAMPLES, seed)[0]
