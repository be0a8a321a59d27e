"""The looks of the rendered world: every product in its packaging, visible, on backgrounds of its own split."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from capture_lib import world
from capture_lib.utils import InputError
from capture_lib.world import backdrops, labels, layouts, packaging, products, staging, textures
from capture_lib.world.layouts import Shot

PRODUCTS = world.products_of(world.WorldSettings("looks", 70, 10, 1, 1, 1, 1))
NONE = (0.0, 0.0)
BARE = {"props": NONE, "sticker": NONE, "banner": NONE, "points": NONE} | dict.fromkeys(
    ["logo", "frame", "watermark", "blur"], 0.0)


def turned(**knobs: object) -> SimpleNamespace:
    """The staging settings with some of them changed."""
    return SimpleNamespace(**vars(layouts.STAGING) | knobs)


def shot(number: int, count: int, split: str = "train", scenes: tuple[Path, ...] = (), **knobs: object
         ) -> tuple[np.ndarray, np.ndarray]:
    """Photo and pieces at 96 pixels of `count` products, which follow from `number` as all else does."""
    rng = np.random.default_rng(number)
    chosen = [PRODUCTS[int(i)] for i in rng.integers(0, len(PRODUCTS), count)]
    photo = staging.take_photo(chosen, 96, 0, rng, split, scenes, turned(**knobs))
    return photo.picture, photo.pieces


def visible(pieces: np.ndarray, count: int) -> np.ndarray:
    """Pixels of every product."""
    return np.bincount(pieces.ravel(), minlength=count + 1)[1:]


def product_of(kind: str, silhouette: str, variant: int = 0) -> world.Product:
    spec = world.KINDS[kind]
    variants = products.VARIANTS[spec.variants]
    return world.Product(0, 0, 0, kind, silhouette, variants[variant], "白茶", "", spec.names[0])


# ---- packaging
@pytest.mark.parametrize("kind", world.KINDS)
def test_every_form_of_a_kind_is_drawn(kind: str) -> None:
    for silhouette in world.KINDS[kind].silhouettes:
        picture = world.draw_product(product_of(kind, silhouette), 96, 0)
        alpha = picture[..., 3]
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() < 1.02
        assert (picture[..., :3].max(axis=2) <= alpha + 0.02).all()  # premultiplied
        assert (alpha > 0.5).mean() > 0.1 and max(picture.shape[:2]) <= 96 + 6
        assert alpha[:, :1].max() < 0.6  # nothing is cut off at the side


def test_shades_and_sizes_look_different() -> None:
    for kind, spec in world.KINDS.items():
        siblings = [product_of(kind, spec.silhouettes[0], n) for n in range(len(products.VARIANTS[spec.variants]))]
        pictures = [world.draw_product(sibling, 224, 0) for sibling in siblings]
        assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(pictures) for b in pictures[:i])


def test_brands_wear_different_colours() -> None:
    looks = [packaging.look_of(brand, 0, 0) for brand in range(len(world.BRANDS))]
    assert len({(look.body.rgb, look.accent) for look in looks}) == len(looks)


def test_the_amount_is_that_of_the_size_or_of_the_kind() -> None:
    look = packaging.look_of(0, 0, 0)
    assert labels._texts(product_of("mist", "spray", 1), look)["amount"] == "120ml"
    assert labels._texts(product_of("lipstick", "lipstick", 2), look)["latin · amount"] == "ROUGE 03 · 3.5g"
    assert all(spec.amount or spec.variants == "size" for spec in world.KINDS.values())


# ---- what is visible
def test_every_product_is_visible() -> None:
    for number in range(105):
        count = 1 + number % 7
        photo, pieces = shot(number, count)
        assert photo.shape == (96, 96, 3) and photo.dtype == pieces.dtype == np.uint8 and pieces.max() == count
        assert visible(pieces, count).min() > 30


def test_where_no_arrangement_shows_all_they_stand_in_one_row() -> None:
    for number in range(20):
        _, pieces = shot(number, 5, **BARE, min_visible=2.0)
        boxes = sorted(world.boxes_of(pieces, 5))
        assert all(right[0] > left[2] - 6 for left, right in zip(boxes, boxes[1:], strict=False))


def test_what_is_laid_over_a_photo_hides_little_or_nothing() -> None:
    for number in range(40):
        count = 1 + number % 5
        bare = shot(number, count, **BARE)
        for name in ("sticker", "banner", "points"):
            photo, pieces = shot(number, count, **BARE | {name: (1, 1)})
            assert (visible(pieces, count) >= 0.8 * visible(bare[1], count) - 1).all()
        for name in ("watermark", "frame"):
            photo, pieces = shot(number, count, **BARE | {name: 1})
            assert (pieces == bare[1]).all() and (photo != bare[0]).any()


# ---- arrangements
def test_every_arrangement_occurs_for_a_number_that_suits_it() -> None:
    rng, seen = np.random.default_rng(0), {}
    for _ in range(400):
        count = int(rng.integers(2, 8))
        layout = Shot(96, 0, rng, layouts.STAGING).group([1.0] * count, [0.4] * count)
        assert len(layout.poses) == count
        seen.setdefault(layout.name, []).append(count)
    assert set(seen) == set(layouts.ARRANGEMENTS)
    for name, counts in seen.items():
        fewest, most = layouts.ARRANGEMENTS[name]
        assert fewest <= min(counts) and max(counts) <= most


def test_what_is_seen_from_above_lies_in_any_direction() -> None:
    lying = Shot(96, 0, np.random.default_rng(0), turned(single_flat=1))
    poses = [lying.single(0.4).poses[0] for _ in range(100)]
    assert np.histogram([pose.tilt for pose in poses], 4, (-180, 180))[0].min() > 10
    for pose in poses:
        x1, y1, x2, y2 = pose.box()
        assert min(x1, y1) > -0.5 and max(x2, y2) < 96.5


def test_nobody_stands_above_the_edge_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, busy_background = [], staging.backdrops.busy_background

    def watch(shot, split, scenes, horizon):
        seen.append(horizon)
        return busy_background(shot, split, scenes, horizon)

    monkeypatch.setattr(staging.backdrops, "busy_background", watch)
    monkeypatch.setattr(staging, "_add_products", lambda photo, pictures, layout, shot: seen.append(layout))
    for number in range(60):
        shot(number, 5, **BARE, plain=0)
    for horizon, layout in zip(seen[::2], seen[1::2], strict=True):
        assert (horizon is None) == layout.above
        assert horizon is None or horizon < min(pose.foot for pose in layout.poses)
    assert sum(horizon is not None for horizon in seen[::2]) > 10


# ---- backgrounds
def test_no_background_is_shared_between_splits() -> None:
    for kind in range(len(textures.TEXTURES)):
        pictures = [backdrops.texture(kind, number, 64, 0, split).tobytes()
                    for split in ("train", "val", "test", "gallery") for number in range(2)]
        assert len(set(pictures)) == len(pictures)


def test_a_photo_takes_the_backgrounds_of_its_split() -> None:
    busy = BARE | {"plain": 0}
    assert any((shot(n, 1, "train", **busy)[0] != shot(n, 1, "test", **busy)[0]).any() for n in range(3))


def test_scenes_take_the_place_of_busy_backgrounds(tmp_path: Path) -> None:
    files = (tmp_path / "red.png", tmp_path / "blue.jpg")
    for file, colour, shape in zip(files, ((30, 20, 200), (200, 30, 20)), ((300, 200, 3), (90, 240, 3)), strict=True):
        cv2.imwrite(str(file), np.full(shape, colour, np.uint8))
    seen = []
    for number in range(20):
        photo, pieces = shot(number, 1, scenes=files, **BARE, plain=0, stand=NONE)
        red, _, blue = np.median(photo[pieces == 0], axis=0)
        seen.append("red" if red > 2 * blue else "blue" if blue > 2 * red else "neither")
    assert set(seen) == {"red", "blue"}


def test_a_scene_that_does_not_decode_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no photo")
    with pytest.raises(InputError, match="broken.jpg"):
        shot(0, 1, scenes=(file,), **BARE, plain=0)


def test_a_photo_follows_from_its_numbers_alone() -> None:
    before = [shot(number, 3) for number in range(6)]
    for cache in (staging._pictures, backdrops.texture, backdrops.prop, packaging.look_of):
        cache.cache_clear()
    for number in reversed(range(6)):
        again = shot(number, 3)
        assert all((a == b).all() for a, b in zip(before[number], again, strict=True))
