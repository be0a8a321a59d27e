"""The region store: boxes that fit the photo they came from, and an interrupted store that ends with the same bytes."""

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import draw, files_below, make_catalog
from PIL import Image

from capture_lib import profiles
from capture_lib.catalog.table import Catalog
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, DetectorSettings
from capture_lib.proposals.region_encoder import CropEncoder, EncoderSettings
from capture_lib.proposals.region_store import RegionSettings
from capture_lib.utils import InputError

TINY = RegionSettings(max_regions=5, photo_size=64, batch=4, workers=0)


@pytest.fixture(scope="module")
def network() -> Detector:
    torch.manual_seed(0)
    settings = DetectorSettings(backbone="test_resnet", size=48, search_sizes=(48,), channels=16, anchors=(12, 24, 36))
    return Detector(settings).eval()


@pytest.fixture(scope="module")
def describer() -> CropEncoder:
    torch.manual_seed(1)
    return CropEncoder(EncoderSettings(backbone="test_resnet", crop=16, channels=4)).eval()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return make_catalog(tmp_path_factory.mktemp("catalog"), 5, 4, 3, 4)


class DarkBox:
    """A detector that knows: the box around everything dark, and a box over the whole square."""

    settings = DetectorSettings(search_sizes=(96,))

    def propose(self, photos: torch.Tensor, most: int) -> tuple[list, list]:
        boxes = []
        for photo in photos:
            rows, columns = torch.nonzero(photo.amin(0) < 0.7, as_tuple=True)
            dark = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append(torch.tensor([dark, [0, 0, 96, 96], [94, 94, 96, 96]], dtype=torch.float32)[:most])
        return boxes, [torch.tensor([0.9, 0.5, 0.2])[:most] for _ in photos]


class Colour:
    """An encoder whose vector is the mean colour of the region."""

    def features(self, photos: torch.Tensor, boxes: list) -> torch.Tensor:
        cut = [photos[i, :, round(float(y1)):round(float(y2)), round(float(x1)):round(float(x2))].mean((1, 2))
               for i, box in enumerate(boxes) for x1, y1, x2, y2 in box]
        return torch.stack(cut)


# ------------------------------------------------------------------------------------------- the square


@pytest.mark.parametrize(("width", "height"), [(96, 48), (48, 96), (96, 96), (31, 96), (300, 200), (1, 1), (2000, 10)])
def test_a_photo_lies_in_the_top_left_of_its_square(width, height):
    photo = np.full((height, width, 3), 90, np.uint8)
    square, share = regions.square(photo, 60)
    assert square.shape == (60, 60, 3) and square.dtype == np.uint8
    assert share.tolist() == pytest.approx([width / max(width, height), height / max(width, height)])
    across, down = (max(1, round(float(part) * 60)) for part in share)
    assert (square[:down, :across] == 90).all()
    assert (square[down:] == 255).all() and (square[:, across:] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(192, 96), (96, 192), (96, 96), (150, 90), (70, 260)])
def test_boxes_are_fractions_of_the_photo_not_of_the_square(tmp_path, width, height):
    photo, boxes = draw([3], height, width)
    square, share = regions.square(photo, 128)
    square = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
    found, scores, features = next(regions.describe(square, share[None], DarkBox(), Colour(), 3))
    pixels = found * np.array([width, height, width, height])
    assert pixels[0] == pytest.approx(boxes[0], abs=0.025 * max(width, height))
    assert found[1].tolist() == [0, 0, 1, 1]  # the whole square is cut down to the whole photo
    assert len(found) == len(scores) == len(features) == (3 if width == height else 2)  # none lies in the margin
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.2][:len(found)])
    x1, y1, x2, y2 = boxes[0].astype(int)
    inside = photo[y1:y2, x1:x2].mean((0, 1))
    assert features[0] / np.linalg.norm(features[0]) == pytest.approx(inside / np.linalg.norm(inside), abs=0.06)


class Boxes:
    """A detector that proposes given boxes, fractions of the square."""

    def __init__(self, *boxes: list[float]) -> None:
        self.boxes = torch.tensor(boxes).reshape(-1, 4)

    def propose(self, photos: torch.Tensor, count: int) -> tuple[list, list]:
        return [self.boxes * photos.shape[-1]], [torch.linspace(0.7, 0.6, len(self.boxes))]


def test_a_photo_whose_proposals_all_lie_in_the_margin_is_one_region():
    square, share = torch.zeros(1, 3, 40, 40), np.array([[1.0, 0.25]], np.float32)
    beyond, across = [0.1, 0.5, 0.9, 0.8], [0.1, 0.1, 0.5, 0.8]
    for proposed, expected, score in (((beyond,), [0, 0, 1, 1], 0), ((), [0, 0, 1, 1], 0),
                                      ((beyond, across), [0.1, 0.4, 0.5, 1], 0.6)):
        ((boxes, scores),) = regions.locate(square, share, Boxes(*proposed), 9, (80,))
        assert boxes.numpy() == pytest.approx(np.array([expected])) and scores.tolist() == pytest.approx([score])


def test_features_have_a_root_mean_square_of_one(describer):
    features = regions.encode(torch.rand(2, 3, 64, 64), [torch.tensor([[4.0, 4, 40, 60]]).repeat(n, 1) for n in (3, 1)],
                              describer)
    assert [part.shape for part in features] == [(3, 16), (1, 16)]
    assert np.sqrt((np.concatenate(features) ** 2).mean(1)) == pytest.approx(np.ones(4), rel=1e-3)


def test_true_boxes_are_encoded_where_they_lie(tmp_path):
    paths, boxes, expected = [], [], []
    for number, (width, height) in enumerate([(192, 96), (80, 200), (100, 100)]):
        photo, found = draw([number, number + 3], height, width)
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
        boxes.append(found[:1 + number % 2])
        expected += [photo[int(y1):int(y2), int(x1):int(x2)].mean((0, 1)) for x1, y1, x2, y2 in boxes[-1]]
    features = regions.encode_boxes(paths, boxes, Colour(), replace(TINY, batch=2))
    assert features.shape == (4, 3)
    for feature, colour in zip(features, expected, strict=True):
        assert feature / np.linalg.norm(feature) == pytest.approx(colour / np.linalg.norm(colour), abs=0.03)


# -------------------------------------------------------------------------------------------- the store


@pytest.fixture(scope="module")
def stored(catalog, network, describer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    regions.extract(catalog, TINY, network, describer, folder)
    return folder


def test_a_store_is_what_its_contract_says(catalog, stored):
    store, photos = regions.open_store(stored), len(catalog.table)
    assert sorted(files_below(stored)) == ["boxes.npy", "counts.npy", "features.npy", "ids.txt", "meta.json",
                                           "scores.npy"]
    assert store.ids == list(catalog.table["sample_id"])
    assert (store.features.shape, store.features.dtype) == ((photos, 5, 16), np.float16)
    assert (store.boxes.shape, store.boxes.dtype) == ((photos, 5, 4), np.float32)
    assert (store.scores.shape, store.scores.dtype) == ((photos, 5), np.float32)
    assert (store.counts.shape, store.counts.dtype) == ((photos,), np.int32)
    meta = json.loads((stored / "meta.json").read_text())
    assert meta == {"catalog": catalog.fingerprint(), "settings": asdict(TINY), "feature_width": 16}


def test_stored_proposals_lie_in_the_photo_and_the_rest_is_zero(stored):
    store = regions.open_store(stored)
    real = np.arange(5) < store.counts[:, None]
    boxes = store.boxes[real]
    assert store.counts.min() > 0
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(store.scores, axis=1) <= 0).all() and (store.scores[real] > 0).all()
    assert np.sqrt((store.features[real].astype(float) ** 2).mean(1)) == pytest.approx(np.ones(real.sum()), rel=5e-3)
    for array in (store.boxes, store.scores, store.features):
        assert (array[~real] == 0).all()


def test_a_row_belongs_to_its_photo(catalog, network, describer, stored):
    store = regions.open_store(stored)
    for sample in ("gallery-1", "test-3"):
        photos, shares = next(regions.photo_batches([catalog.photos[sample]], TINY))
        boxes, scores, features = next(regions.describe(photos, shares, network, describer, 5))
        row = store.rows([sample])[0]
        assert boxes == pytest.approx(store.boxes[row, :len(boxes)], abs=2e-3)
        assert scores == pytest.approx(store.scores[row, :len(boxes)], abs=2e-2)
        assert features == pytest.approx(store.features[row, :len(boxes)], abs=0.1)


def test_rows_are_given_in_the_order_asked(stored):
    store = regions.open_store(stored)
    ids = ["test-0", "train-0", "gallery-2"]
    assert [store.ids[row] for row in store.rows(ids)] == ids
    assert store.rows([]).shape == (0,)
    with pytest.raises(KeyError):
        store.rows(["nobody"])


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_store_goes_on_and_ends_with_the_same_bytes(catalog, network, describer, stored, tmp_path,
                                                                   monkeypatch, after):
    described, real = [], regions.describe

    def describe(*arguments):
        if len(described) == after:
            raise KeyboardInterrupt
        described.append(len(arguments[0]))
        yield from real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(regions, "describe", describe)
        regions.extract(catalog, TINY, network, describer, tmp_path)
    done = sum(described)
    described.clear()
    monkeypatch.setattr(regions, "describe", lambda *a: (described.append(len(a[0])), real(*a))[1])
    regions.extract(catalog, TINY, network, describer, tmp_path)
    assert done + sum(described) == len(catalog.table) and done == min(4 * after, 16)
    assert files_below(tmp_path) == files_below(stored)


@pytest.mark.parametrize("name", ["ids.txt", "meta.json"])
def test_a_store_that_is_stopped_as_it_begins_or_ends_goes_on(catalog, network, describer, stored, tmp_path,
                                                              monkeypatch, name):
    real = Path.replace

    def replace_file(file: Path, target: Path) -> None:
        if target.name == name:
            raise KeyboardInterrupt
        real(file, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", replace_file)
        regions.extract(catalog, TINY, network, describer, tmp_path)
    assert not (tmp_path / name).exists()
    regions.extract(catalog, TINY, network, describer, tmp_path)
    assert files_below(tmp_path) == files_below(stored)


def test_a_disk_without_room_for_the_store_stops_it_before_anything_is_described(catalog, network, describer, tmp_path,
                                                                                 monkeypatch):
    def full(file: Path, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device"):
        patched.setattr(np, "save", full)
        regions.extract(catalog, TINY, network, describer, tmp_path)
    assert files_below(tmp_path) == {}
    regions.extract(catalog, TINY, network, describer, tmp_path)  # goes on once there is room


def test_boxes_that_another_store_holds_are_described_without_a_detector(catalog, network, describer, stored, tmp_path):
    """Of some other photos too, in another order."""
    known = regions.open_store(stored)
    order = np.random.default_rng(0).permutation(len(known.ids))
    arrays = {name: getattr(known, name)[order] for name in ("features", "boxes", "scores", "counts")}
    known = replace(known, ids=[known.ids[row] for row in order], **arrays)
    fewer = replace(catalog, table=catalog.table[catalog.table["split"] != "gallery"])
    regions.extract(fewer, TINY, None, describer, tmp_path, known)
    found = regions.open_store(tmp_path)
    assert found.ids == list(fewer.table["sample_id"])
    rows = known.rows(found.ids)
    for name in ("boxes", "scores", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(known, name)[rows])
    assert found.features == pytest.approx(known.features[rows], abs=0.1)


def test_workers_change_no_row(catalog, network, describer, stored, tmp_path):
    regions.extract(catalog, replace(TINY, workers=1), network, describer, tmp_path)
    mine, theirs = files_below(tmp_path), files_below(stored)
    assert all(mine[name] == theirs[name] for name in mine if name != "meta.json")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 100), (30, 3000)])
def test_photos_of_odd_sizes_have_regions_inside(network, describer, tmp_path, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    photos, shares = next(regions.photo_batches([tmp_path / "a.png"], TINY))
    boxes, scores, features = next(regions.describe(photos, shares, network, describer, 5))
    assert len(boxes) == len(scores) == len(features) > 0
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.isfinite(features).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_broke_since_the_catalog_was_made_is_named(network, describer, tmp_path, workers):
    made = make_catalog(tmp_path / "catalog")
    made.photos["val-1"].write_bytes(b"broken")
    with pytest.raises(InputError) as error:
        regions.extract(made, replace(TINY, workers=workers), network, describer, tmp_path)
    assert "val-1.png: the photo does not decode" in str(error.value) and len(str(error.value).splitlines()) == 1


class KnowsSizes:
    """Stands for a detector: at 32 pixels it finds one product, at 64 that one again, a little beside, and another."""

    settings = DetectorSettings(merge_nms=0.45)
    found = {32: ([[0.0, 0.0, 0.5, 0.5]], [0.9]),
             64: ([[0.0, 0.0, 0.5, 0.45], [0.6, 0.6, 0.7, 0.7], [0.0, 0.0, 0.45, 0.5]], [0.8, 0.7, 0.6])}

    def propose(self, photos: torch.Tensor, count: int) -> tuple:
        side = photos.shape[-1]
        boxes, scores = map(torch.tensor, self.found[side])
        return [side * boxes[:count]] * len(photos), [scores[:count]] * len(photos)


def test_what_several_sides_find_is_merged_and_a_product_counts_once():
    photos, extents = torch.rand(2, 3, 64, 64), np.ones((2, 2), np.float32)

    def located(count: int, *sides: int) -> list:
        first, second = regions.locate(photos, extents, KnowsSizes(), count, sides)
        torch.testing.assert_close(first, second)
        return [(box, round(score, 3)) for box, score in zip(first[0].tolist(), first[1].tolist(), strict=True)]

    alone = located(5, 64)
    assert [score for _, score in alone] == [0.8, 0.7, 0.6]  # as it finds them: no second NMS
    merged = located(5, 32, 64)
    assert [score for _, score in merged] == [0.9, 0.7] and located(1, 32, 64) == merged[:1]
    np.testing.assert_allclose([box for box, _ in merged], [[0, 0, 0.5, 0.5], [0.6, 0.6, 0.7, 0.7]], atol=1e-6)


def test_photos_of_one_product_are_searched_at_one_side(catalog: Catalog, describer: CropEncoder, tmp_path: Path):
    detector = KnowsSizes()
    detector.settings = replace(detector.settings, search_sizes=(32, 64))
    regions.extract(catalog, TINY, detector, describer, tmp_path)
    counts = dict(zip((store := regions.open_store(tmp_path)).ids, store.counts, strict=True))
    assert {counts[sample] for sample in catalog.singles} == {1}
    assert {counts[sample] for sample in set(store.ids) - catalog.singles} == {2}
    assert set(catalog.split("gallery")["sample_id"]) <= catalog.singles


def test_photos_that_were_not_drawn_are_searched_at_three_sides():
    cpu = profiles.get("cpu")
    own = profiles.for_photos(cpu)
    assert (cpu.detector.search_sizes, own.detector.search_sizes) == ((192,), (192, 448, 896))
    assert (own.regions.photo_size, own.regions.max_regions, own.regions.batch) == (896, 36, cpu.regions.batch // 16)
    assert (own.instances.max_instances, own.instances.min_odds) == (36, 0)  # all that lie apart
    unsized = profiles.get("product1m")
    assert profiles.for_photos(unsized) == unsized


def test_at_one_side_a_photo_is_searched_as_the_detector_does(network: Detector):
    photos = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(photos, (48, 48), mode="bilinear", antialias=True)
    with torch.autocast("cpu", torch.bfloat16):
        boxes, scores = network.propose(resized.contiguous(memory_format=torch.channels_last), 5)
    found = regions.locate(photos, np.ones((2, 2), np.float32), network, 5, (48,))
    for (box, score), plain, sure in zip(found, boxes, scores, strict=True):
        assert torch.equal(box, plain / 48) and torch.equal(score, sure)
