"""How good proposals are. True boxes, xyxy in pixels or fractions, serve evaluation only."""
import numpy as np
from numpy import ndarray

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.instances import box_overlap
from capture_lib.proposals.region_store import Proposer, RegionSettings, locate, photo_batches

Found = list  # boxes (n, 4), best first; scores (n,)
Truth = list  # true boxes (t, 4) of each photo


def best_so_far(proposals: ndarray, boxes: ndarray, count: int) -> ndarray:
    """Return each true box's IoU with the best of the first k proposals: (t, count), k from 1."""
    proposals = np.asarray(proposals[:count], np.float64)
    overlaps = np.zeros((len(boxes), count))
    for row, box in zip(overlaps, np.asarray(boxes, np.float64), strict=True):
        row[: len(proposals)] = box_overlap(box, proposals)
    return np.maximum.accumulate(overlaps, axis=1)


def proportion_interval(hits: ndarray, totals: ndarray, seed: int) -> dict:
    """Return sum of hits (P,) over sum of totals (P,), with its 95% bootstrap interval."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(hits), size=(1000, len(hits)))  # photos
    proportions = hits[draws].sum(1) / np.maximum(totals[draws].sum(1), 1)
    low, high = np.percentile(proportions, [2.5, 97.5])
    value = hits.sum() / max(totals.sum(), 1)
    return {"value": float(value), "low": float(low), "high": float(high)}


def propose(paths: list, detector: Proposer, count: int, sides: tuple) -> Found:
    """Propose boxes (n, 4) as fractions with scores (n,) of photo files searched at sides in pixels."""
    settings = RegionSettings(photo_size=max(sides), batch=8, workers=0)
    found = []
    for photos, extents in photo_batches(paths, settings):
        for boxes, scores in locate(photos, extents, detector, count, sides):
            found.append((boxes.double().cpu().numpy(), scores.cpu().numpy()))
    return found


def boxed(catalog: Catalog, splits: tuple = ("val", "test")) -> tuple:
    """Return the rows of photos on disk with true boxes, a table, and these as fractions."""
    table = catalog.boxed(*splits)
    truth = []
    for sample, boxes in zip(table["sample_id"], table["boxes"], strict=True):
        height, width = load_photo(catalog.photos[sample]).shape[:2]
        truth.append(np.array(boxes) / [width, height, width, height])
    return table, truth
