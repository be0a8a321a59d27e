"""Recall, AP and AR against plain loops, photos seen larger and smaller, and how many products are counted."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from drawn import make_catalog
from PIL import Image
from torchvision.ops import box_iou

from capture_lib.catalog.table import read_catalog
from capture_lib.proposals import evaluation as detection
from capture_lib.proposals.instances import InstanceSettings

THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def loop_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def a_set(seed: int, apart: bool = False, photos: int = 12) -> tuple[detection.Found, detection.Truth]:
    """Random photos with up to 4 products and up to 9 proposals near them, best first."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(photos):
        cells = rng.permutation(9)[:rng.integers(1, 5)]
        low = np.stack([cells % 3, cells // 3], 1) / 3 if apart else rng.uniform(0, 0.4, (len(cells), 2))
        true = np.concatenate([low, low + rng.uniform(0.2, 0.32, (len(cells), 2))], 1)
        near = true[rng.integers(len(true), size=rng.integers(0, 10))]
        boxes = near + rng.normal(0, 0.03, near.shape)
        found.append((boxes, -np.sort(-rng.random(len(boxes)))))
        truth.append(true)
    return found, truth


# ------------------------------------------------------------------------------------- recall, AP and AR


def coco_hits(boxes: np.ndarray, truth: np.ndarray, threshold: float) -> list[bool]:
    """COCO's matching: each proposal, best first, takes the free true box with the best IoU at or above a threshold."""
    free, hits = list(range(len(truth))), []
    for box in boxes:
        best = max(free, key=lambda i: loop_iou(box, truth[i]), default=None)
        hits.append(best is not None and loop_iou(box, truth[best]) >= threshold)
        if hits[-1]:
            free.remove(best)
    return hits


def loop_averages(found: detection.Found, truth: detection.Truth, most: int) -> tuple[float, float]:
    """AP with 101 recall points, and AR, by the definitions."""
    precisions, recalls, total = [], [], sum(map(len, truth))
    for threshold in THRESHOLDS:
        ranked = sorted(((score, hit) for (boxes, scores), true in zip(found, truth, strict=True)
                         for score, hit in zip(scores, coco_hits(boxes[:most], true, threshold), strict=False)),
                        key=lambda pair: -pair[0])
        hits = np.cumsum([hit for _, hit in ranked])
        precision = hits / np.arange(1, len(hits) + 1)
        points = [max((p for p, h in zip(precision, hits, strict=True) if h / total >= r), default=0)
                  for r in np.linspace(0, 1, 101)]
        precisions.append(np.mean(points))
        recalls.append(hits[-1] / total)
    return float(np.mean(precisions)), float(np.mean(recalls))


@pytest.mark.parametrize(("seed", "most"), [(0, 10), (1, 10), (2, 4), (3, 6)])
def test_ap_and_ar_are_those_of_the_definitions(seed, most):
    found, truth = a_set(seed)
    ap, ar = loop_averages(found, truth, most)
    ours = detection.averages(found, truth, most)
    assert (ours["AP"], ours["AR"]) == pytest.approx((ap, ar), abs=1e-6)
    assert 0 < ours["AP@0.75"] < ours["AP@0.5"] < 1


def mean_recall(found: detection.Found, truth: detection.Truth, most: int) -> float:
    best = [detection.best_so_far(boxes, true, most) for (boxes, _), true in zip(found, truth, strict=True)]
    return float(np.mean([detection.recall(best, threshold, most, 0)["value"] for threshold in THRESHOLDS]))


@pytest.mark.parametrize("seed", range(4))
def test_recall_and_ar_agree_where_no_proposal_meets_two_products(seed):
    found, truth = a_set(seed, apart=True)
    assert all((box_iou(torch.tensor(t), torch.tensor(t)).fill_diagonal_(0) < 0.2).all() for t in truth)
    assert detection.averages(found, truth, 9)["AR"] == pytest.approx(mean_recall(found, truth, 9))


def test_a_proposal_that_meets_two_products_counts_twice_in_recall_only():
    pair = np.array([[0, 0, 0.5, 0.5], [0.02, 0, 0.52, 0.5]])
    found = [(pair[:1], np.ones(1))]
    best = [detection.best_so_far(pair[:1], pair, 3)]
    assert detection.recall(best, 0.5, 3, 0)["value"] == 1
    assert detection.averages(found, [pair], 3)["AR"] == pytest.approx(0.5)
    assert mean_recall(*a_set(5), 9) > detection.averages(*a_set(5), 9)["AR"]


def test_best_so_far_is_the_best_iou_of_the_first():
    found, truth = a_set(7)
    for (boxes, _), true in zip(found, truth, strict=True):
        best = detection.best_so_far(boxes, true, 12)
        assert best.shape == (len(true), 12)
        for row, box in zip(best, true, strict=True):
            assert row == pytest.approx([max((loop_iou(box, b) for b in boxes[:k]), default=0) for k in range(1, 13)])


def test_each_true_box_has_a_proposal_that_is_meant():
    for (boxes, _), true in zip(*a_set(11), strict=True):
        if len(boxes):
            best, met = detection.meant(boxes, true)
            for box, proposal, is_met in zip(true, best, met, strict=True):
                ious = [loop_iou(box, b) for b in boxes]
                assert proposal.tolist() == boxes[int(np.argmax(ious))].tolist() and is_met == (max(ious) >= 0.5)


def test_intervals_hold_the_value_and_shrink_with_more_photos():
    widths = []
    for photos in (12, 96):
        found, truth = a_set(3, photos=photos)
        figures = detection.average_intervals(found, truth, 9, seed=0)
        assert all(0 <= f["low"] <= f["value"] <= f["high"] <= 1 for f in figures.values())
        best = [detection.best_so_far(boxes, true, 9) for (boxes, _), true in zip(found, truth, strict=True)]
        ours = detection.recall(best, 0.75, 9, 0)
        assert ours["low"] < ours["value"] < ours["high"]
        widths.append([f["high"] - f["low"] for f in (*figures.values(), ours)])
    assert (np.array(widths[0]) > 1.5 * np.array(widths[1])).all()
    one = detection.average_intervals(found[:1], truth[:1], 9, seed=0)["AR"]
    assert one["low"] == one["value"] == one["high"]  # a single photo tells nothing of the spread


# --------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("most", [1, 2, 5, 6, 10, 17, 36])
def test_baselines_lie_in_the_photo_and_are_not_too_many(most):
    for boxes in (detection.fixed_grid(most), detection.sliding_boxes(most)):
        assert boxes[0].tolist() == [0, 0, 1, 1] and len(np.unique(boxes, axis=0)) == len(boxes)
        assert (boxes >= 0).all() and (boxes <= 1 + 1e-9).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(detection.sliding_boxes(most)) == most
    grid = detection.fixed_grid(most)
    assert len(grid) <= most and (grid[:, 2:] - grid[:, :2]).prod(1).sum() == pytest.approx(2 if most >= 5 else 1)


# ---------------------------------------------------------------------------------------- small products


class BrightBoxes:
    """A detector that proposes the outline of each bright piece that is 12 pixels wide or more."""

    def propose(self, photos: torch.Tensor, most: int) -> tuple[list, list]:
        boxes, scores = [], []
        for photo in photos:
            bright = (photo[0].float().numpy() > 0.5).astype(np.uint8)
            pieces = cv2.connectedComponentsWithStats(bright)[2][1:].astype(np.float32)
            pieces = pieces[(pieces[:, 2] >= 12) & (pieces[:, 3] < photos.shape[-1])][:most]  # not the white margin
            boxes.append(torch.from_numpy(np.concatenate([pieces[:, :2], pieces[:, :2] + pieces[:, 2:4]], 1)))
            scores.append(torch.linspace(0.9, 0.1, len(pieces)))
        return boxes, scores


@pytest.mark.parametrize(("size", "expected"), [(100, 1), (200, 3), (400, 3)])
def test_a_larger_view_finds_smaller_products_in_their_place(tmp_path, size, expected):
    boxes = np.array([[20, 24, 120, 80], [200, 90, 236, 140], [100, 250, 140, 360]])
    photo = np.zeros((400, 300, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        photo[y1:y2, x1:x2] = 255
    Image.fromarray(photo).save(tmp_path / "bright.png")
    truth = boxes / (300, 400, 300, 400)
    (found, scores), (again, _) = detection.propose([tmp_path / "bright.png"] * 2, BrightBoxes(), 9, size)
    assert np.array_equal(found, again) and len(found) == len(scores) == expected
    assert (found >= 0).all() and (found <= 1).all()
    assert sorted(detection.best_so_far(found, truth, 9)[:, -1])[-expected] > 0.8


# --------------------------------------------------------------------------------- how many instances?


def test_each_true_box_is_met_once():
    truth = np.array([[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    assert detection.matches(truth, truth) == 2
    assert detection.matches(truth[[0, 0, 0]], truth) == 1
    assert detection.matches(truth[:0], truth) == detection.matches(truth, truth[:0]) == 0
    found, true = a_set(9)
    for (boxes, _), boxes_true in zip(found, true, strict=True):
        assert detection.matches(boxes, boxes_true) == sum(coco_hits(boxes, boxes_true, 0.5))


def test_instance_figures_are_those_of_the_counts():
    counts = np.array([[2, 2, 2], [3, 2, 1], [0, 1, 0], [4, 4, 3]])
    figures = detection.instance_figures(counts, seed=0)
    values = {name: figure["value"] for name, figure in figures.items()}
    assert values == pytest.approx({"precision": 6 / 9, "recall": 6 / 9, "count_error": 0.5, "count_right": 0.5})
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    nothing = detection.instance_figures(np.array([[0, 2, 0]]), seed=0)
    assert nothing["precision"]["value"] == nothing["recall"]["value"] == 0


def test_thresholds_are_chosen_that_tell_products_from_noise():
    rng = np.random.default_rng(0)
    found, truth = [], []
    for _ in range(30):
        true = np.array([[0, 0, 0.3, 0.3], [0.25, 0.0, 0.55, 0.3], [0.6, 0.6, 0.9, 0.9]])
        noise = np.concatenate([rng.uniform(0, 0.4, (4, 2)), rng.uniform(0.5, 1, (4, 2))], 1)
        found.append((np.concatenate([true, noise]), np.array([0.85, 0.84, 0.83, *[0.65] * 4])))
        truth.append(true)
    chosen, tried = detection.choose_thresholds(found, truth, InstanceSettings())
    assert tried[chosen.min_odds, chosen.nms_iou] == max(tried.values()) == 1
    assert 0.33 < chosen.min_odds < 0.86 and len(tried) == len(list(detection.choices(InstanceSettings())))
    counts = detection.count_instances(found, truth, chosen)
    assert counts.tolist() == [[3, 3, 3]] * 30
    assert detection.count_instances(found, truth, replace(chosen, max_instances=2)).tolist() == [[2, 3, 2]] * 30


# ------------------------------------------------------------------------------------- on a catalog's boxes


def test_the_boxes_of_a_catalog_are_judged_at_several_sizes(tmp_path):
    catalog = make_catalog(tmp_path, 2, 2, 3, 4)
    table, truth = detection.boxed(catalog)
    assert set(table["split"]) == {"val", "test"} and [len(true) for true in truth] == [2] * 7
    paths = [catalog.photos[sample] for sample in table["sample_id"]]
    rows = detection.by_size(paths, truth, BrightBoxes(), (64, 96), 0) | detection.without_learning(truth, 0)
    assert set(rows) == {"searched at 64 px", "searched at 96 px", "whole photo", "fixed grid", "sliding boxes"}
    for row in rows.values():
        assert list(row) == [f"recall@{t}, {n} boxes" for n in (10, 36) for t in (0.5, 0.75)]
        assert row["recall@0.75, 10 boxes"]["value"] <= row["recall@0.5, 10 boxes"]["value"]
    assert rows["whole photo"]["recall@0.5, 36 boxes"]["value"] == 0
    assert len(detection.boxed(read_catalog(tmp_path), ("gallery",))[1]) == 2
