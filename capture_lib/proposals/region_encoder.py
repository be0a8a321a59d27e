"""What a region looks like: the vector that CAPTURE gets for each proposal.

Three kinds, one method `features`. "crops" is ours, not the paper's: a small network trained
without labels, by pulling two crops of one foreground in two composites together (NT-Xent).
"detector" is RoIAlign on the proposal network's own map, "backbone" RoIAlign on a pretrained
network's map: the paper's way, whose features came from a pretrained detector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from capture_lib.model.losses import nt_xent
from capture_lib.proposals.detector import Detector, load_backbone, pool_boxes, to_tensor
from capture_lib.utils import InputError, pick_device, progress


@dataclass(frozen=True)
class EncoderSettings:
    """Defaults of the cpu profile."""

    kind: str = "crops"  # crops, detector or backbone
    backbone: str = "resnet10t"  # any timm name
    weights: str = ""  # a file; the kind "backbone" needs it
    crop: int = 48  # side, pixels; 64 with half the steps was worse on val
    channels: int = 64  # a region's vector holds four times as many numbers
    margin: float = 0.1  # by which a box is widened, of its size
    steps: int = 1_200
    batch: int = 64  # pairs of crops
    learning_rate: float = 5e-3
    temperature: float = 0.1


class CropEncoder(nn.Module):
    """A crop of a photo to a vector."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        import timm  # takes seconds, as torchvision does

        self.settings = settings
        maps = (3,)  # at stride 16
        self.backbone = timm.create_model(settings.backbone, features_only=True, out_indices=maps)
        width = self.backbone.feature_info.channels()[-1]
        narrow = nn.Conv2d(width, settings.channels, 1)
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(2), narrow, nn.Flatten())

    def forward(self, crops: Tensor) -> Tensor:
        """Turn (N, 3, C, C) float in [0, 1] into vectors (N, F)."""
        return self.neck(self.backbone((crops - 0.5) / 0.25)[-1])

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """Describe boxes, a list of B (n, 4) xyxy pixels of (B, 3, S, S): (sum of n, F)."""
        return self(crop(photos, boxes, self.settings.crop, self.settings.margin))


class BackboneEncoder(nn.Module):
    """RoIAlign on the stride-8 map of a pretrained network (the paper's way, another network)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        import timm

        maps = (2,)  # at stride 8
        self.backbone = timm.create_model(settings.backbone, features_only=True, out_indices=maps)
        load_backbone(self.backbone, Path(settings.weights))

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """As `CropEncoder.features`."""
        return pool_boxes(self.backbone((photos - 0.5) / 0.5)[-1], boxes)


def crop(photos: Tensor, boxes: list[Tensor], size: int, margin: float) -> Tensor:
    """Cut boxes (xyxy pixels, widened by `margin`) out of photos: (sum of n, 3, size, size)."""
    from torchvision.ops import roi_align

    wide = []
    for box in boxes:  # (n, 4)
        centre = (box[:, :2] + box[:, 2:]) / 2
        half = (box[:, 2:] - box[:, :2]) * (0.5 + margin / 2)
        wide.append(torch.cat([centre - half, centre + half], 1))
    return roi_align(photos, wide, size, sampling_ratio=2, aligned=True)


def positive_pairs(
    folder: Path, settings: EncoderSettings, seed: int
) -> Iterator[list[Tensor]]:
    """Yield, without end, two batches (B, 3, C, C) of which the i-th crops are a positive pair.

    Both show one foreground, in two composites; boxes and light are jittered.
    """
    composites = np.load(folder / "composites.npy", mmap_mode="r")
    boxes = np.load(folder / "boxes.npy")  # (M, K, 4)
    places = sightings(boxes, np.load(folder / "owners.npy"))
    if not places:
        fault = "no foreground is seen in two composites"
        raise InputError(f"{folder}: {fault}; make more composites or of fewer photos")
    rng = np.random.default_rng([seed, 2])
    batch = min(settings.batch, len(places))
    while True:
        # foregrounds, and for each of them two places: composite and slot
        chosen = rng.choice(len(places), batch, replace=False)
        pairs = [rng.choice(places[i], 2, replace=False) for i in chosen]
        crops = []
        for numbers, slots in np.transpose(pairs, (1, 2, 0)):  # of (B, 2, 2): for each side
            photos = composites[numbers]
            crops.append(jittered_crops(photos, boxes[numbers, slots], settings, rng))
        yield crops


def sightings(boxes: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """Return the (composite, slot) pairs of each foreground that two composites show."""
    found: dict[int, list[tuple[int, int]]] = {}
    for number, slot in np.argwhere((owners >= 0) & (boxes[..., 2] > 0)):
        found.setdefault(int(owners[number, slot]), []).append((number, slot))
    places = map(np.array, found.values())
    return [pairs for pairs in places if len(np.unique(pairs[:, 0])) > 1]


def jittered_crops(
    photos: np.ndarray, boxes: np.ndarray, settings: EncoderSettings, rng: np.random.Generator
) -> Tensor:
    """Cut a box (B, 4) out of each photo, moved as a proposal would be, in another light."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)  # (B, 4)
    boxes = boxes + rng.normal(0, 0.06, boxes.shape) * sides
    crops = []
    for photo, box in zip(photos, boxes, strict=True):
        crops.append(cut_crop(photo, box, settings))
    gain = rng.uniform(0.75, 1.25, (len(crops), 1, 1, 1)).astype(np.float32)
    tint = rng.normal(0, 0.03, (len(crops), 3, 1, 1)).astype(np.float32)
    crops = to_tensor(np.stack(crops))  # (B, 3, C, C)
    return (crops * torch.from_numpy(gain) + torch.from_numpy(tint)).clamp(0, 1)


def cut_crop(photo: np.ndarray, box: np.ndarray, settings: EncoderSettings) -> np.ndarray:
    """Cut as `crop`, one box (4,) of (H, W, 3) uint8, faster on a CPU: (C, C, 3) uint8."""
    size = settings.crop
    centre = (box[:2] + box[2:]) / 2
    side = (box[2:] - box[:2]) * (1 + settings.margin)
    step = side / size  # pixels of the photo that a pixel of the crop covers
    corner = centre - side / 2 + step / 2 - 0.5
    matrix = np.array([[step[0], 0, corner[0]], [0, step[1], corner[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    edge = cv2.BORDER_REPLICATE
    return cv2.warpAffine(photo, matrix, (size, size), flags=flags, borderMode=edge)


def train(settings: EncoderSettings, composites: Path, folder: Path, seed: int) -> list[float]:
    """Train the crop encoder on composites, save it and return the loss of every step.

    It starts at random: starting from the proposal network brought nothing (measured on val).
    """
    device = pick_device()
    encoder = CropEncoder(settings).to(device, memory_format=torch.channels_last).train()
    rate = settings.learning_rate
    optimiser = torch.optim.AdamW(encoder.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, settings.steps)
    pairs = positive_pairs(composites, settings, seed)
    history = []
    for _ in progress(range(settings.steps), "encoder steps", settings.steps):
        # pairs as one batch (2B, 3, C, C); forward, backward, step
        crops = torch.cat(next(pairs)).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            vectors = encoder(crops).float()  # (2B, F)
        loss = nt_xent(*vectors.chunk(2), settings.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history.append(loss.item())
    save_model(encoder, folder / "model.safetensors")
    return history


def load(settings: EncoderSettings, folder: Path, detector: Detector) -> nn.Module:
    """Return the encoder that the settings name, ready for use; `InputError` if there is none."""
    kind = settings.kind
    if kind == "crops":
        encoder = CropEncoder(settings)
        load_model(encoder, folder / "model.safetensors")
    elif kind == "detector":
        encoder = detector
    elif kind == "backbone" and settings.weights:
        encoder = BackboneEncoder(settings)
    else:
        use = "use crops, detector, or backbone with a file of the timm model's weights"
        raise InputError(f"encoder kind {kind!r} with weights {settings.weights!r}: {use}")
    return encoder.to(pick_device()).eval()
