"""BERT's weights as the start of the text side, from a folder in Hugging Face's form or by a name on its hub."""

from pathlib import Path

import torch
from torch import nn

from capture_lib.model.capture import Capture
from capture_lib.model.config import CONFIG_FILE, WEIGHTS_FILE, CaptureSettings, read_config
from capture_lib.utils import InputError, hub_folder

FILES = [CONFIG_FILE, WEIGHTS_FILE, "vocab.txt"]


@torch.no_grad()
def start_from_bert(model: Capture, bert: str | Path) -> None:
    """Put BERT's embeddings and first layers in the place of the text side's random start.

    `bert` is a folder with config.json and model.safetensors, or a name on the hub: google-bert/bert-base-chinese.
    (The released code also meant to train these weights at a tenth of the learning rate, which took effect under
    DataParallel only; here all parameters have the same rate.) `InputError` where it is damaged or doesn't fit.
    """
    from transformers import BertModel

    folder = hub_folder(bert, FILES)
    weights = folder / WEIGHTS_FILE
    check_config(folder / CONFIG_FILE, model.settings)
    try:
        source, report = BertModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except Exception as error:
        name = type(error).__name__
        raise InputError(f"{weights}: cannot be read as a BERT ({name})") from None
    missing = [name for name in sorted(report["missing_keys"]) if not name.startswith("pooler.")]
    if missing:
        raise InputError(f"{weights}: missing parameter {missing[0]}")

    # the embeddings of words, positions and types
    embeddings = source.embeddings
    model.text_embedding.words.weight.copy_(embeddings.word_embeddings.weight)
    model.text_embedding.positions.weight.copy_(embeddings.position_embeddings.weight)
    model.text_embedding.types.weight.copy_(embeddings.token_type_embeddings.weight)
    copy_module(model.text_embedding.norm, embeddings.LayerNorm)

    # layer by layer; queries, keys and values are one matrix here
    for ours, theirs in zip(model.text_layers, source.encoder.layer, strict=False):
        attention = theirs.attention
        qkv = [attention.self.query, attention.self.key, attention.self.value]
        ours.attention.qkv.weight.copy_(torch.cat([part.weight for part in qkv]))
        ours.attention.qkv.bias.copy_(torch.cat([part.bias for part in qkv]))
        copy_module(ours.attention.out, attention.output.dense)
        copy_module(ours.after.attention_norm, attention.output.LayerNorm)
        copy_module(ours.after.ffn.up, theirs.intermediate.dense)
        copy_module(ours.after.ffn.down, theirs.output.dense)
        copy_module(ours.after.ffn_norm, theirs.output.LayerNorm)


def copy_module(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy weight and bias from one module to another of the same shape."""
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)


def check_config(path: Path, settings: CaptureSettings) -> None:
    """Raise `InputError` where BERT's configuration differs from what the text side computes."""
    config = read_config(path)
    wanted = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "vocab_size": settings.vocabulary,
              "hidden_size": settings.width, "max_position_embeddings": settings.max_positions,
              "num_attention_heads": settings.text_heads, "intermediate_size": settings.text_ffn,
              "num_hidden_layers": max(settings.text_layers, config.get("num_hidden_layers", 0))}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise InputError(f"{path}: {key} is {config[key]!r} where the model has {value!r}; "
                             "give another BERT with its vocab.txt, or change the model")
