"""How hard a catalog is for simple features."""

from pathlib import Path

import numpy as np
import pytest

from capture_lib import world
from capture_lib.catalog.table import read_catalog
from capture_lib.world import difficulty
from capture_lib.world.planning import WorldSettings
from tests.drawn import make_catalog


def test_products_of_one_colour_are_found_by_it(tmp_path: Path) -> None:
    """Each drawn product has colours of its own on a plain ground, and its caption names it."""
    found = difficulty.difficulty(make_catalog(tmp_path, train=40, gallery=32, val=8, test=8))
    assert found["colour"]["value"] > 0.9 and found["text"]["value"] > 3 * found["chance"]["value"]
    assert set(found) == {"chance", "colour", "random_backbone", "text"}
    for figure in found.values():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1


def test_a_rendered_world_is_neither_trivial_nor_hopeless(tmp_path: Path) -> None:
    world.build(WorldSettings("tiny", 20, 4, 120, 120, 40, 8, size=96), tmp_path, workers=1)
    found = {name: figure["value"] for name, figure in difficulty.difficulty(read_catalog(tmp_path)).items()}
    for name in ("colour", "random_backbone", "text"):
        assert 2 * found["chance"] < found[name] < 0.8


def test_histogram_of_half_red_half_blue() -> None:
    photo = np.zeros((10, 20, 3), np.uint8)
    photo[:, :10, 0] = photo[:, 10:, 2] = 255
    found = difficulty._histogram(photo, [5.0, 0.0, 15.0, 10.0])
    assert np.sort(found)[-2:] == pytest.approx([0.5 ** 0.5] * 2) and found.sum() == pytest.approx(2 ** 0.5)


def test_a_catalog_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="true boxes"):
        difficulty.difficulty(make_catalog(tmp_path, val=0))
