"""The region proposal network, trained on composites alone: no annotated box is needed."""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from capture_lib.proposals import pretrained
from capture_lib.utils import InputError, pick_device, progress


@dataclass(frozen=True)
class DetectorSettings:
    """Defaults of the cpu profile."""
    backbone: str = "resnet10t"  # any timm name
    pretrained: str = ""  # a timm name or a folder whose weights the backbone has, or an open-vocabulary detector
    query: str = "product"  # what an open-vocabulary detector looks for
    stem: str = "patches"  # of the backbone, a ResNet: see `make_backbone`
    size: int = 128  # side of a composite, pixels
    enlarged: tuple = (1.0, 1.25, 1.5)  # one at random
    search_sizes: tuple = (192,)  # sides at which a photo is searched, pixels
    merge_nms: float = 0.45  # of what several sides find
    channels: int = 128  # of the fused map
    anchors: tuple = (24, 40, 64, 96)  # sides, pixels
    steps: int = 1_800
    batch: int = 8
    learning_rate: float = 1e-3
    box_weight: float = 10.0
    nms: float = 0.6


class Detector(nn.Module):
    """Photos to proposals, and to the feature map that RoIAlign reads."""
    def __init__(self, settings: DetectorSettings, source: str = "") -> None:
        """Take a pretrained backbone from `source`, by default what the settings name."""
        super().__init__()
        from torchvision.models.detection import rpn  # slow to import
        self.settings = settings
        channels = settings.channels
        if settings.pretrained:
            self.backbone = PretrainedMaps(source or settings.pretrained)
        else:
            self.backbone = make_backbone(settings.backbone, settings.stem, (2, 3))
        widths = self.backbone.feature_info.channels()  # of its maps at strides 8 and 16
        # a narrow map at stride 32: the backbone's own takes a quarter of the time and finds no more
        self.coarse = nn.Sequential(
            nn.Conv2d(widths[-1], channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.levels = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in (*widths, channels))
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.fuse = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
        # anchors of each cell, and for each a logit of objectness and four box deltas
        anchors = rpn.AnchorGenerator((settings.anchors,), ((0.5, 1.0, 2.0),))  # ratios
        head = rpn.RPNHead(channels, anchors.num_anchors_per_location()[0])
        self.rpn = rpn.RegionProposalNetwork(
            anchors, head, fg_iou_thresh=0.6, bg_iou_thresh=0.3,
            batch_size_per_image=64, positive_fraction=0.5, nms_thresh=settings.nms,
            pre_nms_top_n={"training": 300, "testing": 600}, post_nms_top_n={"training": 100, "testing": 100})

    def feature_map(self, photos: Tensor) -> Tensor:
        """Turn (B, 3, S, S) float in [0, 1] into the fused map (B, C, S/8, S/8)."""
        maps = self.backbone(photos if self.settings.pretrained else (photos - 0.5) / 0.25)
        maps = [*maps, self.coarse(maps[-1])]
        fused = self.levels[0](maps[0])  # (B, C, S/8, S/8)
        for level, coarse in zip(self.levels[1:], maps[1:], strict=True):
            fused = fused + F.interpolate(level(coarse), fused.shape[-2:], mode="bilinear")
        return self.fuse(fused)

    def predict(self, photos: Tensor) -> tuple:
        """Return anchors, B times (A, 4) xyxy pixels; logits (B·A, 1); box deltas (B·A, 4)."""
        from torchvision.models.detection import image_list, rpn
        feature_map = self.feature_map(photos)
        images = image_list.ImageList(photos, [photos.shape[-2:]] * len(photos))
        anchors = self.rpn.anchor_generator(images, [feature_map])
        logits, deltas = self.rpn.head([feature_map.float()])
        return anchors, *rpn.concat_box_prediction_layers(logits, deltas)

    def losses(self, photos: Tensor, boxes: list) -> dict:
        """Return objectness and box loss against true boxes, B times (n, 4) xyxy pixels."""
        anchors, logits, deltas = self.predict(photos)
        truth = [{"boxes": box} for box in boxes]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, truth)
        targets = self.rpn.box_coder.encode(matched, anchors)
        objectness, box = self.rpn.compute_loss(logits, deltas, labels, targets)
        return {"objectness": objectness, "box": self.settings.box_weight * box}

    @torch.inference_mode()
    def propose(self, photos: Tensor, count: int) -> tuple:
        """Return each photo's `count` best boxes, (n, 4) xyxy pixels, and scores in [0, 1]."""
        anchors, logits, deltas = self.predict(photos)
        boxes = self.rpn.box_coder.decode(deltas.float(), anchors).view(len(photos), -1, 4)
        sizes = [photos.shape[-2:]] * len(photos)
        boxes, scores = self.rpn.filter_proposals(boxes, logits.float(), sizes, [boxes.shape[1]])
        return [box[:count] for box in boxes], [score[:count] for score in scores]

    def features(self, photos: Tensor, boxes: list) -> Tensor:
        """Pool boxes to 2×2 cells of the map by RoIAlign: (sum of n, C·2·2)."""
        from torchvision.ops import roi_align
        feature_map = self.feature_map(photos)
        return roi_align(feature_map, boxes, 2, 1 / 8, sampling_ratio=2, aligned=True).flatten(1)


def make_backbone(name: str, stem: str, levels: tuple) -> nn.Module:
    """Return a timm backbone's feature maps of some levels.

    On a CPU, another stem of the same strides is cheaper than a ResNet's own: "patches" of 4×4 pixels in place of
    its convolutions and its pool, or the last of three convolutions "strided" in place of the pool.
    """
    import timm  # slow to import
    backbone = timm.create_model(name, features_only=True, out_indices=levels)
    if stem == "patches":
        backbone.conv1 = nn.Conv2d(3, backbone.bn1.num_features, 4, 4, bias=False)
    if stem == "strided":
        backbone.conv1[-1].stride = (2, 2)
    if stem:
        backbone.maxpool = nn.Identity()
    return backbone


class PretrainedMaps(nn.Module):
    """The maps of a pretrained convolutional model at strides 8 and 16; its batch norms are never in training."""
    def __init__(self, source: str) -> None:
        super().__init__()
        from timm.models import FeatureInfo
        self.model = pretrained.open_model(source)
        numbers = pretrained.map_numbers(self.model)
        if not numbers:
            raise InputError(f"{source}: not convolutional: it has no maps at strides 8 and 16 of photos of any size; "
                             "name another, such as convnext_tiny")
        info = self.model.feature_info
        self.feature_info = FeatureInfo(getattr(info, "info", info), numbers)
        self.normalise = pretrained.preprocessing(self.model)[1]

    def forward(self, photos: Tensor) -> list:
        """Turn (B, 3, S, S) in [0, 1] into maps (B, C, S/8, S/8) and (B, C', S/16, S/16)."""
        return self.model.forward_intermediates(
            self.normalise(photos), self.feature_info.out_indices, stop_early=True, intermediates_only=True)

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode."""
        return super().train(False)


def to_tensor(photos: np.ndarray) -> Tensor:
    """Turn (B, S, S, 3) uint8 into (B, 3, S, S) float32 in [0, 1]."""
    photos = torch.from_numpy(np.ascontiguousarray(photos))
    return photos.permute(0, 3, 1, 2).float() / 255


def composite_batches(folder: Path, settings: DetectorSettings, seed: int) -> Iterator:
    """Yield composites (B, 3, S, S), varied, and their boxes, B times (n, 4) xyxy pixels."""
    composites = np.load(folder / "composites.npy", mmap_mode="r")
    boxes = np.load(folder / "boxes.npy")  # (M, K, 4), zeros for none
    rng = np.random.default_rng([seed, 1])
    scales = np.random.default_rng([seed, 3])
    size = composites.shape[2]
    for _ in range(settings.steps):
        rows = np.sort(rng.choice(len(composites), settings.batch, replace=False))
        photos = to_tensor(composites[rows])  # (B, 3, S, S)
        slots = boxes[rows]  # (B, K, 4)
        # half of the batches mirrored, each photo in another light, each batch at a scale
        if rng.random() < 0.5:
            photos = photos.flip(-1)
            slots[..., [0, 2]] = size - slots[..., [2, 0]]
        light = rng.uniform(0.8, 1.2, (settings.batch, 3, 1, 1)).astype(np.float32)
        photos = (photos * torch.from_numpy(light)).clamp(0, 1)
        side = round(scales.choice(settings.enlarged) * size)
        photos = F.interpolate(photos, (side, side), mode="bilinear")
        slots = torch.from_numpy(slots) * (side / size)
        yield photos, [boxes[boxes[:, 3] > 0] for boxes in slots]


def train(settings: DetectorSettings, composites: Path, folder: Path, seed: int) -> list:
    """Train a detector on composites, save it and return the losses of every step by name."""
    device = pick_device()
    detector = Detector(settings).to(device, memory_format=torch.channels_last).train()
    rate = settings.learning_rate
    optimiser = torch.optim.AdamW(detector.parameters(), rate, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, settings.steps)
    batches = composite_batches(composites, settings, seed)
    history = []
    for photos, boxes in progress(batches, "detector steps", settings.steps):
        photos = photos.to(device, memory_format=torch.channels_last)
        boxes = [box.to(device) for box in boxes]
        with torch.autocast(device.type, torch.bfloat16):
            losses = detector.losses(photos, boxes)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    save_model(detector, folder / "model.safetensors")
    if settings.pretrained:
        pretrained.save_model(detector.backbone.model, folder / "backbone")
    return history


def load(settings: DetectorSettings, folder: Path) -> Detector:
    """Return the trained detector in evaluation mode."""
    detector = Detector(settings, str(folder / "backbone"))
    load_model(detector, folder / "model.safetensors")
    return detector.to(pick_device(), memory_format=torch.channels_last).eval()
