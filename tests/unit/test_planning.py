"""What the rendered world's photos show: counts, sets, splits, siblings and the long tail."""

from collections import Counter

import numpy as np
import pytest

from capture_lib.world import planning, products
from capture_lib.world.planning import HELD_OUT, SEEN, SIZES, UNSEEN
from tests.drawn import TINY_WORLD


def test_counts_and_distractors() -> None:
    settings, seen = SIZES["small"], {}
    for sample in planning.plan(settings):
        seen.setdefault(sample.split, []).append(sample)
    assert {split: len(samples) for split, samples in seen.items()} == {
        "train": 5000, "val": 250, "test": 500, "gallery": 1600}
    assert {i for s in seen["gallery"] for i in s.products} == set(range(80))
    for split in ("train", "val", "test"):
        assert max(i for s in seen[split] for i in s.products) < 70
    assert min(Counter(s.products[0] for s in seen["gallery"]).values()) >= 8
    assert all(len(s.products) == 1 for s in seen["gallery"])
    assert all(2 <= len(s.products) <= 7 for s in seen["val"] + seen["test"])
    assert np.mean([len(s.products) == 1 for s in seen["train"]]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("settings", [SIZES["small"], SIZES["mini"], TINY_WORLD], ids=lambda settings: settings.name)
def test_train_never_shows_what_is_asked_for_as_unseen(settings: planning.WorldSettings) -> None:
    samples = planning.plan(settings)
    shown = {frozenset(s.products) for s in samples if s.split == "train"}
    held_out = {i for i, product in enumerate(planning.products_of(settings)) if product.brand in settings.held_out}
    assert not held_out & set().union(*shown)
    queries = [s for s in samples if s.split in ("val", "test")]
    for query in queries:
        combined = frozenset(query.products)
        assert (query.combination == SEEN) == (combined in shown)
        assert (query.combination == HELD_OUT) == (combined <= held_out) == bool(combined & held_out)
        if query.combination == UNSEEN:
            assert not any(combined <= other for other in shown)
    shares = Counter(query.combination for query in queries)
    assert 0.4 < shares[SEEN] / len(queries) < 0.75
    assert 0.15 < shares[UNSEEN] / len(queries) < 0.5
    assert 0.05 < shares[HELD_OUT] / len(queries) < 0.2


def test_gallery_photos_of_held_out_brands_are_marked() -> None:
    settings = SIZES["small"]
    for sample in planning.plan(settings):
        if sample.split == "gallery":
            brand = planning.products_of(settings)[sample.products[0]].brand
            assert sample.combination == (HELD_OUT if brand in settings.held_out else None)


def test_labels_have_the_published_long_tail() -> None:
    """Published: the ten most frequent labels are 23% of all, the top tenth 50%; 27% are in 5 queries at most."""
    full, pieces, counts = SIZES["full"], Counter(), Counter()
    for split in ("val", "test"):
        for n in range(getattr(full, split)):
            shown = planning.shown_products(full, split, n)[0]
            pieces.update(shown)
            counts.update(set(shown))
    often = np.sort(list(pieces.values()))[::-1] / pieces.total()
    assert len(pieces) > 0.95 * 392
    assert often[:10].sum() == pytest.approx(0.23, rel=0.25)
    assert often[:39].sum() == pytest.approx(0.50, rel=0.15)
    assert np.mean(np.array(list(counts.values())) <= 5) == pytest.approx(0.27, abs=0.12)


def test_products_are_different_and_brands_are_many() -> None:
    for settings, brands in ((SIZES["small"], 10), (SIZES["full"], 40)):
        labels = {product.label for product in planning.products_of(settings)}
        assert len(labels) == settings.products + settings.distractors
        assert len({label.split(" ")[0] for label in labels}) == brands


def test_brands_are_as_unequal_as_the_published_ones() -> None:
    published = np.array([53, 29, 29, 27, 27, 21, 20, 18, 17, 16, 13, 10, 9, 8, 8, 8, 8, 5, 5] + [4] * 8 + [3] * 4 +
                         [2] * 8 + [1])
    ours = np.bincount([product.brand for product in products.make_products(392, 40, 0)])
    assert ours.sum() == published.sum() == 392
    assert np.abs(np.cumsum(ours) - np.cumsum(published)).max() < 0.1 * 392


def test_the_full_world_has_siblings_of_every_kind() -> None:
    """Products that differ in their shade (or scent), their size, their line's name alone."""
    shades, sizes, lines = Counter(), Counter(), Counter()
    for p in planning.products_of(SIZES["full"]):
        shared = (p.brand, p.kind, p.noun, p.silhouette)
        shades[*shared, p.line, p.variant.scale, p.variant.rgb is None] += 1
        sizes[*shared, p.line, p.variant.rgb] += 1
        lines[*shared, p.look, p.claim, p.variant] += 1
    for groups in (shades, sizes, lines):
        assert sum(count for count in groups.values() if count > 1) > 40


def test_nothing_shows_in_the_number_of_a_sample() -> None:
    singles = np.array([len(s.products) == 1 for s in planning.plan(SIZES["small"]) if s.split == "train"])
    assert abs(np.mean(singles[::2]) - 0.5) < 0.05 and abs(np.mean(singles[:500]) - 0.5) < 0.08
