"""BERT's weights as the start of the text side, from a folder in Hugging Face's form or by a name on its hub.

The released code names its text side as BERT does, so its names are the map: the text embedding, as many of BERT's
layers as the model has text layers, the first ones, and, where the folder has it, the head that predicts masked words.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from capture_lib.model.capture import Capture
from capture_lib.model.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CaptureSettings,
    check_weights,
    read_config,
    read_weights,
)
from capture_lib.model.released import SETTINGS, TIED_DECODER, to_released
from capture_lib.utils import InputError

VOCABULARY_FILE = "vocab.txt"
SAME_SIZES = ("vocabulary", "width", "max_positions", "text_heads", "text_ffn")  # ours; `SETTINGS` has BERT's names
SAME_KIND = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
TEXT_SIDE = ("bert.embeddings.", "bert.encoder.layer.")
WORD_HEAD = "cls.predictions."


def bert_folder(bert: str | Path) -> Path:
    """The folder that is named, or the one into which the hub's model of that name was fetched, the safe files alone.

    Raises:
        InputError: there is no such folder, and the hub gives nothing by that name.
    """
    if Path(bert).is_dir():
        return Path(bert)
    try:
        return Path(snapshot_download(str(bert), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE]))
    except Exception as error:  # the network's, the hub's and the name's own errors, some of many lines
        raise InputError(f"{bert}: neither a folder nor a model that the Hugging Face hub gives "
                         f"({type(error).__name__}); give a folder with {CONFIG_FILE}, {WEIGHTS_FILE} and "
                         f"{VOCABULARY_FILE}") from None


@torch.no_grad()
def start_from_bert(model: Capture, bert: str | Path) -> list[str]:
    """Puts BERT's weights in the place of the text side's random start; everything else stays as it is.

    The released code also meant to train these weights at a tenth of the learning rate, which took effect under
    DataParallel only; here all parameters have the same rate.

    Args:
        model: its sizes must be those of BERT, its text layers no more.
        bert: a folder with config.json and model.safetensors, or the name on the hub of a model that has them:
            google-bert/bert-base-chinese.

    Returns:
        the names of what was put in place, BERT's own.

    Raises:
        InputError: a file is missing or damaged, or this BERT doesn't fit the model.
    """
    folder = bert_folder(bert)
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    check_config(config, read_config(config), model.settings)
    found = under_released_names(read_weights(weights))
    wanted = {name: view for name, view in to_released(model.state_dict(), model.settings).items()
              if name.startswith(TEXT_SIDE) or (name.startswith(WORD_HEAD) and name in found and name != TIED_DECODER)}
    check_weights(wanted, {name: found[name] for name in wanted.keys() & found.keys()}, str(weights))
    for name, view in wanted.items():  # views into the model's parameters
        view.copy_(found[name])
    return list(wanted)


def check_config(path: Path, config: Mapping[str, Any], settings: CaptureSettings) -> None:
    """`InputError` where BERT's configuration differs from what the text side computes."""
    for key, value in SAME_KIND.items():
        if config.get(key, value) != value:
            raise InputError(f"{path}: {key} is {config[key]!r}, not {value!r}; give a BERT such as bert-base-chinese")
    for ours in SAME_SIZES:
        key = SETTINGS[ours]
        if config.get(key) != getattr(settings, ours):
            hint = f", or name this folder's {VOCABULARY_FILE} as vocabulary" if ours == "vocabulary" else ""
            raise InputError(f"{path}: {key} is {config.get(key)} and the model's {ours} {getattr(settings, ours)}; "
                             f"change one of the two{hint}")
    if settings.text_layers > config.get("num_hidden_layers", 0):
        raise InputError(f"{path}: num_hidden_layers is {config.get('num_hidden_layers')}, fewer than the model's "
                         f"text_layers {settings.text_layers}; take fewer text layers")


def under_released_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT without heads lacks a prefix; older files call a norm's weight gamma and its bias beta."""
    prefix = "" if any(name.startswith("bert.") for name in weights) else "bert."
    return {prefix + name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"):
            value for name, value in weights.items()}
