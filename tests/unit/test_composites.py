"""Composites: boxes against loops over pixels, sampling against epochs, each switch against a photo without it."""

from collections import Counter
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pytest
from drawn import draw, files_below, make_catalog
from PIL import Image

from capture_lib.catalog.table import read_catalog
from capture_lib.proposals import composites
from capture_lib.proposals.composites import SynthesisSettings
from capture_lib.proposals.foregrounds import extract_foreground
from capture_lib.utils import InputError

TINY = SynthesisSettings(photos=50, foreground_size=64, composites=60, size=64, max_products=4, workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with the foregrounds of 16 drawn photos and 60 composites, and the report."""
    folder = tmp_path_factory.mktemp("synthesis")
    report = composites.cut_foregrounds(make_catalog(folder / "catalog", 8, 8, 0, 0), TINY, folder)
    composites.make_composites(TINY, folder, seed=5)
    return folder, report


# ---- the stage's files

def test_candidates_are_known_singles_first_and_never_val_or_test(tmp_path):
    made = make_catalog(tmp_path, 4, 4, 3, 3)
    products = {"train-0": "multi", "train-1": None, "train-2": "single", "train-3": None, "val-0": "single",
                "val-1": None, "test-0": "single", "test-1": None,
                "gallery-0": None, "gallery-3": "multi"}
    made.table["products"] = [products.get(row.sample_id, row.products) for row in made.table.itertuples()]
    known = ["train-2", "gallery-0", "gallery-1", "gallery-2"]
    assert list(composites.candidates(made, 99).items()) == [*((name, True) for name in known), ("train-1", False),
                                                            ("train-3", False)]
    assert list(composites.candidates(made, 3)) == known[:3]
    made.photos.pop("train-2")
    made.table["labels"] = None  # no label is read
    assert list(composites.candidates(made, 3)) == [*known[1:], "train-1"][:3]


def test_the_report_and_the_files_of_foregrounds(made):
    folder, report = made
    squares, ids = np.load(folder / "foregrounds.npy"), (folder / "ids.txt").read_text().split()
    assert report == {"source": "catalog", "tried": 16, "kept": len(ids), "rejected": report["rejected"]}
    assert squares.shape == (len(ids), 64, 64, 4) and squares.dtype == np.uint8 and len(ids) >= 14
    assert sum(report["rejected"].values()) >= 16 - len(ids)
    kinds = [int(name.split("-")[1]) % 8 for name in ids]
    for square, kind in zip(squares, kinds, strict=True):
        photo, boxes = draw([kind])
        x1, y1 = boxes[0, :2].astype(int)
        assert np.abs(square[8, 8, :3].astype(int) - photo[y1 + 5, x1 + 5]).max() <= 2  # the right product


def test_a_catalog_without_any_usable_photo_gives_an_empty_file(tmp_path):
    Image.new("RGB", (40, 40), "white").save(tmp_path / "a.png")
    made = make_catalog(tmp_path, 1, 0, 0, 0)
    made.photos["train-0"] = tmp_path / "a.png"
    report = composites.cut_foregrounds(made, TINY, tmp_path)
    assert (report["kept"], report["rejected"]) == (0, {"empty": 1})
    assert np.load(tmp_path / "foregrounds.npy").shape == (0, 64, 64, 4)


def test_a_photo_that_broke_since_the_catalog_was_made_is_named(tmp_path):
    made = make_catalog(tmp_path / "catalog", 2, 2, 0, 0)
    broken = made.photos["gallery-1"]
    broken.write_bytes(broken.read_bytes()[:80])
    with pytest.raises(InputError) as error:
        composites.cut_foregrounds(made, TINY, tmp_path)
    assert str(broken) in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "foregrounds.npy").exists()


def test_cutting_that_was_interrupted_goes_on_and_gives_the_same(made, tmp_path, monkeypatch):
    folder, report = made
    catalog = read_catalog(folder / "catalog")
    cut = []

    def once_each(path: Path, single: bool, size: int) -> object:
        if len(cut) == 11:
            cut.append(None)  # only once
            raise KeyboardInterrupt
        cut.append(path)
        return extract_foreground(path, single, size)

    monkeypatch.setattr(composites, "extract_foreground", once_each)
    monkeypatch.setattr(composites, "PART", 5)
    with pytest.raises(KeyboardInterrupt):
        composites.cut_foregrounds(catalog, replace(TINY, workers=0), tmp_path)
    assert composites.cut_foregrounds(catalog, replace(TINY, workers=0), tmp_path) == report
    assert len(cut) == 16 + 1 + 1  # the eleventh photo was cut, but not kept
    for name in ("foregrounds.npy", "ids.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    composites.remove_parts(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"foregrounds.npy", "ids.txt"}


# ---- composites

@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a red, a green and a blue foreground (3, 32, 32, 4) of different shapes."""
    squares = np.zeros((3, 32, 32, 4), np.uint8)
    for number, (height, width) in enumerate([(32, 20), (24, 32), (32, 32)]):
        squares[number, :height, :width, number] = 190
        squares[number, :height, :width, 3] = 255
    file = tmp_path_factory.mktemp("flat") / "foregrounds.npy"
    np.save(file, squares)
    return file


def recorded(monkeypatch, file: Path, number: int, settings: SynthesisSettings, owners: list[int]) -> tuple:
    """A composite, and the layers that were pasted on it, in order; None for a foreground that found no place."""
    tried, pasted, layers = [], [], []
    warp, paste = composites.warp, composites.paste

    def watch_warp(*arguments):
        tried.append(warp(*arguments))
        return tried[-1]

    def watch_paste(*arguments):
        pasted.append(arguments[1])
        return paste(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(composites, "warp", watch_warp)
        patch.setattr(composites, "paste", watch_paste)
        composed = composites.compose(file, np.array(owners), number, settings, 0)
    failures = 0
    for layer in tried:
        failures += 1
        if any(layer is one for one in pasted):
            layers.append(layer)
            failures = 0
        elif failures == 6:
            layers.append(None)
            failures = 0
    return *composed, layers


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_tight_around_what_is_visible(monkeypatch, flat, seed):
    owners = [[0], [0, 1, 2], [2, 1], [1, 0, 2, 1]][seed % 4]
    photo, boxes, visible, layers = recorded(monkeypatch, flat, seed, replace(TINY, blending=False), owners)
    solid = [np.zeros((64, 64), bool) if layer is None else layer[..., 3] > 127 for layer in layers]
    assert photo.shape == (64, 64, 3) and photo.dtype == np.uint8
    for k, owner in enumerate(owners):
        seen = solid[k] & ~np.any([np.zeros_like(solid[k]), *solid[k + 1:]], axis=0)
        assert visible[k] == pytest.approx(seen.sum() / max(solid[k].sum(), 1))
        rows, columns = np.nonzero(seen)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if visible[k] >= 0.4 else [0] * 4
        assert boxes[k].tolist() == expected
        if layers[k] is None:
            continue
        soft = np.any([np.zeros_like(seen), *(layer[..., 3] > 0 for layer in layers[k + 1:] if layer is not None)], 0)
        shown = photo[~soft & (layers[k][..., 3] == 255)].astype(int)  # its colour is what the photo shows there
        assert (np.delete(shown, owner, axis=1) < 60).all() and (shown[:, owner] > 60).mean() > 0.9


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_no_foreground_is_covered_more_than_allowed(monkeypatch, flat, overlap):
    settings = replace(TINY, size=32, overlap=overlap)
    found = [recorded(monkeypatch, flat, number, settings, [0, 1, 2]) for number in range(40)]
    boxes, visible = (np.concatenate([one[part] for one in found]) for part in (1, 2))
    placed = np.array([layer is not None for one in found for layer in one[3]])
    assert np.array_equal(visible > 0, placed) or overlap == 1.0
    assert (visible[placed] >= 1 - overlap - 1e-6).all()
    assert np.array_equal((boxes == 0).all(1), visible < 0.4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 32).all()
    assert (visible < 0.4).any() == (overlap != 0.3 or not placed.all())


@pytest.mark.parametrize("switch", ["blending", "light", "shadow", "distractors"])
def test_each_switch_changes_the_photo_and_no_box(flat, switch):
    changed = 0
    for number in range(6):
        photos = []
        for on in (True, False):
            off = dict.fromkeys(("blending", "light", "shadow", "distractors"), False)
            settings = replace(TINY, **off | {switch: on})
            photos.append(composites.compose(flat, np.array([1, 0]), number, settings, 0))
        assert np.array_equal(photos[0][1], photos[1][1])
        changed += not np.array_equal(photos[0][0], photos[1][0])
    assert changed >= 3


def test_without_any_switch_a_paste_keeps_its_colours_and_its_sharp_edge(flat):
    bare = replace(TINY, blending=False, light=False, shadow=False, distractors=False, tilt=0.0)
    scene = np.full((64, 64, 3), 99.0, np.float32)
    layer = composites.warp(np.load(flat)[0], 32, 0, 64, (32, 32))
    photo = composites.paste(scene, layer, 0.5, bare, np.random.default_rng(0))
    assert (photo[layer[..., 3] == 255] == layer[layer[..., 3] == 255][:, :3]).all()
    assert (photo[layer[..., 3] == 0] == 99).all()


def test_light_comes_from_one_side_and_shadows_fall_on_the_other(tmp_path):
    layer = np.full((64, 64, 4), 200, np.uint8)  # as bright as the scene, so that its shadow alone is seen
    layer[..., 3] = 0
    layer[20:40, 28:36, 3] = 255
    scene = np.full((64, 64, 3), 200, np.float32)
    alone = replace(TINY, blending=False, light=False, distractors=False)
    for light in (-1, 1):
        shadow = 200 - composites.paste(scene, layer, light, alone, np.random.default_rng(1))[..., 0]
        assert np.sign((shadow.sum(0) * (np.arange(64) - 31.5)).sum()) == light
    fill = np.zeros((1, 32, 32, 4), np.uint8)
    fill[..., 3], fill[..., :3] = 255, 128
    np.save(tmp_path / "fill.npy", fill)
    lit = replace(TINY, blending=False, shadow=False, distractors=False)
    sides = set()
    for number in range(8):
        with_light, without = (
            composites.compose(tmp_path / "fill.npy", np.array([0]), number, replace(lit, light=on), 0)[0].astype(float)
            for on in (True, False))
        ratio = (with_light[:8] / np.maximum(without[:8], 1)).mean((0, 2))  # the scene above the product
        sides.add(np.sign(ratio[:20].mean() - ratio[-20:].mean()))
    assert sides == {-1.0, 1.0}


def test_warp_scales_centres_and_tilts():
    square = np.zeros((32, 32, 4), np.uint8)
    square[:30, :10, 3] = 255
    rows, columns = np.nonzero(composites.warp(square, 60, 0, 100, (40, 50))[..., 3] > 127)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == pytest.approx((60, 20), abs=2)
    assert (rows.mean(), columns.mean()) == pytest.approx((50, 40), abs=1)
    rows, columns = np.nonzero(composites.warp(square, 60, 90, 100, (40, 50))[..., 3] > 127)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == pytest.approx((20, 60), abs=2)


@pytest.mark.parametrize("seed", range(3))
def test_scenes_are_photos_and_differ(seed):
    scenes = [composites.draw_scene(32, np.random.default_rng([seed, number])) for number in range(8)]
    assert all(scene.shape == (32, 32, 3) and scene.dtype == np.uint8 for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == 8


@pytest.mark.parametrize(("foregrounds", "max_products"), [(7, 5), (3, 5), (1, 4), (20, 3), (11, 1)])
def test_owners_are_sampled_epoch_after_epoch(foregrounds, max_products):
    epochs = (np.random.default_rng([9, 7, epoch]).permutation(foregrounds) for epoch in count())
    order = chain.from_iterable(epochs)
    sampled = composites.sample_owners(100, foregrounds, max_products, seed=9)
    assert len(sampled) == 100
    for number, owners in enumerate(sampled):
        assert owners.tolist() == list(islice(order, number % max_products + 1))


@pytest.mark.parametrize(("foregrounds", "photos"), [(7, 30), (16, 100), (5, 1)])
def test_each_foreground_is_used_equally_often(foregrounds, photos):
    used = Counter(chain(*composites.sample_owners(photos, foregrounds, 5, 0)))
    assert max(used.values()) - min(used[owner] for owner in range(foregrounds)) <= 1
    one, other = (composites.sample_owners(4, 50, 5, seed)[3].tolist() for seed in (0, 1))
    assert one != other


def test_files_of_composites_fit_together(made):
    folder, _ = made
    photos, boxes, owners, visible = (np.load(folder / f"{name}.npy")
                                      for name in ("composites", "boxes", "owners", "visible"))
    assert (photos.shape, photos.dtype) == ((60, 64, 64, 3), np.uint8)
    assert (boxes.shape, boxes.dtype) == ((60, 4, 4), np.float32)
    assert (owners.shape, owners.dtype) == ((60, 4), np.int32) and visible.dtype == np.float32
    assert np.array_equal((owners >= 0).sum(1), 1 + np.arange(60) % 4)
    assert owners.max() < len(np.load(folder / "foregrounds.npy"))
    boxed = (boxes > 0).any(-1)
    assert np.array_equal(boxed, visible >= 0.4) and not boxed[owners < 0].any() and boxed.mean() > 0.4
    assert (boxes[boxed][:, 2:] > boxes[boxed][:, :2]).all() and boxes.min() >= 0 and boxes.max() <= 64
    assert len({photo.tobytes() for photo in photos}) == 60


def test_composites_depend_on_the_seed_and_not_on_the_workers(made, tmp_path):
    folder, _ = made
    names = ("composites", "boxes", "owners", "visible")
    (tmp_path / "foregrounds.npy").write_bytes((folder / "foregrounds.npy").read_bytes())
    composites.make_composites(replace(TINY, workers=0), tmp_path, seed=5)
    assert all((tmp_path / f"{name}.npy").read_bytes() == files_below(folder)[f"{name}.npy"] for name in names)
    owners = np.load(folder / "owners.npy")[40]
    owners = owners[owners >= 0]
    one, other = (composites.compose(folder / "foregrounds.npy", owners, 40, TINY, seed)[0] for seed in (5, 6))
    assert np.array_equal(one, np.load(folder / "composites.npy")[40])
    assert not np.array_equal(one, other)
