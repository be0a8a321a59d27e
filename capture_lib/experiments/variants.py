"""CAPTURE with something changed: the rivals and the ablations, all of them settings of the same blocks.

Baselines come with the same features, data, optimiser steps and about the same number of parameters. Layer counts are
named as the released configurations are, 552 say: 5 text and 5 visual, 5 cross, 2 joint layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from capture_lib.experiments.composed import ComposedSettings
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.retrieval.embedding import OF_CAPTURE

RELEASED_LAYERS = 14  # 4 text and visual, 4 cross, 6 joint: what the names of layer counts are scaled from
LAYERS = ("066", "222", "255", "525", "552", "606", "660", "888")  # of the released configurations
PROPOSALS, TRUE_BOXES, WHOLE = "proposals", "true boxes", "whole photo"
COMPOSED, BY_PAPER, NO_GLOBAL = "composed", "paper", "paper, no global token"  # trainings of notebook 08
STREAMS = ("contrastive", "contrastive image")  # what a model without cross and joint layers can be read by


@dataclass(frozen=True)
class Variant:
    """What is other than in the profile's CAPTURE: settings by name, and the readings that val may choose from.

    `asked` says whose regions the queries and the gallery have, `regions` those that are trained on; `max_regions` limits
    their number (0 = no limit), `share` the training pairs; `larger` makes a batch so many times as large.
    """

    capture: dict[str, int] = field(default_factory=dict)
    pretrain: dict[str, object] = field(default_factory=dict)
    batches: dict[str, object] = field(default_factory=dict)
    regions: str = PROPOSALS
    asked: str = PROPOSALS
    max_regions: int = 0
    share: float = 1.0
    batch_factor: int = 1
    representations: tuple[str, ...] = OF_CAPTURE


@dataclass(frozen=True)
class ComparisonSettings:
    """Defaults of the cpu profile: what is shortened there, is said in the notebook."""

    epochs: int = 1  # of an ablation; the rivals are trained as long as CAPTURE
    seeds: int = 1  # of CAPTURE and its rivals
    ablation_seeds: int = 1
    rates: tuple[float, ...] = (1.0,)  # shares of the learning rate, of which val chooses by short trainings
    tries: int = 2  # of the trainings in `beyond`, compared when short; 0 = all
    parallel_jobs: int = 2  # trainings side by side, each by a process of one thread; 0 = one after the other


@cache
def parameters(settings: CaptureSettings) -> int:
    """How many parameters a model of these sizes has."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Capture(settings).parameters())


def nearest(settings: CaptureSettings, with_layers: Callable[[int], dict[str, int]]) -> dict[str, int]:
    """The layer counts, of those that `with_layers` gives for 1, 2, …, that bring the parameters nearest to those of
    `settings`."""
    wanted, options = parameters(settings), []
    for count in range(1, 50):
        options.append(with_layers(count))
        found = parameters(replace(settings, **options[-1]))
        if found >= wanted:
            break
    return min(options, key=lambda layers: abs(parameters(replace(settings, **layers)) - wanted))


def layer_counts(text: int, cross: int, joint: int) -> dict[str, int]:
    """The settings of so many text and visual, cross and joint layers."""
    return {"text_layers": text, "visual_layers": text, "cross_layers": cross, "joint_layers": joint}


def scaled(name: str, settings: CaptureSettings) -> dict[str, int]:
    """The layer counts of a released configuration at the profile's depth; at least one where it has any."""
    depth = settings.text_layers + settings.cross_layers + settings.joint_layers
    return layer_counts(*(max(1, round(int(digit) * depth / RELEASED_LAYERS)) if digit != "0" else 0
                          for digit in name))


def baselines(settings: CaptureSettings) -> dict[str, list[Variant]]:
    """The models that CAPTURE is compared with; where there are several forms of one, val chooses.

    Two-stream (as ViLBERT and LXMERT): no joint layers. Dual encoder (as CLIP): neither cross nor joint layers, the
    contrastive loss alone. One-stream (as UNITER and VisualBERT): joint layers alone; the streams never stand apart,
    so there is no place for the contrastive loss, and as UNITER it may be trained with image-text matching.
    """
    one_stream = nearest(settings, lambda count: layer_counts(0, 0, count))
    return {
        "capture": [Variant()],
        "two-stream": [Variant(nearest(settings, lambda count: layer_counts(settings.text_layers, count, 0)))],
        "one-stream": [Variant(one_stream, {"tasks": ("mlm", "mrp")}, representations=("product", "joint", "joint image")),
                       Variant(one_stream, {"tasks": ("mlm", "mrp", "itm")},
                               representations=("product", "joint", "joint image"))],
        "dual-encoder": [Variant(nearest(settings, lambda count: layer_counts(count, 0, 0)),
                                 {"tasks": ("contrastive",)}, representations=STREAMS)],
    }


def ablations(settings: CaptureSettings) -> dict[str, dict[str, Variant]]:
    """CAPTURE with one thing changed, by what is asked and by name."""
    def trained_by(*tasks: str, batch_factor: int = 1) -> Variant:
        return Variant(pretrain={"tasks": tasks}, batch_factor=batch_factor)

    return {
        "recipe": {"recipe": Variant()},
        "pretext tasks": {
            "mlm alone": trained_by("mlm"), "mrp alone": trained_by("mrp"),
            "contrastive alone": trained_by("contrastive"), "without mlm": trained_by("mrp", "contrastive"),
            "without mrp": trained_by("mlm", "contrastive"), "without contrastive": trained_by("mlm", "mrp"),
            "with itm": trained_by("mlm", "mrp", "contrastive", "itm"),
            "with itm, double batch": trained_by("mlm", "mrp", "contrastive", "itm", batch_factor=2),
            "contrastive after joint": Variant(pretrain={"contrast": "after joint"}),
        },
        "layers": {f"layers {name}": Variant(scaled(name, settings)) for name in LAYERS},
        "masking": {f"mask {share:.0%}": Variant(batches={"masked_tokens": share, "masked_regions": share})
                    for share in (0.05, 0.4)},
        "regions": {
            "1 region": Variant(max_regions=1), "3 regions": Variant(max_regions=3),
            "no global token": Variant(batches={"global_token": False}),
            TRUE_BOXES: Variant(asked=TRUE_BOXES), WHOLE: Variant(regions=WHOLE, asked=WHOLE)},
        "pairs": {"half the pairs": Variant(share=0.5), "a quarter of the pairs": Variant(share=0.25),
                  "an eighth of the pairs": Variant(share=0.125)},
    }


QUERIES = ComposedSettings(pretext=0.125, queries=0.7, weight=0.65)  # as val has chosen


def beyond() -> dict[str, Variant]:
    """CAPTURE by the paper's recipe, with composed queries, and these with one thing changed (notebook 08)."""
    def composed(**changed: float) -> Variant:
        return Variant(pretrain={"recipe": "beyond", "composed": replace(QUERIES, **changed)}, batches={"alone": True})

    return {
        BY_PAPER: Variant(), COMPOSED: composed(), NO_GLOBAL: Variant(batches={"global_token": False}),
        "own photo as answer": composed(neighbours=0), "one right answer": composed(drawn=1.0),
        "random parts": composed(alike=0),
    }
