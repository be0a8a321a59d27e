"""Captions of the rendered world against the published lists."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from capture_lib.world.calibration import REAL

from capture_lib.catalog.lists import read_list
from capture_lib.world import calibration, planning, wording
from capture_lib.world.planning import SIZES
from tests.drawn import TINY_WORLD

plan = cache(planning.plan)  # of the full world it takes seconds


def figures(settings: planning.WorldSettings, *splits: str) -> dict[str, float]:
    products = planning.products_of(settings)
    samples = [s for s in plan(settings) if s.split in splits]
    labels = [[products[i].label for i in s.products] for s in samples]
    found = calibration.statistics([s.caption for s in samples], labels)
    return {name: figure["value"] for name, figure in found.items()}


def test_the_published_figures(shared: Path) -> None:
    lists = [read_list(file) for file in sorted((shared / "product1m").glob("*.txt"))]
    captions = [caption for table in lists for caption in table["caption"]]
    found = calibration.statistics(captions, [labels for table in lists for labels in table["labels"]])
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(REAL, abs=0.006)


@pytest.mark.parametrize("size", ["small", "full"])
def test_captions_of_queries_are_within_a_tenth_of_the_published_ones(size: str) -> None:
    assert figures(SIZES[size], "val", "test") == pytest.approx(REAL, rel=0.1)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_are_near(seed: int) -> None:
    """Which brands sell best decides the share of Latin letters in a small world."""
    found = figures(replace(SIZES["small"], seed=seed), "val", "test")
    assert {name: value for name, value in found.items() if name != "latin_share"} == pytest.approx(
        {name: value for name, value in REAL.items() if name != "latin_share"}, rel=0.15)
    assert found["latin_share"] == pytest.approx(REAL["latin_share"], rel=0.3)


@pytest.mark.parametrize("split", ["train", "gallery"])
def test_other_captions_say_about_as_much(split: str) -> None:
    found = figures(SIZES["full"] if split == "gallery" else SIZES["small"], split)
    for name in ("caption_length", "latin_share", "digit_share", "brand_in_caption", "product_characters"):
        assert found[name] == pytest.approx(REAL[name], rel=0.15), name


def test_statistics_of_two_queries_by_hand() -> None:
    found = calibration.statistics(["AB 面霜!", "2 x"], [["ab 面霜", "ab 面膜"], ["cd 水", "cd 水"]])
    values = {name: figure["value"] for name, figure in found.items()}
    assert values == pytest.approx({
        "caption_length": 4.5, "latin_share": 1.0, "digit_share": 0.5, "products_per_query": 2.0,
        "repeated_share": 0.5, "brand_in_caption": 0.5, "product_characters": 1.5 / 4, "whole_name": 0.25})
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found.values())


def test_no_caption_is_longer_than_a_published_one_or_used_twice() -> None:
    captions = [sample.caption for sample in plan(SIZES["small"])]
    assert max(map(len, captions)) <= 54
    assert len(set(captions)) == len(captions)


def test_a_caption_of_two_products_names_one_brand() -> None:
    products = [p for p in planning.products_of(TINY_WORLD) if p.brand == 0][:2]
    always = wording.CaptionSettings(brand=1.0, both=0.0, line=1.0, care=0.0, lengths=(54,) * 10)
    for seed in range(20):
        text = wording.caption(products, 2, products, np.random.default_rng(seed), always)
        assert "ovelune" in text.lower() and all(product.line_name in text for product in products)
