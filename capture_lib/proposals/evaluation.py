"""How good proposals are: recall of true boxes, and AP and AR as COCO defines them.

Boxes are xyxy, in pixels or in fractions of width and height: no figure depends on which.
True boxes serve evaluation only.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.detector import Detector
from capture_lib.proposals.instances import box_overlap
from capture_lib.proposals.region_store import RegionSettings, locate, photo_batches

Found = list[tuple[np.ndarray, np.ndarray]]  # boxes (n, 4), best first, and scores (n,)
Truth = list[np.ndarray]  # true boxes (t, 4) of each photo


def best_so_far(proposals: np.ndarray, boxes: np.ndarray, count: int) -> np.ndarray:
    """Return each true box's IoU with the best of the first k proposals: (t, count), k from 1."""
    proposals = np.asarray(proposals[:count], np.float64)  # may be fewer
    overlaps = np.zeros((len(boxes), count))
    for row, box in zip(overlaps, np.asarray(boxes, np.float64), strict=True):
        row[: len(proposals)] = box_overlap(box, proposals)
    return np.maximum.accumulate(overlaps, axis=1)


def proportion_interval(hits: np.ndarray, totals: np.ndarray, seed: int) -> dict[str, float]:
    """Return sum of hits (P,) over sum of totals (P,), with its 95% bootstrap interval."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(hits), size=(1000, len(hits)))  # photos
    proportions = hits[draws].sum(1) / np.maximum(totals[draws].sum(1), 1)
    low, high = np.percentile(proportions, [2.5, 97.5])
    value = hits.sum() / max(totals.sum(), 1)
    return {"value": float(value), "low": float(low), "high": float(high)}


def recall(best: list[np.ndarray], threshold: float, count: int, seed: int) -> dict[str, float]:
    """Return the share of true boxes that the first `count` proposals meet with a least IoU.

    `best` is of each photo what `best_so_far` returns.
    """
    hits = [(overlaps[:, count - 1] >= threshold).sum() for overlaps in best]
    totals = list(map(len, best))
    return proportion_interval(np.array(hits), np.array(totals), seed)


def averages(found: Found, truth: Truth, count: int) -> dict[str, float]:
    """Return AP and AR of the `count` best proposals, means over IoU .50, .55 … .95.

    Other than in `recall`, a proposal may meet one true box only: AR is at most the mean of
    our recall over these thresholds.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import

    products = COCO(coco_data([(boxes, np.ones(len(boxes))) for boxes in truth]))
    coco = COCOeval_faster(products, COCO(coco_data(found)), iouType="bbox")
    coco.params.maxDets = [count]
    points = torch.linspace(0, 1, 101)  # of recall, rounded as torchmetrics did
    coco.params.recThrs = points.double().numpy()
    coco.evaluate()
    precision = coco.eval["precision"][:, :, 0, 0, 0].mean(1)  # (10,) by IoU
    recalls = coco.eval["recall"][:, 0, 0, 0]  # (10,)
    values = {"AP": precision.mean(), "AP@0.5": precision[0]}
    values |= {"AP@0.75": precision[5], "AR": recalls.mean()}
    return {name: float(value) for name, value in values.items()}


def coco_data(photos: Found) -> dict[str, list]:
    """Return boxes in COCO's format: x, y, width and height, numbered from 1."""
    annotations = []
    for photo, (boxes, scores) in enumerate(photos):
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = sides.prod(1).tolist()
        boxes = np.hstack([boxes[:, :2], sides]).tolist()
        for box, area, score in zip(boxes, areas, scores.tolist(), strict=True):
            number = len(annotations) + 1
            place = {"id": number, "image_id": photo, "category_id": 0}
            annotations.append(place | {"bbox": box, "area": area, "score": score})
    images = [{"id": photo} for photo in range(len(photos))]
    return {"images": images, "categories": [{"id": 0}], "annotations": annotations}


def propose(paths: list[Path], detector: Detector, count: int, size: int) -> Found:
    """Propose boxes (n, 4) as fractions with scores (n,) of photos searched at `size` pixels."""
    settings = RegionSettings(photo_size=size, batch=8, workers=0)
    found = []
    for photos, extents in photo_batches(paths, settings):
        for boxes, scores in locate(photos, extents, detector, count, size):
            found.append((boxes.double().cpu().numpy(), scores.cpu().numpy()))
    return found


def boxed(
    catalog: Catalog, splits: tuple[str, ...] = ("val", "test")
) -> tuple[pd.DataFrame, Truth]:
    """Return the rows of photos on disk that have true boxes, and these (t, 4) as fractions."""
    table = catalog.boxed(*splits)
    truth = []
    for sample, boxes in zip(table["sample_id"], table["boxes"], strict=True):
        height, width = load_photo(catalog.photos[sample]).shape[:2]
        truth.append(np.array(boxes) / [width, height, width, height])
    return table, truth
