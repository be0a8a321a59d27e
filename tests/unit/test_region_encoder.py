"""Crops against formulas, positive pairs against colours, and one small set learnt."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals.detector import to_tensor
from capture_lib.proposals.region_encoder import EncoderSettings

TINY = EncoderSettings(backbone="test_resnet", crop=24, first_crop=16, channels=8, steps=40, batch=6,
                       learning_rate=5e-3)
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30], [30, 220, 220], [220, 30, 220]])
SLOTS = np.array([[2, 4, 14, 28], [17, 6, 30, 26]], np.float32)


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """16 composites of two coloured boxes each; a box's colour is its owner. Some have one box only."""
    rng = np.random.default_rng(0)
    photos = rng.integers(100, 130, (16, 32, 32, 3)).astype(np.uint8)
    owners = np.array([(2 * np.arange(16)) % 6, (2 * np.arange(16) + 1) % 6]).T.astype(np.int32)
    boxes = np.tile(SLOTS, (16, 1, 1))
    for number in range(16):
        for slot, (x1, y1, x2, y2) in enumerate(SLOTS.astype(int)):
            photos[number, y1:y2, x1:x2] = COLOURS[owners[number, slot]]
    boxes[3, 1], owners[5, 1], boxes[5, 1] = 0, -1, 0  # hidden; not there
    for name, array in (("composites", photos), ("boxes", boxes), ("owners", owners)):
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


# ------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_a_crop_of_a_ramp_is_the_ramp_at_the_centres_of_its_cells(margin):
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    photo = torch.stack([x, y, x + y])[None]
    boxes = torch.tensor([[8.0, 10, 24, 30], [12, 12, 20, 16]])
    crops = encoder.crop(photo, [boxes], 8, margin)
    assert crops.shape == (2, 3, 8, 8)
    for crop, (x1, y1, x2, y2) in zip(crops, boxes.tolist(), strict=True):
        cells = (np.arange(8) + 0.5) / 8
        wide = [(a + b) / 2 + (cells - 0.5) * (b - a) * (1 + margin) - 0.5 for a, b in ((x1, x2), (y1, y2))]
        assert crop[0].numpy() == pytest.approx(np.tile(wide[0], (8, 1)), abs=1e-4)
        assert crop[1].numpy() == pytest.approx(np.tile(wide[1][:, None], 8), abs=1e-4)


class Still:
    """A generator that changes nothing: the first of all, no shift, no tint, the light as it is."""

    def choice(self, options: int | np.ndarray, size: int, replace: bool) -> np.ndarray:
        return np.arange(options)[:size] if isinstance(options, int) else options[:size]

    def normal(self, mean: float, spread: float, size: tuple) -> np.ndarray:
        return np.full(size, mean)

    def uniform(self, low: float, high: float, size: tuple) -> np.ndarray:
        return np.full(size, (low + high) / 2)


def test_the_fast_crops_of_pairs_agree_with_the_exact_ones(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    photos = np.stack([cv2.resize(photo, (64, 64), interpolation=cv2.INTER_CUBIC) for photo in small])
    low = rng.uniform(4, 24, (40, 1, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 32, (40, 1, 2))], 2).astype(np.float32)
    owners = np.arange(40)[:, None] % 20  # each in two photos
    for name, array in (("composites", photos), ("boxes", boxes), ("owners", owners)):
        np.save(tmp_path / f"{name}.npy", array)
    settings = EncoderSettings(crop=16, first_crop=16, margin=0.15, batch=20)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Still())
    for half, fast in enumerate(next(encoder.positive_pairs(tmp_path, settings, 0))[:2]):
        rows = np.arange(20) + 20 * half
        exact = encoder.crop(to_tensor(photos[rows]), list(torch.from_numpy(boxes[rows])), 16, 0.15)
        assert fast.shape == exact.shape
        assert ((fast - exact).abs().mean((1, 2, 3)) < 1.5 / 255).all()


def test_crops_come_in_the_order_of_photos_and_boxes():
    photos = torch.arange(3.0)[:, None, None, None].expand(3, 3, 16, 16)
    box = torch.tensor([[4.0, 4, 12, 12]])
    crops = encoder.crop(photos, [box.repeat(2, 1), box[:0], box], 4, 0.0)
    assert crops.mean((1, 2, 3)).tolist() == [0, 0, 2]


def hue(crops: torch.Tensor) -> np.ndarray:
    """Which of the colours the middle of each crop shows."""
    middle = crops[:, :, 9:15, 9:15].mean((2, 3)).numpy() * 255
    return np.argmin(((middle[:, None] / middle.max(1)[:, None, None] * 220 - COLOURS) ** 2).sum(2), 1)


def test_positive_pairs_show_one_foreground_twice_and_each_only_once_a_batch(coloured):
    stream = encoder.positive_pairs(coloured, replace(TINY, first_crop=24), seed=0)
    changed = []
    for left, right, shown in (next(stream) for _ in range(20)):
        assert hue(left).tolist() == shown.tolist()
        assert left.shape == right.shape == (6, 3, 24, 24) and 0 <= left.min() and left.max() <= 1
        assert np.array_equal(hue(left), hue(right)) and sorted(hue(left)) == list(range(6))
        changed.append((left - right).abs().mean())
    assert min(changed) > 0.01  # light and boxes are jittered


def test_the_first_half_of_the_steps_sees_small_crops(coloured):
    sides = [left.shape[-1] for left, _, _ in encoder.positive_pairs(coloured, replace(TINY, steps=5), seed=0)]
    assert sides == [16, 16, 24, 24, 24]


def test_a_foreground_of_one_composite_has_no_pair(coloured):
    owners = np.load(coloured / "owners.npy")
    owners[owners == 4] = -1
    owners[0, 0] = 4  # foreground 4 is left with one composite
    np.save(coloured / "owners.npy", owners)
    for left, right, _ in encoder.positive_pairs(coloured, replace(TINY, steps=5), seed=0):
        assert set(hue(left)) == set(hue(right)) <= {0, 1, 2, 3, 5} and len(left) == 5


def test_positive_pairs_follow_the_seed(coloured):
    first, again, other = (next(encoder.positive_pairs(coloured, TINY, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------------------------------------- encoders


def test_a_vector_does_not_depend_on_the_other_regions():
    torch.manual_seed(0)
    model = encoder.CropEncoder(TINY).eval()
    photos, boxes = torch.rand(2, 3, 32, 32), [torch.from_numpy(SLOTS), torch.from_numpy(SLOTS[:1])]
    with torch.inference_mode():
        together, alone = model.features(photos, boxes), model.features(photos[1:], boxes[1:])
    assert together.shape == (3, 8 * 4)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)


def test_a_small_set_is_learnt_and_comes_back(coloured, tmp_path):
    torch.manual_seed(0)
    history = encoder.train(TINY, coloured, tmp_path, seed=0)
    assert len(history) == 40 and np.mean(history[-5:]) < history[0] / 5
    model = encoder.load(TINY, tmp_path)
    assert not model.training
    photos = torch.from_numpy(np.load(coloured / "composites.npy")).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        vectors = model.features(photos, [torch.from_numpy(SLOTS[:1])] * 16).numpy()
    owners = np.load(coloured / "owners.npy")[:, 0]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(16)).argmax(1)
    assert (owners[nearest] == owners).mean() > 0.95


def test_the_same_seed_gives_the_same_weights(coloured, tmp_path):
    weights = []
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(seed)
        (tmp_path / str(run)).mkdir()
        encoder.train(replace(TINY, steps=3), coloured, tmp_path / str(run), seed)
        weights.append((tmp_path / str(run) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_captions_bring_together_what_they_call_alike(coloured, tmp_path):
    """Foregrounds 0 and 1, of different colours, share a caption; without it they are far apart."""
    texts = np.eye(6, dtype=np.float32)[[0, 0, 2, 3, 4, 5]]
    settings = replace(TINY, steps=60)
    photos = torch.from_numpy(np.load(coloured / "composites.npy")).permute(0, 3, 1, 2).float() / 255
    alike = []
    for number, given in enumerate((None, texts)):
        torch.manual_seed(0)
        (tmp_path / str(number)).mkdir()
        history = encoder.train(settings, coloured, tmp_path / str(number), 0, given, tmp_path / "0")
        assert len(history) == (60, 30)[number]
        with torch.inference_mode():
            vectors = encoder.load(settings, tmp_path / str(number)).features(photos, [torch.from_numpy(SLOTS)] * 16)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        shown = np.load(coloured / "owners.npy").ravel()
        alike.append(float((vectors[shown == 0] @ vectors[shown == 1].T).mean()))
    assert alike[1] > alike[0] + 0.2


def test_captions_teach_from_where_the_first_half_left_off(coloured, tmp_path):
    """With a rate near zero, the weights stay what they were at half of the steps without captions; or they begin."""
    folders = [tmp_path / name for name in ("plain", "taught")]
    for folder in folders:
        folder.mkdir()
    encoder.train(TINY, coloured, folders[0], 0)
    still = replace(TINY, learning_rate=1e-12)
    encoder.train(still, coloured, folders[1], 0, np.eye(6, dtype=np.float32), folders[0])
    half, whole, taught = (load_file(file) for file in (
        folders[0] / "shared.safetensors", folders[0] / "model.safetensors", folders[1] / "model.safetensors"))
    weights = [name for name in half if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(half[name], taught[name], atol=1e-6) for name in weights)
    assert not all(torch.allclose(half[name], whole[name], atol=1e-3) for name in weights)
    (tmp_path / "alone").mkdir()
    whole_steps = encoder.train(replace(TINY, caption_begin=0.0), coloured, tmp_path / "alone", 0,
                                np.eye(6, dtype=np.float32))
    assert len(whole_steps) == TINY.steps
