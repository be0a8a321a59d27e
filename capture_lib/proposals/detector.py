"""The region proposal network: trained on composites alone, so that no annotated box is needed.

A timm backbone, one fused feature map, torchvision's anchors, RPN head and losses. The authors released neither code
nor weights of this part; sizes and schedule are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    AnchorGenerator,
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import roi_align

from capture_lib.utils import InputError, progress


@dataclass(frozen=True)
class DetectorSettings:
    """Defaults of the cpu profile."""

    backbone: str = "resnet10t"  # any timm name
    weights: str = ""  # a safetensors or .pth file for the backbone; empty = random start
    size: int = 128  # side of a composite, pixels
    enlarged: tuple[float, ...] = (1.0, 1.25, 1.5)  # times which a batch of composites is trained on, one at random
    search_size: int = 192  # side of the squares it searches: products fill less of a photo than of a composite
    channels: int = 128  # of the fused map
    anchors: tuple[float, ...] = (24, 40, 64, 96)  # sides, pixels of the input
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height over width
    steps: int = 1_000
    batch: int = 16
    learning_rate: float = 1e-3
    box_weight: float = 10.0  # torchvision divides the box loss by all sampled anchors, most of them background
    nms: float = 0.6


class Detector(nn.Module):
    """Photos to proposals, and to the feature map that RoIAlign reads."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = timm.create_model(settings.backbone, features_only=True, out_indices=(2, 3, 4))
        self.levels = nn.ModuleList(nn.Conv2d(width, settings.channels, 1)
                                    for width in self.backbone.feature_info.channels())
        self.fuse = nn.Sequential(nn.Conv2d(settings.channels, settings.channels, 3, padding=1),
                                  nn.BatchNorm2d(settings.channels), nn.ReLU())
        anchors = AnchorGenerator((settings.anchors,), (settings.ratios,))
        self.rpn = RegionProposalNetwork(
            anchors, RPNHead(settings.channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.6, bg_iou_thresh=0.3, batch_size_per_image=64, positive_fraction=0.5,
            pre_nms_top_n={"training": 300, "testing": 600}, post_nms_top_n={"training": 100, "testing": 100},
            nms_thresh=settings.nms)

    def feature_map(self, photos: Tensor) -> Tensor:
        """(B, 3, S, S) float in [0, 1] to the fused map (B, C, S/8, S/8)."""
        spread = 0.5 if self.settings.weights else 0.25  # pretrained weights expect values in [-1, 1]
        maps = self.backbone((photos - 0.5) / spread)
        fused = self.levels[0](maps[0])  # (B, C, S/8, S/8)
        for level, coarse in zip(self.levels[1:], maps[1:], strict=True):
            fused = fused + F.interpolate(level(coarse), fused.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(fused)

    def predict(self, photos: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Anchors, a list of B (A, 4) xyxy pixels; objectness logits (B·A, 1); box deltas (B·A, 4)."""
        feature_map = self.feature_map(photos)
        logits, deltas = self.rpn.head([feature_map.float()])
        sizes = [tuple(photos.shape[-2:])] * len(photos)
        anchors = self.rpn.anchor_generator(ImageList(photos, sizes), [feature_map])
        return anchors, *concat_box_prediction_layers(logits, deltas)

    def losses(self, photos: Tensor, boxes: list[Tensor]) -> dict[str, Tensor]:
        """Objectness and box loss against true boxes, a list of B (n, 4) xyxy pixels.

        The parts of torchvision's RPN are called one by one: its forward also sorts and suppresses proposals, which
        training on composites never uses.
        """
        anchors, logits, deltas = self.predict(photos)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, [{"boxes": box} for box in boxes])
        targets = self.rpn.box_coder.encode(matched, anchors)
        objectness, box = self.rpn.compute_loss(logits, deltas, labels, targets)
        return {"objectness": objectness, "box": self.settings.box_weight * box}

    @torch.inference_mode()
    def propose(self, photos: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """The `most` best proposals of each photo after non-maximum suppression.

        Returns:
            a list of B (n, 4) xyxy pixels of the input and a list of B (n,) scores in [0, 1], best first.
        """
        anchors, logits, deltas = self.predict(photos)
        boxes = self.rpn.box_coder.decode(deltas.float(), anchors).view(len(photos), -1, 4)
        sizes = [tuple(photos.shape[-2:])] * len(photos)
        boxes, scores = self.rpn.filter_proposals(boxes, logits.float(), sizes, [boxes.shape[1]])
        return [b[:most] for b in boxes], [s[:most] for s in scores]

    def roi_features(self, photos: Tensor, boxes: list[Tensor], grid: int = 2) -> Tensor:
        """RoIAlign on the fused map (the paper's region feature): (sum of n, C·grid·grid)."""
        pooled = roi_align(self.feature_map(photos), boxes, grid, 1 / 8, sampling_ratio=2, aligned=True)
        return pooled.flatten(1)


def to_tensor(photos: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(photos)).permute(0, 3, 1, 2).float() / 255


def composite_batches(folder: Path, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Random batches of composites with their boxes, half of them mirrored and all with jittered light."""
    composites = np.load(folder / "composites.npy", mmap_mode="r")
    boxes = np.load(folder / "boxes.npy")  # (M, K, 4)
    rng = np.random.default_rng([seed, 1])
    size = composites.shape[2]
    for _ in range(steps):
        chosen = np.sort(rng.choice(len(composites), min(batch, len(composites)), replace=False))
        photos, truth = to_tensor(composites[chosen]), [boxes[i][boxes[i, :, 2] > 0] for i in chosen]
        if rng.random() < 0.5:
            photos = photos.flip(-1)
            truth = [np.stack([size - t[:, 2], t[:, 1], size - t[:, 0], t[:, 3]], 1) for t in truth]
        light = torch.from_numpy(rng.uniform(0.8, 1.2, (len(chosen), 3, 1, 1)).astype(np.float32))
        yield (photos * light).clamp(0, 1), [torch.from_numpy(t) for t in truth]


def enlarge(photos: Tensor, boxes: list[Tensor], times: float) -> tuple[Tensor, list[Tensor]]:
    """Photos (B, 3, S, S) and their boxes, xyxy pixels, at `times` the side."""
    side = round(times * photos.shape[-1])
    return F.interpolate(photos, (side, side), mode="bilinear"), [box * (side / photos.shape[-1]) for box in boxes]


def train(settings: DetectorSettings, composites: Path, folder: Path, seed: int) -> list[dict[str, float]]:
    """Trains a detector on composites, saves it in `folder` and returns the losses of every step by name.

    A pretrained backbone is trained on, but its batch norms keep the statistics that they came with.
    """
    device = pick_device()
    detector = Detector(settings).train()
    if settings.weights:
        load_backbone(detector.backbone, Path(settings.weights))
        detector.backbone.eval()
    detector.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(detector.parameters(), settings.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
    half = device.type != "cpu" or not settings.weights  # on a CPU, bfloat16 slows the usual light backbones down
    history, rng = [], np.random.default_rng([seed, 3])
    stream = composite_batches(composites, settings.batch, settings.steps, seed)
    for photos, boxes in progress(stream, "detector steps", settings.steps):
        photos, boxes = enlarge(photos, boxes, rng.choice(settings.enlarged))
        photos = photos.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = detector.losses(photos, [box.to(device) for box in boxes])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    save(detector, folder)
    return history


def pick_device() -> torch.device:
    """The GPU where there is one; of several, this process's, named so that other threads take the same."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_backbone(backbone: nn.Module, file: Path) -> None:
    """Loads ImageNet weights of the same timm model from a local file; only safe formats are read.

    Raises:
        InputError: the file is missing or damaged, or no weight in it fits the backbone.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such weights; give a .safetensors or .pth file of the timm model")
    try:
        state = dict(load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True))
    except Exception as error:  # each format has errors of its own, and torch's fill a screen
        raise InputError(f"{file}: cannot be read as weights ({type(error).__name__}); save the state_dict") from None
    own = backbone.state_dict()
    fitting = {name: value.float() for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < 0.9 * len(own):
        raise InputError(f"{file}: only {len(fitting)} of {len(own)} tensors fit the backbone; check its timm name")
    backbone.load_state_dict(fitting, strict=False)


def save(detector: Detector, folder: Path) -> None:
    """Writes the weights as `model.safetensors`; the settings stand in the stage's own record."""
    save_file({name: value.contiguous() for name, value in detector.state_dict().items()}, folder / "model.safetensors")


def load(settings: DetectorSettings, folder: Path) -> Detector:
    """The trained detector in evaluation mode."""
    detector = Detector(settings)
    detector.load_state_dict(load_file(folder / "model.safetensors"))
    return detector.to(pick_device(), memory_format=torch.channels_last).eval()
