"""The text side's start from BERT: transformers' own outputs, every weight in its place, and folders that don't fit."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from drawn import refused
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from capture_lib.model.bert import start_from_bert
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.utils import InputError

SIZES = CaptureSettings(
    vocabulary=40, region_features=10, max_positions=20, width=16, text_layers=2, text_heads=4,
    text_ffn=32, visual_layers=1, visual_heads=2, visual_ffn=24, cross_layers=1, cross_heads=2, cross_width=8,
    joint_layers=1, joint_heads=4, output=8, dropout=0.1)
CONFIG = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
                    max_position_embeddings=20, hidden_dropout_prob=0.1)


def saved(folder: Path, kind: type = BertModel, layers: int = 3) -> torch.nn.Module:
    """A small BERT with weights far from any start, in `folder`; as it was saved, in evaluation mode."""
    torch.manual_seed(5)
    bert = kind(BertConfig(**CONFIG.to_dict() | {"num_hidden_layers": layers}))
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bert.save_pretrained(folder)
    return bert.eval()


def fresh(**changes) -> Capture:
    torch.manual_seed(0)
    return Capture(replace(SIZES, **changes)).eval()


def text_side(model: Capture, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The text stream before the cross layers."""
    x = model.text_embedding(ids)
    for layer in model.text_layers:
        x = layer(x, mask.bool())
    return x


def test_equal_weights_give_the_outputs_of_transformers(tmp_path):
    bert, model = saved(tmp_path, layers=2), fresh()
    start_from_bert(model, tmp_path)
    ids = torch.randint(0, 40, (5, 6), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(6) < torch.tensor([6, 5, 4, 3, 2])[:, None]).long()
    with torch.inference_mode():
        expected = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        found = text_side(model, ids, mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


def test_fewer_text_layers_take_the_first_ones(tmp_path):
    bert, model = saved(tmp_path), fresh()
    start_from_bert(model, tmp_path)
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        expected = bert(input_ids=ids, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(text_side(model, ids, torch.ones(1, 6)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_the_text_side_alone_changes(tmp_path, kind):
    saved(tmp_path, kind)
    model = fresh()
    start_from_bert(model, str(tmp_path))
    before = fresh().state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("text_embedding.", "text_layers."))}


def test_the_names_of_older_files_are_understood(tmp_path):
    saved(tmp_path, BertForMaskedLM)
    model, older = fresh(), fresh()
    start_from_bert(model, tmp_path)
    weights = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
               for name, value in load_file(tmp_path / "model.safetensors").items()}
    assert sum("gamma" in name for name in weights) == 8
    save_file(weights, tmp_path / "model.safetensors")
    start_from_bert(older, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(older.state_dict()[name], value), name


@pytest.mark.parametrize(("change", "fault"), [
    ({"vocabulary": 41}, "vocab_size is 40 where the model has 41; .* vocab.txt"),
    ({"text_heads": 2}, "num_attention_heads is 4 where the model has 2"),
    ({"text_ffn": 64}, "intermediate_size is 32 where the model has 64"),
    ({"max_positions": 30}, "max_position_embeddings is 20 where the model has 30"),
    ({"text_layers": 4}, "num_hidden_layers is 3 where the model has 4")])
def test_a_model_of_other_sizes_is_refused_and_left_alone(tmp_path, change, fault):
    saved(tmp_path)
    model = fresh(**change)
    with pytest.raises(InputError, match=f"config.json: {fault}"):
        start_from_bert(model, tmp_path)
    assert torch.equal(model.text_embedding.words.weight, fresh(**change).text_embedding.words.weight)


@pytest.mark.parametrize(("change", "fault"), [
    ({"hidden_act": "relu"}, "hidden_act is 'relu' where the model has 'gelu'"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
    ({"model_type": "roberta"}, "model_type is 'roberta' where the model has 'bert'")])
def test_another_kind_of_network_is_refused(tmp_path, change, fault):
    saved(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=fault):
        start_from_bert(fresh(), tmp_path)


def test_only_safe_and_whole_files_are_read(tmp_path):
    bert = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="model.safetensors: cannot be read"):
        start_from_bert(fresh(), tmp_path)
    weights = {name: value.clone() for name, value in bert.state_dict().items() if "layer.1.output.dense" not in name}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing parameter encoder.layer.1.output.dense.bias"):
        start_from_bert(fresh(), tmp_path)


def test_a_name_is_fetched_from_the_hub_and_only_its_safe_files(tmp_path, monkeypatch):
    saved(tmp_path / "fetched")
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    by_name, by_folder = fresh(), fresh()
    start_from_bert(by_name, "somebody/bert")
    start_from_bert(by_folder, tmp_path / "fetched")
    assert asked == [("somebody/bert", ["config.json", "model.safetensors", "vocab.txt"])]
    assert all(torch.equal(a, b) for a, b in zip(by_name.parameters(), by_folder.parameters(), strict=True))


def test_a_name_that_the_hub_does_not_give_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(lambda: start_from_bert(fresh(), "somebody/bert"), "somebody/bert", "neither a folder nor", "OSError")
