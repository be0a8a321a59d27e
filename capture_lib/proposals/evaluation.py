"""How good proposals are: recall, AP and AR, baselines without learning, and which proposals count as products.

All boxes are xyxy, in pixels or in fractions of width and height: no figure depends on which. True boxes serve
evaluation only.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.detector import Detector
from capture_lib.proposals.instances import InstanceSettings, find_instances
from capture_lib.proposals.region_store import RegionSettings, locate, photo_batches
from capture_lib.retrieval.metrics import bootstrap

Found = list[tuple[np.ndarray, np.ndarray]]  # of each photo: boxes (n, 4), best first, and scores (n,)
Truth = list[np.ndarray]  # of each photo: true boxes (t, 4)
HIT = 0.5  # IoU from which a box counts as found

# ------------------------------------------------------------------------------------- recall, AP and AR


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of each pair of boxes (n, 4) and (m, 4): (n, m)."""
    return box_iou(torch.as_tensor(boxes, dtype=torch.float64), torch.as_tensor(others, dtype=torch.float64)).numpy()


def best_so_far(proposals: np.ndarray, boxes: np.ndarray, most: int) -> np.ndarray:
    """IoU of each true box (T, 4) with the best among the first k proposals (n, 4), k = 1 … most: (T, most)."""
    found = overlaps(boxes, proposals[:most])
    padded = np.pad(found, ((0, 0), (0, most - found.shape[1])))  # fewer proposals than asked for
    return np.maximum.accumulate(padded, axis=1)


def meant(proposals: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each true box (t, 4) the proposal that fits it best (t, 4), and whether it does with IoU 0.5 (t,)."""
    fit = overlaps(boxes, proposals)
    return proposals[fit.argmax(1)], fit.max(1) >= HIT


def shares(hits: np.ndarray, totals: np.ndarray, seed: int) -> dict[str, float]:
    """Sum of hits (P,) over sum of totals (P,), with the 95% interval of 1,000 resamplings of the P photos."""
    draws = np.random.default_rng(seed).integers(len(hits), size=(1000, len(hits)))
    low, high = np.percentile(hits[draws].sum(1) / np.maximum(totals[draws].sum(1), 1), [2.5, 97.5])
    return {"value": float(hits.sum() / max(totals.sum(), 1)), "low": float(low), "high": float(high)}


def recall(best: list[np.ndarray], threshold: float, count: int, seed: int) -> dict[str, float]:
    """Recall of the first `count` proposals with its interval, from `best_so_far` of each photo."""
    hits = np.array([(iou[:, count - 1] >= threshold).sum() for iou in best])
    return shares(hits, np.array([len(iou) for iou in best]), seed)


def averages(found: Found, truth: Truth, most: int) -> dict[str, float]:
    """AP and AR of the `most` best proposals as COCO defines them, by torchmetrics: fractions.

    AP and AR are means over the IoU thresholds .50, .55 … .95. Other than in `recall`, a proposal may meet one true
    box only, so AR is at most the mean of our recall over these thresholds.
    """
    metric = MeanAveragePrecision(backend="faster_coco_eval", max_detection_thresholds=[1, 2, most])
    metric.warn_on_many_detections = False
    metric.update([{"boxes": torch.tensor(boxes[:most]), "scores": torch.tensor(scores[:most]),
                    "labels": torch.zeros(len(boxes[:most]), dtype=torch.int)} for boxes, scores in found],
                  [{"boxes": torch.tensor(boxes), "labels": torch.zeros(len(boxes), dtype=torch.int)}
                   for boxes in truth])
    values = metric.compute()
    names = {"AP": "map", "AP@0.5": "map_50", "AP@0.75": "map_75", "AR": f"mar_{most}"}
    return {name: float(values[key]) for name, key in names.items()}


def average_intervals(found: Found, truth: Truth, most: int, seed: int, groups: int = 10
                      ) -> dict[str, dict[str, float]]:
    """`averages` with 95% intervals by the jackknife: each tenth of the photos is left out once.

    A bootstrap would need a hundred times as many evaluations; 2.26 is Student's t for ten groups.
    """
    value = averages(found, truth, most)
    group = np.random.default_rng([seed, 6]).permutation(len(found)) % groups
    left = [np.flatnonzero(group != g) for g in np.unique(group)]
    tried = np.array([list(averages([found[i] for i in kept], [truth[i] for i in kept], most).values())
                      for kept in left if len(kept)] or [list(value.values())])
    spread = 2.26 * tried.std(0) * (len(tried) - 1) ** 0.5
    return {name: {"value": middle, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
            for (name, middle), half in zip(value.items(), spread.tolist(), strict=True)}


# --------------------------------------------------------------------------------------------- baselines


def whole_photo() -> np.ndarray:
    """The whole photo as one box: (1, 4) fractions."""
    return np.array([[0.0, 0, 1, 1]])


def fixed_grid(most: int) -> np.ndarray:
    """The whole photo and the largest n×n tiling within `most` boxes: (n² + 1, 4) fractions."""
    n = int(np.sqrt(most - 1))
    return np.concatenate([whole_photo(), windows(n, 1)]) if n > 1 else whole_photo()


def sliding_boxes(most: int) -> np.ndarray:
    """The whole photo, then windows of 1/2, 1/3 … of its sides that move by half of theirs: (n, 4) fractions."""
    boxes = np.concatenate([whole_photo(), *(windows(n, 2) for n in range(2, 6))])
    return boxes[:most]


def windows(n: int, steps: int) -> np.ndarray:
    """All windows of 1/n of width and height, `steps` of them in each one's own width: (·, 4) fractions."""
    corners = np.arange(steps * (n - 1) + 1) / (steps * n)
    return np.array([[x, y, x + 1 / n, y + 1 / n] for y in corners for x in corners])


# ---------------------------------------------------------------------------------------- small products


def propose(paths: list[Path], detector: Detector, most: int, size: int) -> Found:
    """The `most` best proposals of each photo, boxes as fractions, searched at a side of `size` pixels."""
    found = []
    for photos, filled in photo_batches(paths, RegionSettings(photo_size=size, batch=8, workers=0)):
        found += [(boxes.double().cpu().numpy(), scores.cpu().numpy())
                  for boxes, scores in locate(photos, filled, detector, most, size)]
    return found


# --------------------------------------------------------------------------------- how many instances?


def matches(boxes: np.ndarray, truth: np.ndarray) -> int:
    """How many boxes (n, 4), best first, meet a true box (t, 4) with IoU 0.5, each true box once."""
    free, met = np.ones(len(truth), bool), 0
    for iou in overlaps(boxes, truth):
        iou = np.where(free, iou, 0)
        if len(iou) and iou.max() >= HIT:
            free[iou.argmax()] = False
            met += 1
    return met


def count_instances(found: Found, truth: Truth, settings: InstanceSettings) -> np.ndarray:
    """For each photo the instances chosen, the true ones, and those chosen that meet a true one: (P, 3) int64."""
    rows = []
    for (boxes, scores), true in zip(found, truth, strict=True):
        chosen = boxes[find_instances(boxes, scores, settings)]
        rows.append((len(chosen), len(true), matches(chosen, true)))
    return np.array(rows, np.int64).reshape(-1, 3)


def instance_figures(counts: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Precision and recall of instances, the mean absolute error of their number, and the share of photos where the
    number is right, each with its interval; counts (P, 3) as from `count_instances`."""
    chosen, true, met = counts.T
    error, right = bootstrap(np.stack([np.abs(chosen - true), chosen == true], 1).astype(float), 1000, seed)
    return {"precision": shares(met, chosen, seed), "recall": shares(met, true, seed), "count_error": error,
            "count_right": right}


def choices(settings: InstanceSettings) -> Iterator[InstanceSettings]:
    """The settings that `choose_thresholds` tries."""
    for odds, overlap in product((0.01, 0.03, 0.1, 0.2, 0.4), (0.1, 0.2, 0.3, 0.4, 0.5)):
        yield replace(settings, min_odds=odds, nms_iou=overlap)


def choose_thresholds(found: Found, truth: Truth, settings: InstanceSettings
                      ) -> tuple[InstanceSettings, dict[tuple[float, float], float]]:
    """The settings with the best F1 of instances, and the F1 of each pair (odds, overlap) that was tried."""
    tried = {}
    for option in choices(settings):
        chosen, true, met = count_instances(found, truth, option).sum(0)
        tried[option.min_odds, option.nms_iou] = float(2 * met / max(chosen + true, 1))
    odds, overlap = max(tried, key=tried.get)
    return replace(settings, min_odds=odds, nms_iou=overlap), tried


# ------------------------------------------------------------------------------------- on a catalog's boxes


def boxed(catalog: Catalog, splits: tuple[str, ...] = ("val", "test")) -> tuple[pd.DataFrame, Truth]:
    """The rows of the photos on disk that have true boxes, and these boxes as fractions."""
    table = catalog.boxed(*splits)
    sides = [np.tile(load_photo(catalog.photos[sample]).shape[1::-1], 2) for sample in table["sample_id"]]
    return table, [np.array(boxes) / side for boxes, side in zip(table["boxes"], sides, strict=True)]


def recall_table(found: Found, truth: Truth, counts: tuple[int, ...], seed: int) -> dict[str, dict[str, float]]:
    """Recall at IoU 0.5 and 0.75 of the first proposals, for several numbers of them: `recall@0.5, 10 boxes` …"""
    most = max(counts)
    best = [best_so_far(boxes, true, most) for (boxes, _), true in zip(found, truth, strict=True)]
    return {f"recall@{threshold}, {count} boxes": recall(best, threshold, count, seed)
            for count in counts for threshold in (HIT, 0.75)}


def by_size(paths: list[Path], truth: Truth, detector: Detector, sizes: tuple[int, ...], seed: int) -> dict[str, dict]:
    """`recall_table` of 10 and 36 proposals of photos searched at several sizes."""
    return {f"searched at {size} px": recall_table(propose(paths, detector, 36, size), truth, (10, 36), seed)
            for size in sizes}


def without_learning(truth: Truth, seed: int) -> dict[str, dict]:
    """`recall_table` of the baselines, with as many boxes as the column allows."""
    rows = {}
    for name, boxes in {"whole photo": lambda _: whole_photo(), "fixed grid": fixed_grid,
                        "sliding boxes": sliding_boxes}.items():
        rows[name] = {}
        for count in (10, 36):
            rows[name] |= recall_table([(boxes(count), np.ones(count))] * len(truth), truth, (count,), seed)
    return rows
