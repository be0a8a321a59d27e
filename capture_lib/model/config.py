"""What a saved model consists of: its sizes, its configuration, its weights. Nothing in a file is run."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from capture_lib.utils import InputError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class CaptureSettings:
    """The sizes of the model. Defaults are the released ones; any count of layers may be 0, for ablations."""

    vocabulary: int = 21_128  # V, WordPiece of bert-base-chinese
    region_features: int = 2048  # F
    max_positions: int = 512  # tokens and regions of one sample together
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
    matching: bool = False  # a head for image-text matching (ITM)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("dropout", "matching"):
                continue
            minimum = 0 if name.endswith("_layers") else 1
            if not isinstance(value, int) or value < minimum:
                raise InputError(f"CaptureSettings: {name} is {value!r}; "
                                 f"give a whole number from {minimum} up")
        if not 0 <= self.dropout < 1:
            raise InputError(f"CaptureSettings: dropout is {self.dropout}; give 0 to below 1")

        # every head gets an equal share of its width
        for kind in ("text", "visual", "cross", "joint"):
            width = "cross_width" if kind == "cross" else "width"
            heads = getattr(self, f"{kind}_heads")
            if getattr(self, width) % heads:
                raise InputError(f"CaptureSettings: {width} {getattr(self, width)} is not "
                                 f"a multiple of {kind}_heads {heads}")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file, one JSON object; raise `InputError` where it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}; give the JSON configuration of a saved model") from None


def read_settings(path: Path) -> CaptureSettings:
    """Read the settings in a config.json; raise `InputError` for an unknown or missing key or a wrong value."""
    values = read_config(path)
    known = {field.name for field in fields(CaptureSettings)}
    for key in known - values.keys():
        raise InputError(f"{path}: missing key {key!r}; give the folder of a saved model")
    try:
        return CaptureSettings(**values)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}; give the folder of a saved model") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, by name; raise `InputError` where it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:  # missing or damaged, each with an error of its own
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({reason})") from None
