"""What a saved model consists of, and every check on it: its sizes, its configuration file, its weights file.

Letters as in `capture_lib.model`. Only safe formats are read: nothing in a file is run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from capture_lib.utils import InputError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class CaptureSettings:
    """The sizes of the model; the defaults are the released ones. Any count of layers may be 0 (ablations).

    Raises `InputError` for a number out of range and for heads that do not divide a width.
    """

    vocabulary: int = 21_128  # V, WordPiece of bert-base-chinese
    text_length: int = 36  # L, to which captions are cut and padded: the regions' joint positions start there
    region_features: int = 2048  # F
    max_positions: int = 512  # the most tokens and regions of one sample
    width: int = 768  # W
    text_layers: int = 4
    text_heads: int = 12
    text_ffn: int = 3072
    visual_layers: int = 4
    visual_heads: int = 8
    visual_ffn: int = 1024
    cross_layers: int = 4
    cross_heads: int = 8
    cross_width: int = 512  # of queries, keys and values
    joint_layers: int = 6
    joint_heads: int = 8
    output: int = 512  # E, of H_TXT, H_IMG and the contrastive vectors
    dropout: float = 0.1
    matching: bool = False  # a head for image-text matching (ITM), which the final recipe leaves out

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name.endswith("_layers") else 1
            if name not in ("dropout", "matching") and not (isinstance(value, int) and value >= least):
                raise InputError(f"CaptureSettings: {name} is {value!r}; give a whole number from {least} up")
        if not isinstance(self.matching, bool):
            raise InputError(f"CaptureSettings: matching is {self.matching!r}; give true or false")
        if not 0 <= self.dropout < 1:
            raise InputError(f"CaptureSettings: dropout is {self.dropout}; give a number from 0 to below 1")
        for heads, width in (("text_heads", "width"), ("visual_heads", "width"),
                             ("cross_heads", "cross_width"), ("joint_heads", "width")):
            if getattr(self, width) % getattr(self, heads):
                raise InputError(f"CaptureSettings: {width} {getattr(self, width)} is not a multiple of "
                                 f"{heads} {getattr(self, heads)}; change one of the two")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file, one JSON object; `InputError` where it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}; give the JSON configuration of a saved model") from error


def read_settings(path: Path) -> CaptureSettings:
    """The settings in a config.json; `InputError` for an unknown or missing key and for a wrong value."""
    values, known = read_config(path), {field.name for field in fields(CaptureSettings)}
    for key in sorted(values.keys() ^ known):
        raise InputError(f"{path}: {'missing' if key in known else 'unknown'} key {key!r}; "
                         f"the keys are {', '.join(sorted(known))}")
    try:
        return CaptureSettings(**values)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}; give the folder of a saved model") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch saved, by name, on the CPU.

    Raises:
        InputError: the file is missing or damaged, or holds anything else than tensors by name.
    """
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own, and torch's fill a screen
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({reason}); give a .safetensors file "
                         f"or a state dict saved by torch") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: is no state dict, that is tensors by name; save the model's state_dict()")
    return dict(weights)


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """`InputError` that names the source and the first parameter missing, unknown or of a wrong shape."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            fault = f"{'missing' if name in expected else 'unknown'} parameter {name}"
        elif expected[name].shape != found[name].shape:
            fault = f"parameter {name} is {tuple(found[name].shape)} and not {tuple(expected[name].shape)}"
        else:
            continue
        raise InputError(f"{source}: {fault}; weights and configuration must belong together")
