"""The rendered world: true to its settings, to its boxes, and to the statistics of the published lists."""

from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from capture_lib import world
from capture_lib.catalog import table as catalog
from capture_lib.catalog.photos import load_photo
from capture_lib.world import building, staging
from tests.drawn import TINY_WORLD
from tests.launched import processes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    world.build(TINY_WORLD, folder, workers=1)
    return folder


def true_mask(sample_id: str) -> np.ndarray:
    return (world.redraw(TINY_WORLD, sample_id).pieces > 0).astype(np.uint8)


# ---- photos, boxes and the catalog
def test_the_number_of_workers_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    world.build(TINY_WORLD, tmp_path, workers=2)
    files = sorted(path.relative_to(tiny) for path in tiny.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((tiny / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_the_catalog_keeps_train_unlabelled(tiny: Path) -> None:
    table = catalog.read_catalog(tiny).table
    train = table[table["split"] == "train"]
    for column in ("labels", "boxes", "box_labels"):
        assert not any(train[column])
    assert train["products"].isna().all() and train["combination"].isna().all()
    assert set(table["combination"]) == {None, "seen", "unseen", "held-out brand"}
    for row in table[table["split"] != "train"].itertuples():
        assert row.labels == row.box_labels and len(row.boxes) == len(row.labels) > 0
        assert row.products == ("single" if row.split == "gallery" else "multi")


def test_every_photo_is_there_and_none_twice(tiny: Path) -> None:
    table = catalog.read_catalog(tiny).table
    photos = [(tiny / image).read_bytes() for image in table["image"]]
    assert len(set(photos)) == len(table) == 386
    assert cv2.imdecode(np.frombuffer(photos[0], np.uint8), cv2.IMREAD_COLOR).shape == (96, 96, 3)


def test_boxes_lie_inside_the_photo(tiny: Path) -> None:
    for boxes in catalog.read_catalog(tiny).table["boxes"]:
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96


def test_which_background_a_photo_has(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, plain_background = [], staging.backdrops.plain_background

    def watch(*arguments):
        drawn.append(1)
        return plain_background(*arguments)

    monkeypatch.setattr(staging.backdrops, "plain_background", watch)
    plain = []
    for sample in [f"gallery-{n:06d}" for n in range(12)] + [f"val-{n:06d}" for n in range(8)]:
        drawn.clear()
        plain.append(world.redraw(TINY_WORLD, sample).plain)
        assert plain[-1] == bool(drawn)
    assert 0 < sum(plain) < len(plain)


def test_a_box_is_tight_around_the_mask(tiny: Path) -> None:
    for row in catalog.read_catalog(tiny).split("gallery")[:20].itertuples():
        mask = true_mask(row.sample_id)
        x1, y1, x2, y2 = (int(value) for value in row.boxes[0])
        assert mask.shape == (96, 96) and set(np.unique(mask)) == {0, 1}
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()


def test_the_mask_belongs_to_the_photo_on_disk(tiny: Path) -> None:
    """Products differ from the ground that surrounds them, at the place where the mask says they are."""
    differences = []
    for row in catalog.read_catalog(tiny).split("gallery")[:30].itertuples():
        photo = load_photo(tiny / row.image).astype(float)
        mask = true_mask(row.sample_id)
        ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - cv2.dilate(mask, np.ones((3, 3), np.uint8))
        rim = mask - cv2.erode(mask, np.ones((7, 7), np.uint8))
        differences.append(np.abs(photo[rim == 1].mean(0) - photo[ring == 1].mean(0)).mean())
    assert np.median(differences) > 20


def test_boxes_of_a_drawn_map() -> None:
    pieces = np.zeros((8, 10), np.uint8)
    pieces[2:5, 3:9], pieces[4:7, 1:4] = 1, 2
    assert world.boxes_of(pieces, 2) == [[3.0, 2.0, 9.0, 5.0], [1.0, 4.0, 4.0, 7.0]]


def test_all_products_of_a_group_are_visible_and_of_the_promised_height() -> None:
    products, shares = world.products_of(TINY_WORLD), []
    for sample in [s for s in world.plan(TINY_WORLD) if s.split in ("val", "test")]:
        rng = np.random.default_rng(sample.index)
        photo = world.take_photo([products[i] for i in sample.products], 224, 3, rng)
        boxes = np.array(world.boxes_of(photo.pieces, len(sample.products)))
        heights = boxes[:, 3] - boxes[:, 1]
        assert (heights > 20).all() and ((boxes[:, 2] - boxes[:, 0]) > 6).all()
        shares += (np.maximum(heights, boxes[:, 2] - boxes[:, 0]) / 224).tolist()
    assert 0.3 < np.median(shares) < 0.6


def test_an_interrupted_build_is_taken_up_and_another_world_refused(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    draw = building._draw_folder
    monkeypatch.setattr(building, "_draw_folder", lambda job: draw(job) if job[2] == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.build(TINY_WORLD, tmp_path, workers=1)
    assert not (tmp_path / "catalog.parquet").exists()
    monkeypatch.setattr(building, "_draw_folder", lambda job: draw(job) if job[2] == 1 else 1 / 0)
    world.build(TINY_WORLD, tmp_path, workers=1)  # folder 0 is not drawn again
    assert (tmp_path / "catalog.parquet").read_bytes() == (tiny / "catalog.parquet").read_bytes()
    world.build(TINY_WORLD, tmp_path, workers=1)  # complete: nothing to draw
    with pytest.raises(catalog.InputError, match="another world"):
        world.build(replace(TINY_WORLD, seed=4), tmp_path)


@pytest.mark.parametrize("mine", ["catalog.parquet", "images/mine.jpg", "parts", "thesis.tex"])
def test_a_folder_with_other_things_is_refused_and_stays(tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(catalog.InputError, match="holds files that belong to no drawn world; name an empty folder"):
        world.build(TINY_WORLD, tmp_path, workers=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / mine]


def test_a_damaged_note_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text((tiny / "world.json").read_text()[:30])
    for call in (lambda: world.build(TINY_WORLD, tmp_path), lambda: world.settings_of(tmp_path)):
        with pytest.raises(catalog.InputError, match="world.json: not a JSON object; remove it"):
            call()


def build_in_a_process(folder: Path, said: Path) -> None:
    with said.open("a") as file, redirect_stderr(file):
        world.build(TINY_WORLD, folder, workers=1)


def test_two_processes_draw_a_world_once(tiny: Path, tmp_path: Path) -> None:
    made, said = tmp_path / "made", tmp_path / "said"
    both = [processes().Process(target=build_in_a_process, args=(made, said)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert (made / "catalog.parquet").read_bytes() == (tiny / "catalog.parquet").read_bytes()
    assert said.read_text() == f"waiting for another process that draws {made} …\n"


@pytest.mark.parametrize("sample", ["gallery-000060", "shop-000001", "gallery", "gallery--1"])
def test_a_photo_of_no_sample(sample: str) -> None:
    with pytest.raises(catalog.InputError, match="not in world 'tiny'"):
        world.redraw(TINY_WORLD, sample)


def test_scenes_of_a_folder_are_shared_out_among_the_splits(tmp_path: Path) -> None:
    for number in range(9):
        photo = np.full((60, 80, 3), 20 * number, np.uint8)
        photo[::7] = 255 - 20 * number
        cv2.imwrite(str(tmp_path / f"scene {number}.png"), photo)
    settings = replace(TINY_WORLD, train=4, gallery=24, val=4, test=4, scenes=str(tmp_path))
    shares = [set(world.scenes_of(settings, split)) for split in catalog.SPLITS]
    assert sum(map(len, shares)) == len(set.union(*shares)) == 9 and min(map(len, shares)) == 2
    world.build(settings, tmp_path / "world", workers=1)
    plain = replace(settings, scenes="")
    world.build(plain, tmp_path / "plain", workers=1)
    files = [path.relative_to(tmp_path / "world") for path in (tmp_path / "world").rglob("*.jpg")]
    same = [(tmp_path / "world" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes() for file in files]
    assert 0 < sum(same) < len(same)  # plain grounds stay, busy ones change
    assert world.settings_of(tmp_path / "world") == settings
    assert world.settings_of(tmp_path) is None
    (tmp_path / "scene 8.png").write_bytes(b"no photo")
    with pytest.raises(catalog.InputError, match="scene 8.png: the photo does not decode"):
        world.build(settings, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(catalog.InputError, match="scenes need four"):
        world.build(replace(settings, scenes=str(tmp_path / "plain")), tmp_path / "none")


def test_no_pose_is_shared_between_splits() -> None:
    """What covers a photo of one product, redrawn: never twice the same, in train and gallery."""
    shown = [sample for sample in world.plan(TINY_WORLD) if len(sample.products) == 1]
    masks = [true_mask(sample.sample_id).tobytes() for sample in shown]
    assert len(set(masks)) == len(masks) > 150
