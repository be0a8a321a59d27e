"""What a region looks like: the vector that CAPTURE gets for each proposal.

Three kinds, one interface. "crops" is ours, not the paper's: a small network trained without labels, by pulling two
crops of one foreground in two composites together (NT-Xent). "detector" is RoIAlign on the proposal network's own map,
"backbone" RoIAlign on a pretrained network's map: the paper's way, whose features came from a pretrained detector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import roi_align

from capture_lib.model.losses import nt_xent
from capture_lib.proposals.detector import Detector, load_backbone, to_tensor
from capture_lib.utils import InputError, pick_device, progress

GRID = 2  # regions are pooled to 2×2 cells: where a colour sits tells products apart


@dataclass(frozen=True)
class EncoderSettings:
    """Defaults of the cpu profile."""

    kind: str = "crops"  # crops, detector or backbone
    backbone: str = "resnet10t"  # any timm name
    weights: str = ""  # a local file for the backbone; needed for the kind "backbone"
    crop: int = 48  # side of a crop, pixels; 64 and half as many steps, in the same time, were worse on val
    channels: int = 64  # a region's vector holds GRID² times as many numbers
    margin: float = 0.1  # by which a box is widened, of its size
    steps: int = 1_200
    batch: int = 64  # pairs of crops
    learning_rate: float = 5e-3
    temperature: float = 0.1


class CropEncoder(nn.Module):
    """A crop of a photo to a vector."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = timm.create_model(settings.backbone, features_only=True, out_indices=(3,))
        width = self.backbone.feature_info.channels()[-1]
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Conv2d(width, settings.channels, 1), nn.Flatten())

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 3, C, C) float in [0, 1] to (N, F)."""
        return self.neck(self.backbone((crops - 0.5) / 0.25)[-1])

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """Vectors of the regions of (B, 3, S, S) photos; boxes, a list of B (n, 4) xyxy pixels: (sum of n, F)."""
        return self(crop(photos, boxes, self.settings.crop, self.settings.margin))


class DetectorEncoder(nn.Module):
    """RoIAlign on the proposal network's own map (the paper's region feature)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """As `CropEncoder.features`."""
        return self.detector.roi_features(photos, boxes, GRID)


class BackboneEncoder(nn.Module):
    """RoIAlign on the stride-8 map of a network with pretrained weights (the paper's way, with another network)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.backbone = timm.create_model(settings.backbone, features_only=True, out_indices=(2,))
        load_backbone(self.backbone, Path(settings.weights))

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """As `CropEncoder.features`."""
        feature_map = self.backbone((photos - 0.5) / 0.5)[-1]
        return roi_align(feature_map, boxes, GRID, 1 / 8, sampling_ratio=2, aligned=True).flatten(1)


def crop(photos: Tensor, boxes: list[Tensor], size: int, margin: float) -> Tensor:
    """Cuts boxes (xyxy pixels, widened by `margin`) out of (B, 3, S, S) photos, scaled: (sum of n, 3, size, size)."""
    wide = []
    for box in boxes:
        centre, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) * (0.5 + margin / 2)
        wide.append(torch.cat([centre - half, centre + half], 1))
    return roi_align(photos, wide, size, sampling_ratio=2, aligned=True)


def positive_pairs(folder: Path, settings: EncoderSettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs of batches: crop i of both shows one foreground, in two composites; boxes and light jittered."""
    composites = np.load(folder / "composites.npy", mmap_mode="r")
    boxes, owners = np.load(folder / "boxes.npy"), np.load(folder / "owners.npy")
    where = sightings(boxes, owners)
    if not where:
        raise InputError(f"{folder}: no foreground is seen in two composites; make more composites or of fewer photos")
    rng = np.random.default_rng([seed, 2])
    while True:
        chosen = rng.choice(len(where), min(settings.batch, len(where)), replace=False)
        pairs = np.array([rng.choice(where[i], 2, replace=False) for i in chosen])  # (B, 2, 2): composite, slot
        yield tuple(jittered_crops(composites, boxes, pairs[:, side], settings, rng) for side in (0, 1))


def sightings(boxes: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """For each foreground with a box in two composites or more: its (composite, slot) pairs."""
    found: dict[int, list[tuple[int, int]]] = {}
    for number, slot in np.argwhere((owners >= 0) & (boxes[..., 2] > 0)):
        found.setdefault(int(owners[number, slot]), []).append((number, slot))
    return [np.array(places) for places in found.values() if len({number for number, _ in places}) > 1]


def jittered_crops(composites: np.ndarray, boxes: np.ndarray, places: np.ndarray, settings: EncoderSettings,
                   rng: np.random.Generator) -> Tensor:
    """Crops at (composite, slot) places, the box moved as a proposal would be, the light changed: (B, 3, C, C)."""
    box = boxes[places[:, 0], places[:, 1]]
    sides = np.tile(box[:, 2:] - box[:, :2], 2)
    box = box + rng.normal(0, 0.06, box.shape) * sides
    cut = [cut_crop(composites[number], b, settings) for (number, _), b in zip(places, box, strict=True)]
    gain = torch.from_numpy(rng.uniform(0.75, 1.25, (len(cut), 1, 1, 1)).astype(np.float32))
    tint = torch.from_numpy(rng.normal(0, 0.03, (len(cut), 3, 1, 1)).astype(np.float32))
    return (to_tensor(np.stack(cut)) * gain + tint).clamp(0, 1)


def cut_crop(photo: np.ndarray, box: np.ndarray, settings: EncoderSettings) -> np.ndarray:
    """As `crop`, of one box (4,) of one photo (H, W, 3) uint8: (C, C, 3) uint8, many times as fast on a CPU."""
    centre, side = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * (1 + settings.margin)
    step = side / settings.crop  # pixels of the photo that a pixel of the crop covers
    corner = centre - side / 2 + step / 2 - 0.5
    matrix = np.array([[step[0], 0, corner[0]], [0, step[1], corner[1]]])
    return cv2.warpAffine(photo, matrix, (settings.crop, settings.crop), borderMode=cv2.BORDER_REPLICATE,
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def train(settings: EncoderSettings, composites: Path, folder: Path, seed: int) -> list[float]:
    """Trains the crop encoder on composites, saves it in `folder` and returns the loss of every step.

    It starts at random: the trunk of the proposal network as a start brought nothing (measured on val).
    """
    device = pick_device()
    encoder = CropEncoder(settings).to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(encoder.parameters(), settings.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
    stream, history = positive_pairs(composites, settings, seed), []
    for _ in progress(range(settings.steps), "encoder steps", settings.steps):
        left, right = next(stream)
        crops = torch.cat([left, right]).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            vectors = encoder(crops).float()
        loss = nt_xent(*vectors.chunk(2), settings.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history.append(loss.item())
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, folder / "model.safetensors")
    return history


def load(settings: EncoderSettings, folder: Path, detector: Detector) -> nn.Module:
    """The encoder that the settings name, ready for use.

    Raises:
        InputError: the kind is unknown or its weights are missing.
    """
    if settings.kind == "crops":
        encoder = CropEncoder(settings)
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    elif settings.kind == "detector":
        encoder = DetectorEncoder(detector)
    elif settings.kind == "backbone":
        if not settings.weights:
            raise InputError("encoder kind 'backbone' needs weights: name a local file of the timm model's weights")
        encoder = BackboneEncoder(settings)
    else:
        raise InputError(f"encoder kind {settings.kind!r} is unknown; use crops, detector or backbone")
    return encoder.to(pick_device()).eval()


def identity(features: np.ndarray, labels: np.ndarray, others: np.ndarray | None = None,
             other_labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How well nearest neighbours (cosine) share a label: what the features know of identity.

    Args:
        features: (n, F); labels: (n,), of which those that nothing else has are left out.
        others: (k, F) and their labels (k,), among which neighbours are looked for; None: among the n, leave-one-out.

    Returns:
        average precision (m,) and whether the nearest neighbour is right (m,), for the m regions asked.
    """
    alone = others is None
    others, other_labels = (features, labels) if alone else (others, other_labels)
    unit, among = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (features, others))
    precisions, first = [], []
    for i in range(len(unit)):
        order = np.argsort(-(among @ unit[i]), kind="stable")
        right = other_labels[order[order != i] if alone else order] == labels[i]
        if right.any():
            hits = np.flatnonzero(right)
            precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
            first.append(right[0])
    return np.array(precisions), np.array(first, float)
