"""The released checkpoints: the authors' own outputs, and every name there and back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from capture_lib import cli
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import pretext_losses
from capture_lib.model.released import UNUSED, config_from_settings, settings_from_config, to_ours, to_released
from capture_lib.utils import InputError

INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")
RELEASED_SIZES = {
    "vocab_size": 21128, "max_position_embeddings": 512, "hidden_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 12, "intermediate_size": 3072, "v_feature_size": 2048, "v_target_size": 1601,
    "v_hidden_size": 768, "v_num_hidden_layers": 4, "v_num_attention_heads": 8, "v_intermediate_size": 1024,
    "bi_hidden_size": 512, "bi_num_attention_heads": 8, "v_biattention_id": [4, 5, 6, 7], "co_num_layers": 6,
    "hidden_act": "gelu", "v_hidden_act": "gelu", "hidden_dropout_prob": 0.1, "v_hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "v_attention_probs_dropout_prob": 0.1}
SMALL_SIZES = RELEASED_SIZES | {
    "vocab_size": 30, "max_position_embeddings": 20, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 32, "v_feature_size": 10, "v_hidden_size": 16,
    "v_num_hidden_layers": 1, "v_intermediate_size": 24, "bi_hidden_size": 8, "v_biattention_id": [0, 1, 2],
    "co_num_layers": 2}


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "reference" / "released_model_small.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def config(reference) -> dict:
    return json.loads(str(reference["config_json"]))


def below(reference: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(folder): value for name, value in reference.items() if name.startswith(folder)}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("case", ["full/", "padded_same/"])
def test_outputs_and_losses_are_those_of_the_released_code(reference, config, case, attention):
    model = Capture.from_released(below(reference, "weights/"), config)
    expected = {name: torch.from_numpy(value) for name, value in below(reference, case).items()}
    out = model(*(expected[name] for name in INPUTS), attention=attention)
    losses = pretext_losses(model, expected, out)
    found = out | {f"loss_{name}": losses[ours].reshape(1) for name, ours in
                   (("mlm", "mlm"), ("mrm", "mrp"), ("contrastive", "contrastive"))}
    for name in expected.keys() - {*INPUTS, "mlm_labels", "region_labels", "region_targets"}:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_released_names_make_the_round_trip_without_loss(reference, config):
    weights = below(reference, "weights/")
    settings, ours = to_ours(weights, config)
    used = {name for name in weights if not any(part in name for part in UNUSED)}
    back = to_released(ours, settings)
    assert back.keys() == used
    for name, tensor in back.items():
        assert torch.equal(tensor, torch.from_numpy(weights[name])), name


def test_unused_parameters_are_in_the_checkpoint_and_counted_in_its_size(reference, config):
    """151.9 M: every parameter of the released code, the tied decoder once, those without a use included."""
    weights = below(reference, "weights/")
    assert all(any(part in name for name in weights) for part in UNUSED)
    unused = sum(value.size for name, value in weights.items() if any(part in name for part in UNUSED))
    assert unused == unused_parameters(settings_from_config(config))
    settings = settings_from_config(RELEASED_SIZES)
    with torch.device("meta"):
        used = sum(parameter.numel() for parameter in Capture(settings).parameters())
    assert used + unused_parameters(settings) == 151_936_136


def unused_parameters(settings: CaptureSettings) -> int:
    """Two spare projections in each cross layer; a norm and a square linear layer in the joint pooler."""
    projection = settings.cross_width * settings.width + settings.width
    pooler = 2 * settings.width + settings.width ** 2 + settings.width
    return 2 * settings.cross_layers * projection + pooler


def test_the_released_configuration_is_the_default():
    assert settings_from_config(RELEASED_SIZES) == CaptureSettings()
    assert settings_from_config(RELEASED_SIZES | {"co_num_attention_heads": 12}).joint_heads == 12


def small_model() -> Capture:
    torch.manual_seed(0)
    return Capture(settings_from_config(SMALL_SIZES))


def small_checkpoint() -> dict[str, torch.Tensor]:
    model = small_model()
    return {name: value.clone() for name, value in to_released(model.state_dict(), model.settings).items()}


def test_our_names_make_the_round_trip_without_loss():
    model, (settings, weights) = small_model(), to_ours(small_checkpoint(), SMALL_SIZES)
    assert settings == model.settings and weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_a_checkpoint_in_half_precision_gives_a_float32_model_of_its_own():
    checkpoint = {name: value.half() for name, value in small_checkpoint().items()}
    model = Capture.from_released(checkpoint, SMALL_SIZES)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()) and not model.training
    before = checkpoint["cls.predictions.bias"].clone()
    torch.nn.init.ones_(model.word_bias)
    assert torch.equal(checkpoint["cls.predictions.bias"], before)


@pytest.mark.parametrize(("name", "value", "fault"), [
    ("cls.t_fc.bias", None, "missing parameter cls.t_fc.bias"),
    ("cls.t_fc.bias", torch.zeros(16, dtype=torch.float64), "cls.t_fc.bias is torch.float64; give float32"),
    ("cls.extra", torch.zeros(1), "unknown parameter cls.extra"),
    ("cls.imagePredictions.decoder.bias", torch.zeros(1601), r"decoder.bias is \(1601,\) and not \(10,\)"),
    ("cls.predictions.decoder.weight", torch.zeros(30, 16), "decoder.weight differs from bert.embeddings")])
def test_a_checkpoint_that_does_not_fit_is_refused(name, value, fault):
    checkpoint = {key: tensor for key, tensor in (small_checkpoint() | {name: value}).items()
                  if tensor is not None}
    with pytest.raises(InputError, match=f"released checkpoint: .*{fault}"):
        to_ours(checkpoint, SMALL_SIZES)


@pytest.mark.parametrize(("change", "fault"), [
    ({"bi_hidden_size": None}, "key 'bi_hidden_size' is missing"),
    ({"v_hidden_size": 1024}, "v_hidden_size 1024 differs from hidden_size 768"),
    ({"v_hidden_dropout_prob": 0.2}, "v_hidden_dropout_prob 0.2 differs from hidden_dropout_prob 0.1"),
    ({"hidden_act": "relu", "v_hidden_act": "relu"}, "hidden_act 'relu'")])
def test_a_configuration_that_this_model_cannot_follow_is_refused(change, fault):
    config = {key: value for key, value in (RELEASED_SIZES | change).items() if value is not None}
    with pytest.raises(InputError, match=f"released configuration: .*{fault}"):
        settings_from_config(config)


def test_a_configuration_makes_the_round_trip(config):
    settings = replace(CaptureSettings(), joint_heads=12, cross_layers=2, text_length=20)
    assert settings_from_config(config_from_settings(settings)) == settings
    again = config_from_settings(settings_from_config(config))
    assert {key: config[key] for key in again.keys() & config.keys()} == {
        key: again[key] for key in again.keys() & config.keys()}


def test_an_output_width_of_its_own_has_no_released_form():
    with pytest.raises(InputError, match="output 256 differs from cross_width 512"):
        config_from_settings(replace(CaptureSettings(), output=256))


def test_a_matching_head_has_no_released_form():
    with pytest.raises(InputError, match="no head for image-text matching"):
        config_from_settings(replace(CaptureSettings(), matching=True))


# --------------------------------------------------------------------------------------- capture convert


def convert(*arguments: object) -> int:
    return cli.main(["convert", *(str(argument) for argument in arguments)])


def released_file(folder: Path, weights: dict, config: dict, suffix: str = "bin") -> tuple[Path, Path]:
    """A released checkpoint and its configuration, as files."""
    file, config_file = folder / f"released.{suffix}", folder / "capture.json"
    weights = {name: torch.as_tensor(value).clone() for name, value in weights.items()}
    save_file(weights, file) if suffix == "safetensors" else torch.save(weights, file)
    config_file.write_text(json.dumps(config))
    return file, config_file


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_convert_makes_the_round_trip_without_loss(reference, config, tmp_path, capsys, suffix):
    weights = below(reference, "weights/")
    file, config_file = released_file(tmp_path, weights, config, suffix)
    assert convert("--from-released", file, "--config", config_file, "--out", tmp_path / "ours") == 0
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    unused = {name for name in weights if any(part in name for part in UNUSED)}
    assert len(left_out) == 1 and set(left_out[0].split(": ")[1].split(", ")) == unused
    back = tmp_path / f"back.{suffix}"
    assert convert("--to-released", tmp_path / "ours", "--out", back) == 0
    found = load_file(back) if suffix == "safetensors" else torch.load(back, weights_only=True)
    assert found.keys() == weights.keys() - unused
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, torch.from_numpy(weights[name])), name
    model = Capture.from_released(found, json.loads((tmp_path / "back.json").read_text()))
    assert model.settings == Capture.from_pretrained(tmp_path / "ours").settings == settings_from_config(config)


def test_convert_refuses_in_one_line_and_writes_nothing(tmp_path, capsys):
    file, config_file = released_file(tmp_path, small_checkpoint(), SMALL_SIZES)
    (tmp_path / "missing").mkdir()
    missing, _ = released_file(tmp_path / "missing", {"cls.t_fc.bias": torch.zeros(16)}, SMALL_SIZES)
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    torch.save({"model": small_checkpoint()}, tmp_path / "nested.bin")
    torch.save({"model": Path("/")}, tmp_path / "code.bin")
    (tmp_path / "broken.json").write_text("{")
    out, source = ("--out", tmp_path / "ours"), "--from-released"
    small_model().save_pretrained(tmp_path / "wide")
    wide = json.loads((tmp_path / "wide" / "config.json").read_text()) | {"output": 16}
    Capture(CaptureSettings(**wide)).save_pretrained(tmp_path / "wide")
    wrong = {
        (source, file, *out): "--config FILE",
        ("--to-released", tmp_path / "wide", "--config", config_file, *out): "--config FILE",
        (source, tmp_path / "no.bin", "--config", config_file, *out): "no.bin: cannot be read",
        (source, file, "--config", tmp_path / "no.json", *out): "no.json",
        (source, file, "--config", tmp_path / "broken.json", *out): "broken.json",
        (source, config_file, "--config", config_file, *out): "capture.json: cannot be read as weights",
        (source, tmp_path / "code.bin", "--config", config_file, *out): "code.bin: cannot be read as weights",
        (source, tmp_path / "list.bin", "--config", config_file, *out): "list.bin: is no state dict",
        (source, tmp_path / "nested.bin", "--config", config_file, *out): "nested.bin: is no state dict",
        (source, missing, "--config", config_file, *out): "released.bin with",
        ("--to-released", tmp_path / "none", *out): "config.json",
        ("--to-released", tmp_path / "wide", *out): "wide: output 16 differs from cross_width 8",
        ("--to-released", tmp_path / "wide", "--out", tmp_path / "missing"): "missing: name a file",
    }
    for arguments, part in wrong.items():
        assert convert(*arguments) == 2, arguments
        said = capsys.readouterr().err
        assert part in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "ours").exists() and missing.is_file()
