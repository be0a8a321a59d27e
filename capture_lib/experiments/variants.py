"""CAPTURE with something changed: the baselines and the ablations, all settings of the same blocks.

Layer counts are named as the released configurations: 552 has 5 text and 5 visual, 5 cross, 2 joint.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.retrieval.ranking import METHODS

RELEASED_LAYERS = 14  # text and visual 4, cross 4, joint 6: what the counts below are scaled from
LAYERS = ("066", "222", "255", "525", "552", "606", "660", "888")  # of the released configurations
OF_STREAMS = ("contrastive", "region_contrastive")  # representations without cross and joint layers
OF_ONE_STREAM = ("product", "joint", "region_token")  # representations without a contrastive loss


@dataclass(frozen=True)
class Variant:
    """What differs from the profile's CAPTURE."""

    capture: dict[str, int] = field(default_factory=dict)
    pretrain: dict[str, object] = field(default_factory=dict)
    batches: dict[str, object] = field(default_factory=dict)
    max_regions: int = 0  # 0 = no limit
    share: float = 1.0  # of the training pairs
    batch_factor: int = 1  # a batch is so many times as large
    representations: tuple[str, ...] = METHODS["capture-chosen/instance"].representations  # val may choose


UNCHANGED = Variant()


@dataclass(frozen=True)
class ComparisonSettings:
    """Defaults of the cpu profile; the notebook says what is shortened there."""

    epochs: int = 3  # of an ablation; baselines are trained as long as CAPTURE
    seeds: int = 1  # of CAPTURE and its rivals
    rivals: bool = True  # are the two-stream and one-stream models and the dual encoder trained too?
    ablation_seeds: int = 1
    ablations: tuple[str, ...] = ()  # by name; empty: all
    rates: tuple[float, ...] = (1.0,)  # factors of the learning rate: val chooses by short trainings


@cache
def parameters(settings: CaptureSettings) -> int:
    """Return a model's number of parameters."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Capture(settings).parameters())


def nearest(settings: CaptureSettings, layers_of: Callable[[int], dict[str, int]]) -> dict[str, int]:
    """Return the layer counts, of layers_of(1), layers_of(2) …, with about the parameters of `settings`."""
    def excess(count: int) -> int:
        return parameters(replace(settings, **layers_of(count))) - parameters(settings)

    larger = next(count for count in itertools.count(1) if excess(count) >= 0)
    return layers_of(min(range(1, larger + 1), key=lambda count: abs(excess(count))))


def layer_counts(text: int, cross: int, joint: int) -> dict[str, int]:
    """Return the settings of so many text and visual, cross and joint layers."""
    return {"text_layers": text, "visual_layers": text, "cross_layers": cross, "joint_layers": joint}


def scaled(name: str, settings: CaptureSettings) -> dict[str, int]:
    """Return a released configuration's layer counts at the profile's depth; 1 at least where it has any."""
    depth = settings.text_layers + settings.cross_layers + settings.joint_layers
    counts = [max(min(1, int(n)), round(int(n) * depth / RELEASED_LAYERS)) for n in name]
    return layer_counts(*counts)


def baselines(settings: CaptureSettings) -> dict[str, Variant]:
    """Return CAPTURE and the models that it is compared with.

    Two-stream (as ViLBERT and LXMERT): no joint layers. Dual encoder (as CLIP): neither cross nor
    joint layers, the contrastive loss alone. One-stream (as UNITER and VisualBERT): joint layers
    alone; the streams never stand apart, so there is no place for the contrastive loss.
    """
    two_stream = nearest(settings, lambda count: layer_counts(settings.text_layers, count, 0))
    one_stream = nearest(settings, lambda count: layer_counts(0, 0, count))
    dual = nearest(settings, lambda count: layer_counts(count, 0, 0))
    return {
        "capture": UNCHANGED,
        "two-stream": Variant(two_stream),
        "one-stream": Variant(one_stream, {"tasks": ("mlm", "mrp")}, representations=OF_ONE_STREAM),
        "dual-encoder": Variant(dual, {"tasks": ("contrastive",)}, representations=OF_STREAMS),
    }


def ablations(settings: CaptureSettings) -> dict[str, dict[str, Variant]]:
    """Return CAPTURE with one thing changed, by question and by name."""
    tasks = {"mlm alone": ("mlm",), "mrp alone": ("mrp",), "contrastive alone": ("contrastive",),
             "without mlm": ("mrp", "contrastive"), "without mrp": ("mlm", "contrastive"),
             "without contrastive": ("mlm", "mrp"), "with itm": ("mlm", "mrp", "contrastive", "itm")}
    pretext = {name: Variant(pretrain={"tasks": trained}) for name, trained in tasks.items()}
    pretext["with itm, double batch"] = replace(pretext["with itm"], batch_factor=2)
    pretext["contrastive after joint"] = Variant(pretrain={"contrast": "after joint"})
    masks = {f"mask {share:.0%}": {"masked_tokens": share, "masked_regions": share} for share in (0.05, 0.4)}
    shares = {"a fifth of the pairs": 0.2, "a twentieth of the pairs": 0.05}
    return {
        "recipe": {"recipe": UNCHANGED},
        "pretext tasks": pretext,
        "layers": {f"layers {name}": Variant(scaled(name, settings)) for name in LAYERS},
        "masking": {name: Variant(batches=mask) for name, mask in masks.items()},
        "regions": {
            "1 region": Variant(max_regions=1),
            "3 regions": Variant(max_regions=3),
            "no global token": Variant(batches={"global_token": False})},
        "pairs": {name: Variant(share=share) for name, share in shares.items()},
    }
