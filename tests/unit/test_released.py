"""The released checkpoints: the authors' own outputs and losses, and every name in its place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import pretext_losses
from capture_lib.model.released import NAMES, TIED_DECODER, WORDS, read_released, released_names, settings_from_config
from capture_lib.utils import InputError

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "released_model_small.npz"
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
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE, allow_pickle=False) as file:
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


def test_every_released_parameter_has_its_place(reference, config):
    weights = below(reference, "weights/")
    settings, ours = read_released(weights, config)
    used = {name for name in weights if not any(part in name for part in NAMES["unused"])}
    names = released_names(settings)
    assert {name for parts in names.values() for name in parts} | {TIED_DECODER} == used
    for name, parts in names.items():
        expected = np.concatenate([weights[part] for part in parts])
        assert torch.equal(ours[name], torch.from_numpy(expected)), name


def test_unused_parameters_are_in_the_checkpoint_and_counted_in_its_size(reference, config):
    """151.9 M: every parameter of the released code, the tied decoder once, those without a use included."""
    weights = below(reference, "weights/")
    assert all(any(part in name for name in weights) for part in NAMES["unused"])
    unused = sum(value.size for name, value in weights.items() if any(part in name for part in NAMES["unused"]))
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
    """A checkpoint under the released names, made of a model of ours."""
    model = small_model()
    checkpoint = {}
    for name, parts in released_names(model.settings).items():
        for part, value in zip(parts, model.state_dict()[name].chunk(len(parts)), strict=True):
            checkpoint[part] = value.clone()
    return checkpoint | {TIED_DECODER: checkpoint[WORDS].clone()}


def test_our_names_make_the_round_trip_without_loss():
    model = small_model()
    settings, weights = read_released(small_checkpoint(), SMALL_SIZES)
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
    ("cls.extra", torch.zeros(1), "unknown parameter cls.extra"),
    ("cls.imagePredictions.decoder.bias", torch.zeros(1601), "size mismatch for region_decoder.bias"),
    ("cls.predictions.decoder.weight", torch.zeros(30, 16), "decoder.weight differs from bert.embeddings")])
def test_a_checkpoint_that_does_not_fit_is_refused(name, value, fault):
    checkpoint = {key: tensor for key, tensor in (small_checkpoint() | {name: value}).items()
                  if tensor is not None}
    with pytest.raises(InputError, match=f"released checkpoint: .*{fault}"):
        Capture.from_released(checkpoint, SMALL_SIZES)


@pytest.mark.parametrize(("change", "fault"), [
    ({"bi_hidden_size": None}, "key 'bi_hidden_size' is missing"),
    ({"v_hidden_size": 1024}, "v_hidden_size 1024 differs from hidden_size 768"),
    ({"v_hidden_dropout_prob": 0.2}, "v_hidden_dropout_prob 0.2 differs from hidden_dropout_prob 0.1"),
    ({"hidden_act": "relu", "v_hidden_act": "relu"}, "hidden_act 'relu'")])
def test_a_configuration_that_this_model_cannot_follow_is_refused(change, fault):
    config = {key: value for key, value in (RELEASED_SIZES | change).items() if value is not None}
    with pytest.raises(InputError, match=f"released configuration: .*{fault}"):
        settings_from_config(config)
