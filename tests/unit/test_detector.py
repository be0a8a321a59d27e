"""The proposal network against torchvision's own forward, batches and overlaps against loops, and one batch learnt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import make_composites
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, nms

from capture_lib.proposals import detector
from capture_lib.proposals.composites import SynthesisSettings
from capture_lib.proposals.detector import Detector, DetectorSettings

TINY = DetectorSettings(backbone="test_resnet", size=64, channels=32, anchors=(16, 28, 44), steps=80, batch=6,
                        learning_rate=3e-3)
PLAIN = DetectorSettings(steps=30, batch=4, enlarged=(1.0,))


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SynthesisSettings(foreground_size=48, composites=6, size=64, max_products=2, workers=1)
    return make_composites(tmp_path_factory.mktemp("composites"), settings)


def build(seed: int = 0, **changes) -> Detector:
    torch.manual_seed(seed)
    return Detector(replace(TINY, **changes))


def photos(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def some_boxes() -> list[torch.Tensor]:
    return [torch.tensor([[8.0, 8, 40, 50], [30, 30, 60, 60]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 20, 20]])]


# -------------------------------------------------------------------------------------------- the network


def test_the_map_has_stride_8_and_every_cell_all_anchors():
    model = build().eval()
    anchors, logits, deltas = model.predict(photos())
    assert model.feature_map(photos()).shape == (3, 32, 8, 8)
    assert len(anchors) == 3 and anchors[0].shape == (8 * 8 * 9, 4)
    assert logits.shape == (3 * 576, 1) and deltas.shape == (3 * 576, 4)
    sides = anchors[0][:9, 2:] - anchors[0][:9, :2]
    assert sorted(sides.prod(1).sqrt().round().tolist()) == pytest.approx(sorted([16, 28, 44] * 3), abs=1)
    assert sorted((sides[:, 1] / sides[:, 0]).tolist()) == pytest.approx(sorted([0.5, 1, 2] * 3), rel=0.15)
    centres = (anchors[0][::9, :2] + anchors[0][::9, 2:]) / 2
    assert centres.tolist() == [[8 * x, 8 * y] for y in range(8) for x in range(8)]


def torchvision_losses(model: Detector, boxes: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The losses of torchvision's own forward on the same map."""
    feature_map = model.feature_map(photos())
    targets = [{"boxes": box} for box in boxes]
    torch.manual_seed(7)  # anchors are sampled
    return model.rpn(ImageList(photos(), [(64, 64)] * 3), {"0": feature_map}, targets)[1]


@pytest.mark.parametrize("boxes", [some_boxes(), [torch.zeros(0, 4)] * 3])
def test_losses_are_those_of_torchvision_and_the_box_loss_has_its_weight(boxes):
    model = build(box_weight=4.0).train()
    theirs = torchvision_losses(model, boxes)
    torch.manual_seed(7)
    ours = model.losses(photos(), boxes)
    torch.testing.assert_close(ours["objectness"], theirs["loss_objectness"])
    torch.testing.assert_close(ours["box"], 4 * theirs["loss_rpn_box_reg"])
    assert (ours["box"] > 0) == any(len(box) for box in boxes)


def test_proposals_are_the_best_of_torchvision():
    model = build().eval()
    feature_map = model.feature_map(photos())
    with torch.inference_mode():
        theirs = model.rpn(ImageList(photos(), [(64, 64)] * 3), {"0": feature_map})[0]
    boxes, scores = model.propose(photos(), 5)
    for box, their, score in zip(boxes, theirs, scores, strict=True):
        torch.testing.assert_close(box, their[:5])
        assert len(box) == len(score) == 5


def test_proposals_lie_in_the_photo_apart_and_best_first():
    model = build(nms=0.4).eval()
    for box, score in zip(*model.propose(photos(4, seed=3), 30), strict=True):
        assert 0 < len(box) <= 30
        assert (box >= 0).all() and (box <= 64).all() and (box[:, 2:] > box[:, :2]).all()
        assert (score[1:] <= score[:-1]).all() and (score >= 0).all() and (score <= 1).all()
        assert (box_iou(box, box).fill_diagonal_(0) <= 0.4).all()
        assert nms(box, score, 0.4).tolist() == list(range(len(box)))


def test_proposals_of_a_photo_do_not_depend_on_its_batch():
    model = build().eval()
    together = model.propose(photos(), 6)[0]
    for number in range(3):
        torch.testing.assert_close(model.propose(photos()[number:number + 1], 6)[0][0], together[number],
                                   atol=1e-3, rtol=1e-4)


def test_region_features_of_a_flat_photo_are_its_map():
    model = build().eval()
    flat = torch.full((1, 3, 64, 64), 0.3)
    with torch.inference_mode():
        pooled = model.features(flat, [torch.tensor([[20.0, 20, 44, 44], [24, 16, 40, 48]])])
        centre = model.feature_map(flat)[0, :, 4, 4]
    assert pooled.shape == (2, 32 * 4)
    torch.testing.assert_close(pooled.view(2, 32, 2, 2).mean((0, 2, 3)), centre, atol=0.05, rtol=0.1)


# ----------------------------------------------------------------------------------------------- batches


def test_bytes_become_fractions():
    bytes_ = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    tensor = detector.to_tensor(bytes_)
    assert tensor.shape == (2, 3, 4, 4) and tensor.dtype == torch.float32
    assert torch.equal((tensor * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(bytes_))


def bright_boxes(folder: Path, count: int = 12) -> None:
    """Composites of one bright box on black, every third without a box."""
    rng = np.random.default_rng(0)
    pictures, boxes = np.zeros((count, 32, 32, 3), np.uint8), np.zeros((count, 2, 4), np.float32)
    for number in range(count):
        if number % 3:
            x1, y1 = rng.integers(0, 16, 2)
            x2, y2 = (x1, y1) + rng.integers(3, 16, 2)
            pictures[number, y1:y2, x1:x2], boxes[number, number % 2] = 200, (x1, y1, x2, y2)
    np.save(folder / "composites.npy", pictures)
    np.save(folder / "boxes.npy", boxes)


def test_batches_mirror_boxes_together_with_photos(tmp_path):
    bright_boxes(tmp_path)
    left, lights, batches = [], set(), 0
    for pictures, boxes in detector.composite_batches(tmp_path, PLAIN, seed=0):
        batches += 1
        assert pictures.shape == (4, 3, 32, 32) and len(boxes) == 4 and pictures.max() <= 1
        for picture, box in zip(pictures, boxes, strict=True):
            rows, columns = np.nonzero(picture.amax(0).numpy())
            expected = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
            assert box.tolist() == expected and box.shape[1] == 4
            left += [expected[0][0]] if expected else []
            lights |= {float(picture.max())} if expected else set()
    assert batches == 30 and len(lights) > 50
    originals = {box[0] for box in np.load(tmp_path / "boxes.npy").reshape(-1, 4).tolist() if box[2]}
    assert 0.2 < np.mean([x not in originals for x in left]) < 0.8  # about half are mirrored


def test_batches_follow_the_seed(tmp_path):
    bright_boxes(tmp_path)
    first, again, other = (next(detector.composite_batches(tmp_path, PLAIN, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_boxes_are_enlarged_together_with_photos(tmp_path):
    bright_boxes(tmp_path)
    photos, boxes = next(detector.composite_batches(tmp_path, PLAIN, 0))
    large, wide = next(detector.composite_batches(tmp_path, replace(PLAIN, enlarged=(1.5,)), 0))
    assert photos.shape == (4, 3, 32, 32) and large.shape == (4, 3, 48, 48)
    for photo, here in zip(large, wide, strict=True):
        for x1, y1, x2, y2 in here.round().int().tolist():
            assert photo[0, (y1 + y2) // 2, (x1 + x2) // 2] > 0.95 * photo[0].max()
    assert torch.cat(wide).numpy() == pytest.approx(1.5 * torch.cat(boxes).numpy())


# ---------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(composites, tmp_path_factory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    return folder, detector.train(TINY, composites, folder, seed=0)


def test_one_batch_is_overfitted(composites, trained):
    folder, history = trained
    pictures, boxes = np.load(composites / "composites.npy"), np.load(composites / "boxes.npy")
    proposals, _ = detector.load(TINY, folder).propose(detector.to_tensor(pictures), 10)
    found = [box_iou(torch.from_numpy(truth[truth[:, 2] > 0]), box).max(1).values
             for box, truth in zip(proposals, boxes, strict=True)]
    assert len(history) == 80 and set(history[0]) == {"objectness", "box"}
    assert history[-1]["objectness"] < history[0]["objectness"] / 3 and history[-1]["box"] < history[0]["box"] / 3
    assert (torch.cat(found) >= 0.5).float().mean() > 0.8


def test_a_trained_detector_comes_back_ready(composites, trained):
    loaded = detector.load(TINY, trained[0])
    assert not loaded.training
    with pytest.raises(RuntimeError):
        detector.load(replace(TINY, channels=16), trained[0])


def test_the_same_seed_gives_the_same_weights(composites, tmp_path):
    weights = []
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(seed)
        (tmp_path / str(run)).mkdir()
        detector.train(replace(TINY, steps=3), composites, tmp_path / str(run), seed)
        weights.append((tmp_path / str(run) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
