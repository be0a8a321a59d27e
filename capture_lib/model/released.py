"""The authors' checkpoints, name for name: what a parameter is called there and here, in both directions.

Queries, keys and values are three parameters in the text, visual and cross layers of the released code and
one here, so that one matrix product gives all three. Source: the released code (`CAPTURE/model`), its
`config/capture.json` and `model/cross-base/cross_config.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from capture_lib.model.capture import Capture
from capture_lib.model.config import CaptureSettings, check_weights, read_config, read_weights
from capture_lib.utils import InputError, write_atomically

SETTINGS = {  # our setting: the released key
    "vocabulary": "vocab_size", "region_features": "v_feature_size",
    "max_positions": "max_position_embeddings", "width": "hidden_size", "dropout": "hidden_dropout_prob",
    "text_layers": "num_hidden_layers", "text_heads": "num_attention_heads", "text_ffn": "intermediate_size",
    "visual_layers": "v_num_hidden_layers", "visual_heads": "v_num_attention_heads",
    "visual_ffn": "v_intermediate_size",
    "cross_heads": "bi_num_attention_heads", "cross_width": "bi_hidden_size",
    "joint_layers": "co_num_layers", "output": "bi_hidden_size",
}
ONE_SETTING = {  # released keys that have to agree, because they are one setting here
    "v_hidden_size": "hidden_size", "attention_probs_dropout_prob": "hidden_dropout_prob",
    "v_attention_probs_dropout_prob": "hidden_dropout_prob", "v_hidden_dropout_prob": "hidden_dropout_prob",
    "v_hidden_act": "hidden_act",
}
JOINT_HEADS = 8  # the released configuration has them in the joint transformer's own file
WITHOUT_LOSS = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds bit for bit

UNUSED = {  # part of a released parameter's name: why the model has no use for it
    ".q_dense1.": "a second output projection of the cross layer, defined and never called",
    ".q_dense2.": "the same for the text",
    "cross_encoder.pooler.": "the joint transformer's pooled token, computed and thrown away",
}
WORDS = "bert.embeddings.word_embeddings.weight"
TIED_DECODER = "cls.predictions.decoder.weight"  # the same tensor as WORDS, listed twice

TRANSFORMER_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": ("attention.output.dense",),
    "after.attention_norm": ("attention.output.LayerNorm",),
    "after.ffn.up": ("intermediate.dense",),
    "after.ffn.down": ("output.dense",),
    "after.ffn_norm": ("output.LayerNorm",),
}
CROSS_LAYER = {  # 1 and v are the image there, 2 and t the text
    "region_qkv": ("biattention.query1", "biattention.key1", "biattention.value1"),
    "region_out": ("biOutput.dense1",),
    "region_after.attention_norm": ("biOutput.LayerNorm1",),
    "region_after.ffn.up": ("v_intermediate.dense",),
    "region_after.ffn.down": ("v_output.dense",),
    "region_after.ffn_norm": ("v_output.LayerNorm",),
    "text_qkv": ("biattention.query2", "biattention.key2", "biattention.value2"),
    "text_out": ("biOutput.dense2",),
    "text_after.attention_norm": ("biOutput.LayerNorm2",),
    "text_after.ffn.up": ("t_intermediate.dense",),
    "text_after.ffn.down": ("t_output.dense",),
    "text_after.ffn_norm": ("t_output.LayerNorm",),
}
JOINT_LAYER = {
    "attention_norm": ("ln_1",),
    "attention.qkv": ("attn.in_proj",),
    "attention.out": ("attn.out_proj",),
    "ffn_norm": ("ln_2",),
    "ffn.up": ("mlp.c_fc",),
    "ffn.down": ("mlp.c_proj",),
}
OUTSIDE_LAYERS = {
    "text_embedding.norm": ("bert.embeddings.LayerNorm",),
    "image_embedding.features": ("bert.v_embeddings.image_embeddings",),
    "image_embedding.locations": ("bert.v_embeddings.image_location_embeddings",),
    "image_embedding.norm": ("bert.v_embeddings.LayerNorm",),
    "text_contrastive.dense": ("bert.encoder.t_pooler.dense",),
    "region_contrastive.dense": ("bert.encoder.v_pooler.dense",),
    "text_output.dense": ("bert.t_fc.dense",),
    "region_output.dense": ("bert.v_fc.dense",),
    "word_head.expand": ("cls.t_fc",),
    "word_head.dense": ("cls.predictions.transform.dense",),
    "word_head.norm": ("cls.predictions.transform.LayerNorm",),
    "region_head.expand": ("cls.v_fc",),
    "region_head.dense": ("cls.imagePredictions.transform.dense",),
    "region_head.norm": ("cls.imagePredictions.transform.LayerNorm",),
    "region_decoder": ("cls.imagePredictions.decoder",),
}
WITHOUT_BIAS = {
    "text_embedding.words.weight": (WORDS,),
    "text_embedding.positions.weight": ("bert.embeddings.position_embeddings.weight",),
    "text_embedding.types.weight": ("bert.embeddings.token_type_embeddings.weight",),
    "joint_positions.weight": ("bert.cross_encoder.embeddings.position_embeddings.weight",),
    "word_bias": ("cls.predictions.bias",),
}


def settings_from_config(released_config: Mapping[str, Any]) -> CaptureSettings:
    """Our settings for a released configuration, the dict in its JSON file; raises `InputError`.

    Keys that size nothing are ignored, `v_target_size` too: the file says 1,601, the training script puts the
    2,048 of the features in its place. The joint layers' heads are not in the file: 8, as released, unless
    the dict has `co_num_attention_heads`.
    """
    for key in (*SETTINGS.values(), *ONE_SETTING, "hidden_act", "v_biattention_id"):
        if key not in released_config:
            raise InputError(f"released configuration: key {key!r} is missing; add it")
    for key, other in ONE_SETTING.items():
        if released_config[key] != released_config[other]:
            raise InputError(f"released configuration: {key} {released_config[key]} differs from {other} "
                             f"{released_config[other]}; this model has one setting for both")
    if released_config["hidden_act"] != "gelu":
        raise InputError(f"released configuration: hidden_act {released_config['hidden_act']!r}; this model "
                         f"knows 'gelu' only")
    return CaptureSettings(
        **{ours: released_config[theirs] for ours, theirs in SETTINGS.items()},
        cross_layers=len(released_config["v_biattention_id"]),
        joint_heads=released_config.get("co_num_attention_heads", JOINT_HEADS),
        text_length=released_config.get("text_length", CaptureSettings.text_length),
    )


def config_from_settings(settings: CaptureSettings) -> dict[str, Any]:
    """A released configuration for our settings, from which `settings_from_config` gives them back.

    `text_length` is a key that the authors' files don't have. Raises `InputError` for an output width of its own and
    for a head that the released model doesn't have.
    """
    if settings.matching:
        raise InputError("matching is true; the released model has no head for image-text matching")
    if settings.output != settings.cross_width:
        raise InputError(f"output {settings.output} differs from cross_width {settings.cross_width}; "
                         f"the released model has one width for both")
    config = {theirs: getattr(settings, ours) for ours, theirs in SETTINGS.items()} | {"hidden_act": "gelu"}
    config |= {key: config[other] for key, other in ONE_SETTING.items()}
    layers = list(range(settings.cross_layers))
    return config | {"v_target_size": settings.region_features, "type_vocab_size": 2, "v_biattention_id": layers,
                     "t_biattention_id": layers, "co_num_attention_heads": settings.joint_heads,
                     "text_length": settings.text_length}


def released_modules(settings: CaptureSettings) -> dict[str, tuple[str, ...]]:
    """Our modules with a weight and a bias, each with the released modules that it is made of, in order."""
    kinds = (("text_layers", settings.text_layers, "bert.encoder.layer", TRANSFORMER_LAYER),
             ("visual_layers", settings.visual_layers, "bert.encoder.v_layer", TRANSFORMER_LAYER),
             ("cross_layers", settings.cross_layers, "bert.encoder.c_layer", CROSS_LAYER),
             ("joint_layers", settings.joint_layers, "bert.cross_encoder.transformer.resblocks", JOINT_LAYER))
    modules = dict(OUTSIDE_LAYERS)
    for ours, layers, theirs, names in kinds:
        for layer in range(layers):
            for name, parts in names.items():
                modules[f"{ours}.{layer}.{name}"] = tuple(f"{theirs}.{layer}.{part}" for part in parts)
    return modules


def released_names(settings: CaptureSettings) -> dict[str, tuple[str, ...]]:
    """Our parameters, each with the released ones that it concatenates along the first dimension."""
    names = dict(WITHOUT_BIAS)
    for module, parts in released_modules(settings).items():
        for kind in ("weight", "bias"):
            names[f"{module}.{kind}"] = tuple(released_parameter(part, kind) for part in parts)
    return names


def released_parameter(module: str, kind: str) -> str:
    """A dot between the two, except in PyTorch's MultiheadAttention, which has `in_proj_weight`."""
    return f"{module}_{kind}" if module.endswith("in_proj") else f"{module}.{kind}"


def to_ours(state_dict: Mapping[str, Any],
            released_config: Mapping[str, Any]) -> tuple[CaptureSettings, dict[str, Tensor]]:
    """Settings and weights (float32, on the CPU, new tensors) for `Capture` from a released checkpoint.

    `state_dict` holds tensors or arrays under the released names. Raises `InputError` for a parameter that is
    missing, unknown, of a wrong shape or of a type that float32 can't hold, and for an MLM decoder that is not
    the word embedding.
    """
    settings = settings_from_config(released_config)
    unused = unused_names(state_dict)
    found = {name: torch.as_tensor(value) for name, value in state_dict.items() if name not in unused}
    for name, value in found.items():
        if value.dtype not in WITHOUT_LOSS:
            raise InputError(f"released checkpoint: parameter {name} is {value.dtype}; "
                             f"give float32, float16 or bfloat16")
    found = {name: value.to("cpu", torch.float32) for name, value in found.items()}
    with torch.device("meta"):
        expected = to_released(Capture(settings).state_dict(), settings)
    check_weights(expected, found, "released checkpoint")
    if not torch.equal(found[TIED_DECODER], found[WORDS]):
        raise InputError(f"released checkpoint: {TIED_DECODER} differs from {WORDS}; "
                         f"this model has one tensor for both")
    return settings, {ours: torch.cat([found[name] for name in theirs])
                      for ours, theirs in released_names(settings).items()}


def to_released(state_dict: Mapping[str, Tensor], settings: CaptureSettings) -> dict[str, Tensor]:
    """A `Capture`'s state_dict under the released names, without what `UNUSED` lists. Tensors are views."""
    released = {}
    for ours, theirs in released_names(settings).items():
        released.update(zip(theirs, state_dict[ours].chunk(len(theirs)), strict=True))
    released[TIED_DECODER] = released[WORDS]
    return released


def unused_names(state_dict: Mapping[str, Any]) -> list[str]:
    """The released parameters that this model has no use for (`UNUSED` says why)."""
    return [name for name in state_dict if any(part in name for part in UNUSED)]


# -------------------------------------------------------------------------------------------------- files


def convert_from_released(file: Path, config_file: Path, folder: Path) -> list[str]:
    """A released checkpoint and its JSON configuration to a folder for `Capture.from_pretrained`.

    Returns:
        the released parameters that were left out.

    Raises:
        InputError: a file can't be read, or the two don't fit together or this model.
    """
    weights, config = read_weights(file), read_config(config_file)
    try:
        model = Capture.from_released(weights, config)
    except InputError as error:
        raise InputError(f"{file} with {config_file}: {error}") from None
    model.save_pretrained(folder)
    return unused_names(weights)


def convert_to_released(folder: Path, file: Path) -> Path:
    """A folder of `Capture.save_pretrained` to a released checkpoint (.safetensors, or else torch's format).

    Returns:
        the released configuration, a .json file beside the checkpoint.

    Raises:
        InputError: the folder can't be read, its sizes have no released form, or `file` can't be a file.
    """
    if file.is_dir() or file.suffix == ".json":
        raise InputError(f"{file}: name a file for the weights, such as capture.bin or capture.safetensors")
    model = Capture.from_pretrained(folder)
    try:
        config = config_from_settings(model.settings)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    weights = {name: value.clone() for name, value in to_released(model.state_dict(), model.settings).items()}
    with write_atomically(file) as beside:
        save_file(weights, beside) if file.suffix == ".safetensors" else torch.save(weights, beside)
    with write_atomically(file.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return file.with_suffix(".json")
