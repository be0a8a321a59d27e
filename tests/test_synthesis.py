"""Foregrounds and composites: masks against drawn truth, boxes against loops over pixels, decks against a dealt one."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import GROUND, draw, files_below, make_catalog
from PIL import Image

from capture_lib import synthesis
from capture_lib.faults import InputError
from capture_lib.synthesis import SynthesisSettings

TINY = SynthesisSettings(photos=50, foreground_size=64, composites=60, size=64, most_products=4, workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with the foregrounds of 16 drawn photos and 60 composites, and the report."""
    folder = tmp_path_factory.mktemp("synthesis")
    report = synthesis.cut_foregrounds(make_catalog(folder / "catalog", 8, 8, 0, 0), TINY, folder)
    synthesis.make_composites(TINY, folder, seed=5)
    return folder, report


# ------------------------------------------------------------------------------------------- foregrounds


@pytest.mark.parametrize(("shape", "fitted"), [((50, 100, 3), (32, 64, 3)), ((100, 50, 3), (64, 32, 3)),
                                               ((300, 900, 3), (21, 64, 3)), ((1, 1, 3), (64, 64, 3)),
                                               ((100, 20_000, 3), (1, 64, 3)), ((64, 48, 4), (64, 48, 4))])
def test_the_longer_side_is_fitted_and_the_aspect_kept(shape, fitted):
    assert synthesis.fit(np.zeros(shape, np.uint8), 64).shape == fitted


@pytest.mark.parametrize("kind", range(8))
def test_grabcut_finds_a_drawn_product(kind):
    photo, boxes = draw([kind])
    mask = synthesis.grabcut(photo)
    x1, y1, x2, y2 = boxes[0].astype(int)
    truth = np.zeros_like(mask)
    truth[y1:y2, x1:x2] = 1
    assert set(np.unique(mask)) == {0, 1} and mask.dtype == np.uint8
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95
    assert synthesis.mask_faults(mask, single=False) == []


def test_grabcut_does_not_depend_on_what_ran_before():
    """Else its masks would depend on which worker got which photos."""
    photo, _ = draw([3])
    plain = (photo == GROUND).all(2)
    ground = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)  # many colours at the border
    photo[plain] = cv2.resize(ground, (96, 96))[plain]
    masks = set()
    for seed in range(6):
        cv2.setRNGSeed(seed)
        masks.add(synthesis.grabcut(photo).tobytes())
    assert len(masks) == 1


@pytest.mark.parametrize("shape", [(64, 64), (1, 64), (64, 1), (2, 2), (5, 64)])
@pytest.mark.parametrize("noise", [False, True])
def test_photos_without_a_product_give_faults_and_no_crash(shape, noise):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*shape, 3)).astype(np.uint8) if noise else np.full((*shape, 3), 200, np.uint8)
    mask = synthesis.grabcut(photo)
    assert mask.shape == shape and set(np.unique(mask)) <= {0, 1}
    if not noise:
        assert synthesis.mask_faults(mask, single=True) == ["empty"]


def test_tidy_fills_holes_and_removes_specks_only():
    mask = np.zeros((60, 60), np.uint8)
    mask[10:40, 10:40] = 1
    mask[50:55, 10:50] = 1  # a fifth of the area: stays
    expected = mask.copy()
    mask[20:25, 20:25] = 0
    mask[3:7, 50:54] = 1
    assert np.array_equal(synthesis.tidy(mask), expected)


def test_main_piece_and_its_share():
    mask = np.zeros((40, 40), np.uint8)
    mask[2:12, 2:12], mask[20:35, 20:35] = 1, 1
    piece, share = synthesis.main_piece(mask)
    assert piece.sum() == 225 and piece[25, 25] and share == pytest.approx(225 / 325)
    assert synthesis.main_piece(np.zeros((5, 5), np.uint8))[1] == 0


def box_mask(*boxes: tuple[int, int, int, int], size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    return mask


@pytest.mark.parametrize(("mask", "single", "faults"), [
    (box_mask((20, 20, 70, 70)), False, []),
    (box_mask(), True, ["empty"]),
    (box_mask((20, 20, 70, 70), (80, 80, 90, 90)), True, []),
    (box_mask((20, 20, 70, 70), (80, 80, 90, 90)), False, ["several pieces"]),
    (box_mask((10, 20, 40, 70), (60, 20, 90, 70)), True, ["several pieces"]),
    (box_mask((45, 45, 60, 60)), True, ["too small or too large"]),
    (box_mask((4, 4, 96, 96)), True, ["too small or too large"]),
    (box_mask((2, 20, 60, 70)), True, ["touches the edge"]),
    (box_mask((20, 20, 70, 98)), True, ["touches the edge"]),
    (box_mask((10, 10, 90, 20), (10, 10, 20, 90)), True, ["not compact"]),
    (box_mask((20, 20, 80, 70), (20, 20, 50, 90)), True, []),
    (box_mask((20, 20, 80, 60), (20, 20, 45, 90)), False, ["not compact"])])
def test_why_a_mask_is_no_product(mask, single, faults):
    assert synthesis.mask_faults(mask, single) == faults


def test_a_cut_foreground_is_tight_in_its_corner_and_keeps_its_pixels(tmp_path):
    photo, boxes = draw([2], 64, 64)
    Image.fromarray(photo).save(tmp_path / "a.png")
    square = synthesis.cut((tmp_path / "a.png", True), TINY)
    x1, y1, x2, y2 = boxes[0].astype(int)
    solid = square[..., 3] == 255
    assert square.shape == (64, 64, 4) and set(np.unique(square[..., 3])) == {0, 255}
    assert solid[0].any() and solid[:, 0].any()
    assert solid.any(1).sum() == pytest.approx(y2 - y1, abs=2) and solid.any(0).sum() == pytest.approx(x2 - x1, abs=2)
    assert np.array_equal(square[5:15, 5:15, :3], photo[y1 + 5:y1 + 15, x1 + 5:x1 + 15])


@pytest.mark.parametrize("size", [(1, 1), (20_000, 100), (3, 700)])
def test_photos_of_odd_sizes_are_thrown_out_with_a_reason(tmp_path, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    assert isinstance(synthesis.cut((tmp_path / "a.png", False), TINY), list)


def test_candidates_are_known_singles_first_and_never_val_or_test(tmp_path):
    made = make_catalog(tmp_path, 4, 3, 3, 3)
    products = {"train-0": "multi", "train-1": None, "train-2": "single", "train-3": None, "val-0": "single",
                "val-1": None, "test-0": "single", "test-1": None}
    made.table["products"] = [products.get(row.sample_id, row.products) for row in made.table.itertuples()]
    known = ["train-2", "gallery-0", "gallery-1", "gallery-2"]
    assert list(synthesis.candidates(made, 99).items()) == [*((name, True) for name in known), ("train-1", False),
                                                            ("train-3", False)]
    assert list(synthesis.candidates(made, 3)) == known[:3]
    made.photos.pop("train-2")
    made.table["labels"] = None  # no label is read
    assert list(synthesis.candidates(made, 3)) == [*known[1:], "train-1"][:3]


def test_the_report_and_the_files_of_foregrounds(made):
    folder, report = made
    squares, ids = np.load(folder / "foregrounds.npy"), (folder / "ids.txt").read_text().split()
    assert report == {"source": "catalog", "tried": 16, "kept": len(ids), "faults": report["faults"]}
    assert squares.shape == (len(ids), 64, 64, 4) and squares.dtype == np.uint8 and len(ids) >= 14
    assert sum(report["faults"].values()) >= 16 - len(ids)
    kinds = [int(name.split("-")[1]) % 8 for name in ids]
    for square, kind in zip(squares, kinds, strict=True):
        photo, boxes = draw([kind])
        x1, y1 = boxes[0, :2].astype(int)
        assert np.abs(square[8, 8, :3].astype(int) - photo[y1 + 5, x1 + 5]).max() <= 2  # the right product


def test_a_catalog_without_any_usable_photo_gives_an_empty_file(tmp_path):
    Image.new("RGB", (40, 40), "white").save(tmp_path / "a.png")
    made = make_catalog(tmp_path, 1, 0, 0, 0)
    made.photos["train-0"] = tmp_path / "a.png"
    report = synthesis.cut_foregrounds(made, TINY, tmp_path)
    assert (report["kept"], report["faults"]) == (0, {"empty": 1})
    assert np.load(tmp_path / "foregrounds.npy").shape == (0, 64, 64, 4)


def test_a_photo_that_broke_since_the_catalog_was_made_is_named(tmp_path):
    made = make_catalog(tmp_path / "catalog", 2, 2, 0, 0)
    broken = made.photos["gallery-1"]
    broken.write_bytes(broken.read_bytes()[:80])
    with pytest.raises(InputError) as error:
        synthesis.cut_foregrounds(made, TINY, tmp_path)
    assert str(broken) in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "foregrounds.npy").exists()


# -------------------------------------------------------------------------------------------- composites


def flat_foregrounds() -> np.ndarray:
    """A red, a green and a blue foreground (3, 32, 32, 4) of different shapes."""
    squares = np.zeros((3, 32, 32, 4), np.uint8)
    for number, (height, width) in enumerate([(32, 20), (24, 32), (32, 32)]):
        squares[number, :height, :width, number] = 190
        squares[number, :height, :width, 3] = 255
    return squares


def recorded(monkeypatch, seed: int, settings: SynthesisSettings, owners: list[int]) -> tuple:
    """A composite, and the sheets that were pasted on it, in order."""
    sheets, warp = [], synthesis.warp

    def watch(*arguments):
        sheets.append(warp(*arguments))
        return sheets[-1]

    monkeypatch.setattr(synthesis, "warp", watch)
    composed = synthesis.compose(flat_foregrounds(), np.array(owners), settings, np.random.default_rng(seed))
    return *composed, sheets


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_tight_around_what_is_visible(monkeypatch, seed):
    owners = [[0], [0, 1, 2], [2, 1], [1, 0, 2, 1]][seed % 4]
    photo, boxes, visible, sheets = recorded(monkeypatch, seed, TINY, owners)
    solid = [sheet[..., 3] > 127 for sheet in sheets]
    assert photo.shape == (64, 64, 3) and photo.dtype == np.uint8
    for k, owner in enumerate(owners):
        seen = solid[k] & ~np.any([np.zeros_like(solid[k]), *solid[k + 1:]], axis=0)
        assert visible[k] == pytest.approx(seen.sum() / solid[k].sum())
        rows, columns = np.nonzero(seen)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if visible[k] >= 0.4 else [0] * 4
        assert boxes[k].tolist() == expected
        shown = photo[seen & (sheets[k][..., 3] == 255)].astype(int)  # its colour is what the photo shows there
        assert (np.delete(shown, owner, axis=1) < 60).all() and (shown[:, owner] > 60).mean() > 0.9


def test_a_hidden_foreground_has_no_box(monkeypatch):
    found = [recorded(monkeypatch, seed, replace(TINY, size=32), [0, 1, 2])[1:3] for seed in range(60)]
    boxes, visible = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert 0 < (visible < 0.4).sum() < len(visible) / 2
    assert np.array_equal((boxes == 0).all(1), visible < 0.4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 32).all()


def test_warp_scales_centres_and_tilts():
    square = np.zeros((32, 32, 4), np.uint8)
    square[:30, :10, 3] = 255
    rows, columns = np.nonzero(synthesis.warp(square, 60, 0, 100, (40, 50))[..., 3] > 127)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == pytest.approx((60, 20), abs=2)
    assert (rows.mean(), columns.mean()) == pytest.approx((50, 40), abs=1)
    rows, columns = np.nonzero(synthesis.warp(square, 60, 90, 100, (40, 50))[..., 3] > 127)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == pytest.approx((20, 60), abs=2)


@pytest.mark.parametrize("seed", range(3))
def test_scenes_are_photos_and_differ(seed):
    scenes = [synthesis.draw_scene(32, np.random.default_rng([seed, number])) for number in range(8)]
    assert all(scene.shape == (32, 32, 3) and scene.dtype == np.uint8 for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == 8


@pytest.mark.parametrize(("foregrounds", "most"), [(7, 5), (3, 5), (1, 4), (20, 3), (11, 1)])
def test_deal_is_an_endless_shuffled_deck(foregrounds, most):
    deck = list(chain(*(np.random.default_rng([9, 7, turn]).permutation(foregrounds) for turn in range(400))))
    for number in range(100):
        count = number % most + 1
        expected, deck = deck[:count], deck[count:]
        assert synthesis.deal(number, foregrounds, most, seed=9).tolist() == expected


@pytest.mark.parametrize(("foregrounds", "composites"), [(7, 30), (16, 100), (5, 1)])
def test_each_foreground_is_used_equally_often(foregrounds, composites):
    used = Counter(chain(*(synthesis.deal(number, foregrounds, 5, 0) for number in range(composites))))
    assert max(used.values()) - min(used[owner] for owner in range(foregrounds)) <= 1
    assert synthesis.deal(3, 50, 5, 0).tolist() != synthesis.deal(3, 50, 5, 1).tolist()


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
    synthesis.make_composites(replace(TINY, workers=2), tmp_path, seed=5)
    assert all((tmp_path / f"{name}.npy").read_bytes() == files_below(folder)[f"{name}.npy"] for name in names)
    one, other = (synthesis.compose_many(range(40, 41), tmp_path / "foregrounds.npy", TINY, seed)[0] for seed in (5, 6))
    assert np.array_equal(one[1], np.load(folder / "composites.npy")[40])
    assert not np.array_equal(one[1], other[1])
