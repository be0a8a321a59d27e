"""Overlaps and instances against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import random_store

from capture_lib.proposals.instances import InstanceSettings, box_overlap, find_instances, instances_of, match

SETTINGS = InstanceSettings()


def loop_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the IoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 0.7, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.4, (count, 2))], 1)


def test_box_overlap_is_the_iou():
    boxes = np.concatenate([random_boxes(np.random.default_rng(0), 30), [[0, 0, 1, 1], [0.9, 0.9, 1, 1]]])
    for box in boxes:
        assert box_overlap(box, boxes) == pytest.approx([loop_overlap(box, other) for other in boxes])
    assert box_overlap(boxes[0], boxes[:0]).shape == (0,)
    assert box_overlap(np.zeros(4), np.zeros((1, 4))).tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_instances_are_the_best_proposals_that_are_apart(seed):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 12), -np.sort(-rng.random(12))
    settings = replace(SETTINGS, max_instances=1 + seed % 6, min_score=0.3, min_odds=0.2, nms_iou=0.2)
    expected = []
    for i in range(12):
        apart = all(loop_overlap(boxes[i], boxes[j]) <= 0.2 for j in expected)
        likely = scores[i] / (1 - scores[i]) >= 0.2 * scores[0] / (1 - scores[0])
        if apart and likely and scores[0] >= 0.3 and len(expected) < settings.max_instances:
            expected.append(i)
    assert find_instances(boxes, scores, settings) == expected


def test_a_photo_without_a_good_proposal_has_no_instance():
    assert find_instances(np.zeros((0, 4)), np.zeros(0), SETTINGS) == []
    poor, good = replace(SETTINGS, min_score=0.5), replace(SETTINGS, min_score=0.01)
    assert find_instances(np.array([[0, 0, 1, 1.0]]), np.array([0.4]), poor) == []
    assert find_instances(np.array([[0, 0, 1, 1.0]]), np.array([0.4]), good) == [0]
    apart = np.array([[0, 0, 0.2, 0.2], [0.4, 0, 0.6, 0.2], [0.7, 0, 0.9, 0.2]])
    assert find_instances(apart, np.array([1.0, 1.0, 0.9]), SETTINGS) == [0, 1]  # no division by zero


def test_a_query_without_an_instance_is_asked_by_its_best_proposal():
    owners, regions = instances_of(random_store(4, regions=4), np.arange(4), replace(SETTINGS, min_score=2))
    assert owners.tolist() == [0, 1, 2, 3] and not regions.any()


def test_instances_know_their_photo():
    rows = np.array([7, 2, 2, 0])
    settings = replace(SETTINGS, min_score=0.0, min_odds=0.0, nms_iou=0.9)
    owners, regions = instances_of(random_store(9, regions=4), rows, settings)
    found = [regions[owners == i].tolist() for i in range(4)]
    assert found == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2], [0]]  # photo i has 1 + i % 4 regions
    assert owners.tolist() == sorted(owners) and owners.dtype == regions.dtype == np.int64


@pytest.mark.parametrize("seed", range(10))
def test_a_box_is_found_by_the_instance_of_the_highest_overlap(seed):
    rng = np.random.default_rng(seed)
    instances = random_boxes(rng, 6)
    boxes = np.concatenate([random_boxes(rng, 4), instances[:3] + rng.normal(0, 0.02, (3, 4))])
    found = match(boxes, instances)
    for box, instance in zip(boxes, found, strict=True):
        overlaps = [loop_overlap(box, other) for other in instances]
        assert instance == (int(np.argmax(overlaps)) if max(overlaps) >= 0.5 else -1)
    assert (found >= 0).any() and match(boxes, instances[:0]).tolist() == [-1] * 7
