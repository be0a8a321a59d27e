"""Recall, AP and AR against plain loops, photos searched at several sizes; and what notebook 03 computes of them."""

import ast
from dataclasses import replace
from types import SimpleNamespace

import cv2
import nbformat
import numpy as np
import pytest
import torch
from drawn import make_catalog
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from sklearn.metrics import average_precision_score
from torchvision.ops import box_iou

from capture_lib.experiments import proposal_recall
from capture_lib.proposals import instances
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.retrieval.statistics import bootstrap
from capture_lib.utils import NOTEBOOKS

THRESHOLDS = np.arange(0.5, 0.96, 0.05)


@pytest.fixture(scope="module")
def notebook() -> SimpleNamespace:
    """The functions that stand in notebook 03, with the names they take from it."""
    book = nbformat.read(NOTEBOOKS / "03_detector.ipynb", as_version=4)
    names = {"np": np, "torch": torch, "proposal_recall": proposal_recall, "instances": instances,
             "bootstrap": bootstrap,
             "COCO": COCO, "COCOeval_faster": COCOeval_faster, "seed": 0, "thresholds": (0.5, 0.75)}
    for cell in book.cells:
        if cell.cell_type == "code":
            functions = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
            code = "from __future__ import annotations\n" + "\n".join(map(ast.unparse, functions))
            exec(compile(code, "cell", "exec"), names)  # noqa: S102 (our own notebook)
    return SimpleNamespace(**names, names=names)


def loop_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def a_set(seed: int, apart: bool = False, photos: int = 12) -> tuple[proposal_recall.Found, proposal_recall.Truth]:
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


def loop_averages(found: proposal_recall.Found, truth: proposal_recall.Truth, most: int) -> tuple[float, float]:
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
def test_ap_and_ar_are_those_of_the_definitions(notebook, seed, most):
    found, truth = a_set(seed)
    ap, ar = loop_averages(found, truth, most)
    ours = notebook.averages(found, truth, most)
    assert (ours["AP"], ours["AR"]) == pytest.approx((ap, ar), abs=1e-6)
    assert 0 < ours["AP@0.75"] < ours["AP@0.5"] < 1


def mean_recall(notebook: SimpleNamespace, found: list, truth: list, most: int) -> float:
    best = [proposal_recall.best_so_far(boxes, true, most) for (boxes, _), true in zip(found, truth, strict=True)]
    return float(np.mean([notebook.recall(best, threshold, most)["value"] for threshold in THRESHOLDS]))


@pytest.mark.parametrize("seed", range(4))
def test_recall_and_ar_agree_where_no_proposal_meets_two_products(notebook, seed):
    found, truth = a_set(seed, apart=True)
    assert all((box_iou(torch.tensor(t), torch.tensor(t)).fill_diagonal_(0) < 0.2).all() for t in truth)
    assert notebook.averages(found, truth, 9)["AR"] == pytest.approx(mean_recall(notebook, found, truth, 9))


def test_a_proposal_that_meets_two_products_counts_twice_in_recall_only(notebook):
    pair = np.array([[0, 0, 0.5, 0.5], [0.02, 0, 0.52, 0.5]])
    found = [(pair[:1], np.ones(1))]
    best = [proposal_recall.best_so_far(pair[:1], pair, 3)]
    assert notebook.recall(best, 0.5, 3)["value"] == 1
    assert notebook.averages(found, [pair], 3)["AR"] == pytest.approx(0.5)
    for seed in range(8):
        found, truth = a_set(seed)
        assert mean_recall(notebook, found, truth, 9) >= notebook.averages(found, truth, 9)["AR"] - 1e-9


def test_best_so_far_is_the_best_iou_of_the_first():
    found, truth = a_set(7)
    for (boxes, _), true in zip(found, truth, strict=True):
        best = proposal_recall.best_so_far(boxes, true, 12)
        assert best.shape == (len(true), 12)
        for row, box in zip(best, true, strict=True):
            assert row == pytest.approx([max((loop_iou(box, b) for b in boxes[:k]), default=0) for k in range(1, 13)])


def test_intervals_hold_the_value_and_shrink_with_more_photos(notebook):
    widths = []
    for photos in (12, 96):
        found, truth = a_set(3, photos=photos)
        best = [proposal_recall.best_so_far(boxes, true, 9) for (boxes, _), true in zip(found, truth, strict=True)]
        figure = notebook.recall(best, 0.75, 9)
        assert figure["low"] < figure["value"] < figure["high"]
        widths.append(figure["high"] - figure["low"])
    assert widths[0] > 1.5 * widths[1]
    nothing = proposal_recall.proportion_interval(np.zeros(3, int), np.zeros(3, int), 0)
    assert nothing == {"value": 0, "low": 0, "high": 0}


def test_photos_without_proposals_have_recall_and_averages_of_zero(notebook):
    truth = a_set(4)[1]
    found = [(np.zeros((0, 4)), np.zeros(0))] * len(truth)
    assert set(notebook.averages(found, truth, 5).values()) == {0}
    best = [proposal_recall.best_so_far(boxes, true, 5) for (boxes, _), true in zip(found, truth, strict=True)]
    assert notebook.recall(best, 0.5, 5)["value"] == 0


# ------------------------------------------------------------------------------------------ size of the search


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
def test_a_larger_search_finds_smaller_products_in_their_place(tmp_path, size, expected):
    boxes = np.array([[20, 24, 120, 80], [200, 90, 236, 140], [100, 250, 140, 360]])
    photo = np.zeros((400, 300, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        photo[y1:y2, x1:x2] = 255
    Image.fromarray(photo).save(tmp_path / "bright.png")
    truth = boxes / (300, 400, 300, 400)
    (found, scores), (again, _) = proposal_recall.propose([tmp_path / "bright.png"] * 2, BrightBoxes(), 9, (size,))
    assert np.array_equal(found, again) and len(found) == len(scores) == expected
    assert (found >= 0).all() and (found <= 1).all()
    assert sorted(proposal_recall.best_so_far(found, truth, 9)[:, -1])[-expected] > 0.8


# ------------------------------------------------------------------------------------- on a catalog's boxes


def test_the_boxes_of_a_catalog_are_fractions(tmp_path):
    catalog = make_catalog(tmp_path, 2, 2, 3, 4)
    table, truth = proposal_recall.boxed(catalog)
    assert set(table["split"]) == {"val", "test"} and [len(true) for true in truth] == [2] * 7
    for sample, boxes, true in zip(table["sample_id"], table["boxes"], truth, strict=True):
        width, height = Image.open(catalog.photos[sample]).size
        assert true * (width, height, width, height) == pytest.approx(np.array(boxes))
    assert len(proposal_recall.boxed(catalog, ("gallery",))[1]) == 2


# ------------------------------------------------------------------- baselines, instances, identity


@pytest.mark.parametrize("count", [1, 2, 5, 6, 10, 17, 36])
def test_baselines_lie_in_the_photo_and_are_not_too_many(notebook, count):
    for boxes in (notebook.fixed_grid(count), notebook.sliding_boxes(count)):
        assert boxes[0].tolist() == [0, 0, 1, 1] and len(np.unique(boxes, axis=0)) == len(boxes)
        assert (boxes >= 0).all() and (boxes <= 1 + 1e-9).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(notebook.sliding_boxes(count)) == count
    grid = notebook.fixed_grid(count)
    assert len(grid) <= count and (grid[:, 2:] - grid[:, :2]).prod(1).sum() == pytest.approx(2 if count >= 5 else 1)


def test_recall_is_tabled(notebook):
    truth = a_set(6)[1]
    rows = {}
    for name, boxes in {"whole photo": notebook.windows(1, 1), "sliding boxes": notebook.sliding_boxes(36)}.items():
        rows[name] = notebook.recall_table([(boxes, np.ones(len(boxes)))] * len(truth), truth, (10, 36))
        assert list(rows[name]) == [f"recall@{t}, {n} boxes" for n in (10, 36) for t in (0.5, 0.75)]
        assert rows[name]["recall@0.75, 10 boxes"]["value"] <= rows[name]["recall@0.5, 10 boxes"]["value"]
    assert rows["whole photo"]["recall@0.5, 36 boxes"]["value"] == 0


def test_jackknife_intervals_hold_the_value_and_shrink_with_more_photos(notebook):
    widths = []
    for photos in (12, 96, 1):
        found, truth = a_set(3, photos=photos)
        notebook.names.update(true_boxes=truth, count=9)
        figures = notebook.average_intervals(found)
        assert all(0 <= f["low"] <= f["value"] <= f["high"] <= 1 for f in figures.values())
        widths.append(np.array([f["high"] - f["low"] for f in figures.values()]))
    assert (widths[0] > 1.5 * widths[1]).all() and not widths[2].any()  # one photo tells nothing of the spread


def test_each_true_box_is_met_once(notebook):
    truth = np.array([[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    assert notebook.matches(truth, truth) == 2
    assert notebook.matches(truth[[0, 0, 0]], truth) == 1
    assert notebook.matches(truth[:0], truth) == notebook.matches(truth, truth[:0]) == 0
    found, true = a_set(9)
    for (boxes, _), boxes_true in zip(found, true, strict=True):
        assert notebook.matches(boxes, boxes_true) == sum(coco_hits(boxes, boxes_true, 0.5))


def test_instance_figures_are_those_of_the_counts(notebook):
    counts = np.array([[2, 2, 2], [3, 2, 1], [0, 1, 0], [4, 4, 3]])
    figures = notebook.instance_figures(counts)
    values = {name: figure["value"] for name, figure in figures.items()}
    assert values == pytest.approx({"precision": 6 / 9, "recall": 6 / 9, "count_error": 0.5, "count_right": 0.5})
    assert notebook.f1(counts) == pytest.approx(12 / 18)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    nothing = notebook.instance_figures(np.array([[0, 2, 0]]))
    assert nothing["precision"]["value"] == nothing["recall"]["value"] == 0


def test_instances_are_counted_against_true_boxes(notebook):
    true = np.array([[0, 0, 0.3, 0.3], [0.25, 0.0, 0.55, 0.3], [0.6, 0.6, 0.9, 0.9]])
    noise = np.array([[0.1, 0.4, 0.5, 0.9], [0.3, 0.2, 0.8, 0.7]])
    found = [(np.concatenate([true, noise]), np.array([0.85, 0.84, 0.83, 0.65, 0.65]))]
    strict = InstanceSettings(min_odds=0.4, nms_iou=0.2)
    assert notebook.count_instances(found, [true], strict).tolist() == [[3, 3, 3]]
    assert notebook.count_instances(found, [true], replace(strict, max_instances=2)).tolist() == [[2, 3, 2]]
    assert notebook.count_instances(found, [true], replace(strict, min_odds=0.1)).tolist()[0][0] > 3


def test_identity_is_leave_one_out_average_precision(notebook):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 5)), rng.integers(0, 6, 20)
    labels[0] = 99  # alone: it has no neighbour to find
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        same = [labels[j] == labels[i] for j in rest]
        if any(same):
            cosines = [unit[i] @ unit[j] for j in rest]
            expected.append((average_precision_score(same, cosines), same[int(np.argmax(cosines))]))
        else:
            expected.append((np.nan, np.nan))
    assert notebook.identity(7 * features, labels) == pytest.approx(np.array(expected, float), nan_ok=True)
    assert np.isnan(notebook.identity(features, np.arange(20))).all()
    assert notebook.identity_table({"unique": features}, np.arange(20), np.arange(20)) == {}


def test_perfect_vectors_are_right_and_random_ones_at_chance(notebook):
    labels = np.repeat(np.arange(20), 5)
    vectors = {"perfect": np.eye(20)[labels], "random": np.random.default_rng(0).normal(size=(100, 64))}
    rows = notebook.identity_table(vectors, labels, np.arange(100) // 2)  # two regions a photo
    assert rows["perfect"]["mAP"] == {"value": 1, "low": 1, "high": 1} == rows["perfect"]["R@1"]
    assert rows["random"]["mAP"]["low"] < rows["random"]["mAP"]["value"] < 0.15  # 4 of 99 are right
