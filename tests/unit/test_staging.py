"""The looks of the rendered world: every product in its packaging, visible, on grounds of its own split."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from capture_lib import world
from capture_lib.utils import InputError
from capture_lib.world import backdrops, drawing, labels, layouts, packaging, staging, textures, wording
from capture_lib.world.staging import StagingSettings

PRODUCTS = world.products_of(world.WorldSettings("looks", 70, 10, 1, 1, 1, 1))
BARE = StagingSettings(props=(0, 0), sticker=(0, 0), banner=(0, 0), points=(0, 0), logo=0, frame=0, watermark=0, blur=0)


def shot(number: int, count: int, settings: StagingSettings | None = None, split: str = "train",
         scenes: tuple[Path, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Photo and pieces at 96 pixels of `count` products, which follow from `number` as all else does."""
    rng = np.random.default_rng(number)
    products = [PRODUCTS[int(i)] for i in rng.integers(0, len(PRODUCTS), count)]
    return staging.photo(products, 96, 0, rng, split, scenes, settings)


def visible(pieces: np.ndarray, count: int) -> np.ndarray:
    """Pixels of every product."""
    return np.bincount(pieces.ravel(), minlength=count + 1)[1:]


def product_of(kind: str, silhouette: str, variant: int = 0, brand: int = 0) -> wording.Product:
    spec = wording.KINDS[kind]
    return wording.Product(brand, 0, 0, kind, silhouette, wording.VARIANTS[spec.variants][variant], "白茶", "",
                           spec.names[0])


# ---- packaging
@pytest.mark.parametrize("kind", wording.KINDS)
def test_every_form_of_a_kind_is_drawn(kind: str) -> None:
    for silhouette in wording.KINDS[kind].silhouettes:
        picture = drawing.cut_out(product_of(kind, silhouette), 96, 0)
        alpha = picture[..., 3]
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() < 1.02
        assert (picture[..., :3].max(axis=2) <= alpha + 0.02).all()  # premultiplied
        assert (alpha > 0.5).mean() > 0.1 and max(picture.shape[:2]) <= 96 + 6
        assert alpha[:, :1].max() < 0.6  # nothing is cut off at the side


def test_shades_look_different_and_sizes_differ_in_height() -> None:
    for kind, spec in wording.KINDS.items():
        siblings = [product_of(kind, spec.silhouettes[0], n) for n in range(len(wording.VARIANTS[spec.variants]))]
        pictures = [drawing.cut_out(sibling, 224, 0) for sibling in siblings]
        assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(pictures) for b in pictures[:i])
        if spec.variants == "size":
            assert packaging.real_height(siblings[0]) < packaging.real_height(siblings[1])


def test_brands_wear_different_colours() -> None:
    looks = [packaging.look_of(brand, 0, 0) for brand in range(len(wording.BRANDS))]
    assert len({(look.body.rgb, look.accent) for look in looks}) == len(looks)


def test_the_amount_is_that_of_the_size_or_of_the_kind() -> None:
    assert labels.amount(product_of("mist", "spray", 1)) == "120ml"
    assert labels.amount(product_of("lipstick", "lipstick", 2)) == "3.5g"
    assert all(spec.amount or spec.variants == "size" for spec in wording.KINDS.values())


# ---- what is visible
def test_every_product_is_visible() -> None:
    for number in range(250):
        count = 1 + number % 7
        photo, pieces = shot(number, count)
        assert photo.shape == (96, 96, 3) and photo.dtype == pieces.dtype == np.uint8 and pieces.max() == count
        assert visible(pieces, count).min() > 30


def test_where_no_arrangement_shows_all_they_stand_in_one_row() -> None:
    for number in range(20):
        _, pieces = shot(number, 5, replace(BARE, least_visible=2.0))
        boxes = sorted(world.boxes_of(pieces, 5))
        assert all(right[0] > left[2] - 6 for left, right in zip(boxes, boxes[1:], strict=False))


def test_what_is_laid_over_a_photo_hides_little_or_nothing() -> None:
    for number in range(40):
        count = 1 + number % 5
        bare = shot(number, count, BARE)
        for name in ("sticker", "banner", "points"):
            photo, pieces = shot(number, count, replace(BARE, **{name: (1, 1)}))
            assert (visible(pieces, count) >= 0.8 * visible(bare[1], count) - 1).all()
        for name in ("watermark", "frame"):
            photo, pieces = shot(number, count, replace(BARE, **{name: 1}))
            assert (pieces == bare[1]).all() and (photo != bare[0]).any()


# ---- arrangements
def test_every_arrangement_occurs_for_a_number_that_suits_it() -> None:
    rng, seen = np.random.default_rng(0), {}
    for _ in range(400):
        count = int(rng.integers(2, 8))
        layout = layouts.group([1.0] * count, [0.4] * count, 96, StagingSettings(), rng)
        assert len(layout.poses) == count
        seen.setdefault(layout.name, []).append(count)
    assert set(seen) == set(layouts.ARRANGEMENTS)
    for name, counts in seen.items():
        _, fewest, most = layouts.ARRANGEMENTS[name]
        assert fewest <= min(counts) and max(counts) <= most


def test_what_is_seen_from_above_lies_in_any_direction() -> None:
    rng = np.random.default_rng(0)
    poses = [layouts.single(0.4, 96, replace(BARE, single_flat=1), rng).poses[0] for _ in range(100)]
    assert np.histogram([pose.tilt for pose in poses], 4, (-180, 180))[0].min() > 10
    for pose in poses:
        x1, y1, x2, y2 = pose.box()
        assert min(x1, y1) > -0.5 and max(x2, y2) < 96.5


def test_nobody_stands_above_the_edge_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, feet, meet, arrange = [], [], backdrops._wall_and_table, staging._layout
    monkeypatch.setattr(backdrops, "_wall_and_table", lambda wall, table: edges.append(len(wall)) or meet(wall, table))
    monkeypatch.setattr(staging, "_layout", lambda *given: feet.append(arrange(*given)) or feet[-1])
    tables = 0
    for number in range(60):
        edges.clear()
        shot(number, 5, replace(BARE, plain=0))
        if edges:
            tables += 1
            assert not feet[-1].above and edges[0] < min(pose.foot for pose in feet[-1].poses)
    assert tables > 10


# ---- grounds
def test_no_ground_is_shared_between_splits() -> None:
    for kind in range(len(textures.TEXTURES)):
        grounds = {split: [backdrops._drawn(kind, n, 64, 0, split).tobytes() for n in range(backdrops.GROUNDS_EACH)]
                   for split in ("train", "val", "test", "gallery")}
        everything = [ground for of_split in grounds.values() for ground in of_split]
        assert len(set(everything)) == len(everything)


def test_a_photo_takes_the_grounds_of_its_split() -> None:
    busy = replace(BARE, plain=0)
    assert any((shot(n, 1, busy, "train")[0] != shot(n, 1, busy, "test")[0]).any() for n in range(3))


def test_scenes_take_the_place_of_busy_grounds(tmp_path: Path) -> None:
    files = (tmp_path / "red.png", tmp_path / "blue.jpg")
    for file, colour, shape in zip(files, ((30, 20, 200), (200, 30, 20)), ((300, 200, 3), (90, 240, 3)), strict=True):
        cv2.imwrite(str(file), np.full(shape, colour, np.uint8))
    seen = []
    for number in range(20):
        photo, pieces = shot(number, 1, replace(BARE, plain=0, stand=(0, 0)), scenes=files)
        ground = np.median(photo[pieces == 0], axis=0)
        seen.append("red" if ground[0] > 2 * ground[2] else "blue" if ground[2] > 2 * ground[0] else "neither")
    assert set(seen) == {"red", "blue"}


def test_a_scene_that_does_not_decode_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no photo")
    with pytest.raises(InputError, match="broken.jpg"):
        shot(0, 1, replace(BARE, plain=0), scenes=(file,))


def test_a_photo_follows_from_its_numbers_alone() -> None:
    before = [shot(number, 3) for number in range(6)]
    for cache in (staging._pictures, backdrops._drawn, backdrops.prop, packaging.look_of):
        cache.cache_clear()
    for number in reversed(range(6)):
        again = shot(number, 3)
        assert all((a == b).all() for a, b in zip(before[number], again, strict=True))
