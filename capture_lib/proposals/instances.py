"""Which proposals of a photo count as products: the instances that a query is made of."""
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from capture_lib.proposals.region_store import RegionStore


@dataclass(frozen=True)
class InstanceSettings:
    """Defaults of every profile."""
    max_instances: int = 10
    min_score: float = 0.5  # of the best; below, no product is shown
    min_odds: float = 0.03  # over the best proposal's odds
    nms_iou: float = 0.4  # above: one instance


def box_overlap(box: ndarray, boxes: ndarray) -> ndarray:
    """Return the IoU of one box (4,) with others (n, 4), xyxy: (n,)."""
    low = np.maximum(box[:2], boxes[:, :2])  # (n, 2)
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)  # (n,) areas
    area = (box[2:] - box[:2]).prod()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / np.maximum(area + areas - shared, 1e-9)


def find_instances(boxes: ndarray, scores: ndarray, settings: InstanceSettings) -> list:
    """Choose the proposals (n, 4), best first, that count as products: good ones, and apart."""
    odds = scores / np.maximum(1 - scores, 1e-6)  # how sure depends on training
    chosen = []
    for region in range(len(boxes)):
        good = scores[0] >= settings.min_score and odds[region] >= settings.min_odds * odds[0]
        apart = (box_overlap(boxes[region], boxes[chosen]) <= settings.nms_iou).all()
        if good and apart and len(chosen) < settings.max_instances:
            chosen.append(region)
    return chosen


def instances_of(store: RegionStore, rows: ndarray, settings: InstanceSettings, single: bool = False) -> tuple:
    """Return owners, counted along `rows`, and region numbers of all instances, (n,) each.

    Where each photo shows a `single` product, its best region is the instance.
    """
    if single:
        return np.arange(len(rows)), np.zeros(len(rows), np.int64)
    found = []
    for owner, row in enumerate(rows):
        boxes = store.boxes[row, : store.counts[row]]
        for region in find_instances(boxes, store.scores[row], settings) or [0]:  # or the best
            found.append((owner, region))
    return tuple(np.array(found, np.int64).reshape(-1, 2).T)


def match(boxes: ndarray, instances: ndarray, min_iou: float = 0.5) -> ndarray:
    """Return which instance (n, 4) finds each true box (t, 4), the one of the highest IoU: (t,), -1 for none."""
    found = np.full(len(boxes), -1)
    for place, box in enumerate(boxes):
        overlaps = box_overlap(box, instances)
        if overlaps.max(initial=0) >= min_iou:
            found[place] = overlaps.argmax()
    return found
