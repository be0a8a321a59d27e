"""What a region looks like: our encoder of crops; the paper's RoIAlign is `Detector.features`."""
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from capture_lib.model.losses import caption_loss, nt_xent
from capture_lib.proposals import pretrained
from capture_lib.proposals.detector import make_backbone, to_tensor
from capture_lib.utils import InputError, pick_device, progress


@dataclass(frozen=True)
class EncoderSettings:
    """Defaults of the cpu profile."""
    backbone: str = "resnet10t"  # any timm name
    pretrained: str = ""  # a timm name or a folder whose weights it has; empty: it is trained from nothing
    adapt_steps: int = 40  # of a pretrained convolutional model, in place of `steps`; a transformer stays as it is
    adapt_rate: float = 1e-4  # learning rate of these steps
    adapt_batch: int = 32  # pairs of crops
    adapt_crop: int = 128  # side of a crop, pixels
    stem: str = "strided"  # of the backbone, a ResNet: see `make_backbone`
    crop: int = 48  # side, pixels
    first_crop: int = 32  # side in the first half of the steps, which so takes half of the time
    channels: int = 64  # a vector holds four times as many
    margin: float = 0.1  # of a box, on all sides
    steps: int = 1_400
    batch: int = 64  # pairs of crops
    learning_rate: float = 5e-3
    captions: str = ""  # whose captions teach it: none (paper), "train", or "train, gallery"
    caption_begin: float = 0.5  # share of the steps before them, made once for the encoder without captions too
    caption_weight: float = 3.0  # of that loss
    caption_spread: float = 0.05  # how far its targets spread to captions that are alike; 0: not at all


class CropEncoder(nn.Module):
    """A crop of a photo to a vector."""
    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.width = 4 * settings.channels
        self.backbone = make_backbone(settings.backbone, settings.stem, (3,))
        narrow = nn.Conv2d(self.backbone.feature_info.channels()[0], settings.channels, 1)
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(2), narrow, nn.Flatten())

    def forward(self, crops: Tensor) -> Tensor:
        """Turn (N, 3, C, C) float in [0, 1] into vectors (N, F)."""
        return self.neck(self.backbone((crops - 0.5) / 0.25)[-1])

    def features(self, photos: Tensor, boxes: list) -> Tensor:
        """Describe boxes, B times (n, 4) xyxy pixels of (B, 3, S, S): (sum of n, F)."""
        return self(crop(photos, boxes, self.settings.crop, self.settings.margin))

    def save(self, folder: Path) -> None:
        """Write the weights."""
        save_model(self, folder / "model.safetensors")


class PretrainedEncoder(nn.Module):
    """A crop of a photo to the vector that a pretrained model pools for its classifier; batch norms never train."""
    def __init__(self, settings: EncoderSettings, source: str) -> None:
        super().__init__()
        self.model = pretrained.open_model(source)
        self.size, self.normalise = pretrained.preprocessing(self.model)
        with torch.no_grad():
            vector = self(torch.zeros(1, 3, *self.size))  # (1, F)
        if vector.ndim != 2 or not vector.isfinite().all():
            raise InputError(f"{source}: gives no vector of finite numbers; name another model")
        self.width = vector.shape[1]
        steps = settings.adapt_steps if pretrained.map_numbers(self.model) else 0
        self.settings = replace(settings, steps=steps, learning_rate=settings.adapt_rate, batch=settings.adapt_batch,
                                crop=settings.adapt_crop, first_crop=settings.adapt_crop)

    def forward(self, crops: Tensor) -> Tensor:
        """Turn (N, 3, C, C) float in [0, 1] into vectors (N, F)."""
        return self.model(self.normalise(crops))

    def features(self, photos: Tensor, boxes: list) -> Tensor:
        """Describe boxes, as `CropEncoder` does, by crops of the size that the model was made for."""
        return self(crop(photos, boxes, self.size, self.settings.margin))

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode."""
        return super().train(False)

    def save(self, folder: Path) -> None:
        """Write the model in timm's layout, so that another catalog may begin with it."""
        pretrained.save_model(self.model, folder)


def make_encoder(settings: EncoderSettings, source: str = "") -> nn.Module:
    """Return an encoder to train; a pretrained one from `source`, by default what the settings name."""
    if settings.pretrained:
        return PretrainedEncoder(settings, source or settings.pretrained)
    return CropEncoder(settings)


def crop(photos: Tensor, boxes: list, size: int | tuple, margin: float) -> Tensor:
    """Cut boxes, xyxy pixels, widened by `margin`, out of photos: (sum of n, 3, H, W), `size` each or (H, W)."""
    from torchvision.ops import roi_align
    wide = []
    for box in boxes:  # (n, 4)
        low, high = box.chunk(2, dim=1)
        centre = (low + high) / 2
        half = (high - low) * (0.5 + margin / 2)
        wide.append(torch.cat([centre - half, centre + half], 1))
    return roi_align(photos, wide, size, sampling_ratio=2, aligned=True)


def positive_pairs(folder: Path, settings: EncoderSettings, seed: int, begin: int = 0) -> Iterator:
    """Yield for each step from `begin` on two batches (B, 3, C, C), the i-th crops of one foreground, and whose (B,).
    """
    composites = np.load(folder / "composites.npy", mmap_mode="r")
    boxes = np.load(folder / "boxes.npy")  # (M, K, 4), zeros for none
    owners = np.load(folder / "owners.npy")  # (M, K)
    # the places, composite and slot, of each foreground that two composites show
    found = {}
    for place in np.argwhere((owners >= 0) & (boxes[..., 2] > 0)):
        found.setdefault(owners[tuple(place)], []).append(place)
    found = {owner: np.array(rows) for owner, rows in found.items()}
    places = {owner: rows for owner, rows in found.items() if len(set(rows[:, 0])) > 1}
    shown = np.array(list(places))
    modes = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
    rng = np.random.default_rng([seed, 2])
    for turn in range(begin, settings.steps):
        size = settings.crop if turn >= settings.steps // 2 else settings.first_crop
        # foregrounds, and two places of each; the crops of the first, then of the second, in another light
        chosen = rng.choice(len(shown), min(settings.batch, len(shown)), replace=False)
        pairs = [rng.choice(places[owner], 2, replace=False) for owner in shown[chosen]]
        batches = []
        for numbers, slots in np.transpose(pairs, (1, 2, 0)):  # of (2, 2, B)
            here = boxes[numbers, slots]  # (B, 4), moved as proposals are
            here = here + rng.normal(0, 0.06, here.shape) * np.tile(here[:, 2:] - here[:, :2], 2)
            crops = []
            for number, box in zip(numbers, here, strict=True):  # as `crop`, faster on a CPU
                side = (box[2:] - box[:2]) * (1 + settings.margin)
                step = side / size  # pixels of the photo a cell
                corner = (box[:2] + box[2:]) / 2 - side / 2 + step / 2 - 0.5
                matrix = np.column_stack([np.diag(step), corner])
                crops.append(cv2.warpAffine(composites[number], matrix, (size, size), **modes))
            gain = rng.uniform(0.75, 1.25, (len(crops), 1, 1, 1)).astype(np.float32)
            tint = rng.normal(0, 0.03, (len(crops), 3, 1, 1)).astype(np.float32)
            crops = to_tensor(np.stack(crops)) * torch.from_numpy(gain)  # (B, 3, C, C)
            batches.append((crops + torch.from_numpy(tint)).clamp(0, 1))
        yield *batches, shown[chosen]


def train(settings: EncoderSettings, composites: Path, folder: Path, seed: int,
          texts: np.ndarray | None = None, plain: Path | None = None) -> list:
    """Train the crop encoder on composites, save it and return the loss of every step.

    With `texts` (N, D), a vector of the caption of each foreground's photo, zero for none, a small
    head must also tell from a crop which caption it came with: ours, not the paper's. Its first steps,
    `caption_begin` of them, are those of the encoder without captions, which left them in `plain`.
    """
    device = pick_device()
    encoder = make_encoder(settings).to(device, memory_format=torch.channels_last).train()
    settings = encoder.settings
    taught = nn.ModuleList([encoder])
    shared = round(settings.caption_begin * settings.steps)
    begin = 0 if texts is None else shared
    if texts is not None:
        if shared:
            load_model(encoder, plain / "shared.safetensors")
        head = nn.Sequential(nn.Linear(encoder.width, 256), nn.ReLU(), nn.Linear(256, texts.shape[1]))
        taught.append(head.to(device))
        texts = torch.from_numpy(texts).to(device)
    rate = settings.learning_rate
    optimiser = torch.optim.AdamW(taught.parameters(), rate, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, max(settings.steps - begin, 1))
    pairs = positive_pairs(composites, settings, seed, begin)
    history = []
    for first, second, owners in progress(pairs, "encoder steps", settings.steps - begin):
        if texts is None and 0 < shared == len(history):
            save_model(encoder, folder / "shared.safetensors")
        crops = torch.cat([first, second]).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            vectors = encoder(crops).float()  # (2B, F)
        loss = nt_xent(*vectors.chunk(2), temperature=0.1)
        if texts is not None:
            own = texts[owners].repeat(2, 1)  # (2B, D)
            loss = loss + settings.caption_weight * caption_loss(
                head(vectors), own, settings.caption_spread)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history.append(loss.item())
    encoder.save(folder)
    return history


def load(settings: EncoderSettings, folder: Path) -> CropEncoder:
    """Return the trained encoder in evaluation mode."""
    encoder = make_encoder(settings, str(folder))
    if not settings.pretrained:
        load_model(encoder, folder / "model.safetensors")
    return encoder.to(pick_device(), memory_format=torch.channels_last).eval()
