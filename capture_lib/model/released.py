"""The authors' checkpoints, read name for name; `released_names.json` says what is called how there and here.

Queries, keys and values are three parameters there and one here. In the released cross layers 1 and v are the image,
2 and t the text. Source: the released code (`CAPTURE/model`) and its `config/capture.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capture_lib.model.config import CaptureSettings
from capture_lib.utils import InputError

NAMES = json.loads(Path(__file__).with_name("released_names.json").read_text(encoding="utf-8"))
JOINT_HEADS = 8  # in a file of its own there
WORDS = "bert.embeddings.word_embeddings.weight"
TIED_DECODER = "cls.predictions.decoder.weight"  # the same tensor as WORDS, listed twice


def settings_from_config(config: Mapping[str, Any]) -> CaptureSettings:
    """Return our settings for a released configuration, the dict in its JSON file; raise `InputError`.

    Keys that size nothing are ignored, `v_target_size` too: the file says 1,601, the training script puts the
    2,048 of the features in its place.
    """
    settings = NAMES["settings"]  # our setting: the released key
    same = NAMES["one_setting"]  # released keys that have to agree
    for key in (*settings.values(), *same, "hidden_act", "v_biattention_id"):
        if key not in config:
            raise InputError(f"released configuration: key {key!r} is missing; add it")
    for key, other in same.items():
        if config[key] != config[other]:
            raise InputError(f"released configuration: {key} {config[key]} differs from "
                             f"{other} {config[other]}; this model has one setting for both")
    if config["hidden_act"] != "gelu":
        raise InputError(f"released configuration: hidden_act {config['hidden_act']!r}, not 'gelu'")
    return CaptureSettings(
        **{ours: config[theirs] for ours, theirs in settings.items()},
        cross_layers=len(config["v_biattention_id"]),
        joint_heads=config.get("co_num_attention_heads", JOINT_HEADS),
    )


def released_names(settings: CaptureSettings) -> dict[str, list[str]]:
    """Return our parameters, each with the released ones that it concatenates along the first dimension."""
    # modules by our name, each with the released modules that it is made of
    modules = dict(NAMES["modules"])
    for kind, layer in NAMES["layers"].items():
        for number in range(getattr(settings, kind)):
            for name, parts in layer["modules"].items():
                modules[f"{kind}.{number}.{name}"] = [f"{layer['prefix']}.{number}.{part}" for part in parts]

    # each has a weight and a bias; in PyTorch's MultiheadAttention they are called `in_proj_weight`
    names = dict(NAMES["parameters"])
    for module, parts in modules.items():
        separator = "_" if parts[0].endswith("in_proj") else "."
        for kind in ("weight", "bias"):
            names[f"{module}.{kind}"] = [f"{part}{separator}{kind}" for part in parts]
    return names


def read_released(
    state_dict: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[CaptureSettings, dict[str, Tensor]]:
    """Return settings and weights (float32, on the CPU, new tensors) for `Capture` from a released checkpoint."""
    settings = settings_from_config(config)

    # what the model uses, as float32
    released = {}
    for name, value in state_dict.items():
        if not any(part in name for part in NAMES["unused"]):
            released[name] = torch.as_tensor(value).to("cpu", torch.float32)

    # every released name has its place, and every place its names
    names = released_names(settings)
    expected = {TIED_DECODER}.union(*names.values())
    for name in sorted(expected ^ released.keys()):
        fault = "missing" if name in expected else "unknown"
        raise InputError(f"released checkpoint: {fault} parameter {name}")
    if not torch.equal(released[TIED_DECODER], released[WORDS]):
        raise InputError(f"released checkpoint: {TIED_DECODER} differs from {WORDS}")

    weights = {}
    for ours, theirs in names.items():
        weights[ours] = torch.cat([released[name] for name in theirs])
    return settings, weights
