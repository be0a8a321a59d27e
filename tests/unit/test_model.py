"""The model: attention against a naive oracle, masks, layer counts of zero, checkpoints, initialisation."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from capture_lib.model.capture import MAP_KINDS, Capture, CaptureSettings
from capture_lib.model.layers import attend, split_heads
from capture_lib.utils import InputError

TINY = CaptureSettings(
    vocabulary=40, region_features=10, max_positions=20, width=16, text_layers=2, text_heads=4,
    text_ffn=32, visual_layers=1, visual_heads=2, visual_ffn=24, cross_layers=2, cross_heads=2, cross_width=8,
    joint_layers=1, joint_heads=4, output=12, dropout=0.1)


def build(seed: int = 0, **changes) -> Capture:
    torch.manual_seed(seed)
    return Capture(dataclasses.replace(TINY, **changes)).eval()


def batch(samples: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random inputs with 6 tokens and 1+4 regions; every sample is padded differently."""
    draw = torch.Generator().manual_seed(seed)
    number = torch.arange(samples)[:, None]
    return {
        "input_ids": torch.randint(0, 40, (samples, 6), generator=draw),
        "text_mask": (torch.arange(6) < 6 - number % 4).long(),
        "region_features": torch.randn(samples, 5, 10, generator=draw),
        "region_locations": torch.rand(samples, 5, 5, generator=draw),
        "region_mask": (torch.arange(5) < 5 - number % 3).long(),
    }


def vectors(out: dict) -> dict[str, torch.Tensor]:
    """The outputs that have no padded positions."""
    return {name: value for name, value in out.items() if name.endswith(("pooled", "contrastive"))}


def test_outputs_have_the_promised_names_and_shapes():
    out = build()(**batch())
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "text_sequence": (3, 6, 12), "region_sequence": (3, 5, 12), "text_pooled": (3, 12),
        "region_pooled": (3, 12), "text_contrastive": (3, 12), "region_contrastive": (3, 12)}
    assert torch.equal(out["text_pooled"], out["text_sequence"][:, 0])
    assert torch.equal(out["region_pooled"], out["region_sequence"][:, 0])


def naive_attention(query, key, value, real):
    """Loops over samples, heads and queries; real keys only."""
    samples, heads, queries, width = query.shape
    mixed = torch.zeros(samples, queries, heads * width)
    for b in range(samples):
        for h in range(heads):
            for q in range(queries):
                scores = {k: float(query[b, h, q] @ key[b, h, k]) / math.sqrt(width)
                          for k in range(key.shape[2]) if real[b, k]}
                total = sum(math.exp(score) for score in scores.values())
                for k, score in scores.items():
                    mixed[b, q, h * width:(h + 1) * width] += math.exp(score) / total * value[b, h, k]
    return mixed


def test_attention_equals_the_naive_one_with_and_without_maps():
    query, key, value = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    real = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    expected = naive_attention(query, key, value, real)
    maps = []
    torch.testing.assert_close(attend(query, key, value, real, 0.0, None), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attend(query, key, value, real, 0.0, maps), expected, atol=1e-6, rtol=1e-5)
    assert maps[0].shape == (2, 3, 4, 6)


def test_heads_are_split_in_the_order_of_the_features():
    qkv = torch.arange(2 * 3 * 12).reshape(2, 3, 12)  # 2 samples, 3 tokens, 3 x 2 heads of width 2
    query, _, value = split_heads(qkv, heads=2)
    assert query.shape == (2, 2, 3, 2)
    assert query[1, 0, 2].tolist() == qkv[1, 2, 0:2].tolist()
    assert value[1, 1, 2].tolist() == qkv[1, 2, 10:12].tolist()


def test_maps_are_distributions_over_real_keys():
    inputs = batch()
    out = build()(**inputs, attention=True)
    text, region = inputs["text_mask"].bool(), inputs["region_mask"].bool()
    queries_and_keys = {"text": (6, text), "visual": (5, region), "text_to_regions": (6, region),
                        "regions_to_text": (5, text), "joint": (11, torch.cat([text, region], 1))}
    layers_and_heads = {"text": (2, 4), "visual": (1, 2), "text_to_regions": (2, 2),
                        "regions_to_text": (2, 2), "joint": (1, 4)}
    assert tuple(out["attention"]) == MAP_KINDS
    for kind, maps in out["attention"].items():
        queries, keys = queries_and_keys[kind]
        layers, heads = layers_and_heads[kind]
        assert [tuple(weights.shape) for weights in maps] == [(3, heads, queries, keys.shape[1])] * layers
        for weights in maps:
            torch.testing.assert_close(weights.sum(-1), torch.ones(3, heads, queries))
            assert weights.masked_select(~keys[:, None, None]).eq(0).all()


def test_asking_for_maps_changes_no_output():
    model, inputs = build(), batch()
    plain, with_maps = model(**inputs), model(**inputs, attention=True)
    for name, value in plain.items():
        torch.testing.assert_close(with_maps[name], value, atol=1e-6, rtol=1e-5)


def test_the_model_can_be_compiled_as_one_graph():
    """On a GPU it is. Tracing alone shows whether a graph would break, and needs no compiler."""
    model, inputs = build(), batch()
    traced = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    assert all(torch.equal(traced[name], value) for name, value in model(**inputs).items())


def test_a_sample_does_not_depend_on_the_padding_of_its_neighbours():
    """The slip of the released joint layers, whose masks reach the wrong samples of a batch."""
    model, inputs = build(), batch()
    together = model(**inputs)
    for b in range(3):
        alone = model(**{name: value[b:b + 1] for name, value in inputs.items()})
        for name, value in alone.items():
            torch.testing.assert_close(together[name][b:b + 1], value, atol=1e-6, rtol=1e-5)


def test_what_stands_at_padded_positions_does_not_matter():
    model, inputs = build(), batch()
    other = batch(seed=2)
    for name, mask in (("input_ids", "text_mask"), ("region_features", "region_mask"),
                       ("region_locations", "region_mask")):
        real = inputs[mask].bool()
        other[name][real] = inputs[name][real]
        assert not torch.equal(other[name], inputs[name])
    expected, found = vectors(model(**inputs)), vectors(model(**other))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_no_caption_and_no_region_give_finite_vectors():
    inputs = batch()
    inputs["text_mask"][:, 2:] = 0  # [CLS] and [SEP] are left
    inputs["region_mask"][:, 1:] = 0  # the global token is left
    for attention in (False, True):
        out = build()(**inputs, attention=attention)
        assert all(value.isfinite().all() for value in vectors(out).values())


def depends_on_regions(model: Capture, name: str) -> bool:
    inputs = batch()
    before = model(**inputs)[name]
    return not torch.allclose(model(**inputs | {"region_features": -inputs["region_features"]})[name], before)


@pytest.mark.parametrize(("cross", "joint"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_modalities_meet_in_cross_and_joint_layers_only(cross, joint):
    model = build(cross_layers=cross, joint_layers=joint)
    assert depends_on_regions(model, "text_pooled") == (cross + joint > 0)
    assert not depends_on_regions(model, "text_contrastive")
    assert depends_on_regions(model, "region_contrastive")


@pytest.mark.parametrize("kind", ["text_layers", "visual_layers", "cross_layers", "joint_layers"])
def test_every_kind_of_layer_can_be_left_out(kind):
    model = build(**{kind: 0})
    maps = model(**batch(), attention=True)["attention"]
    lengths = {"text": model.settings.text_layers, "visual": model.settings.visual_layers,
               "text_to_regions": model.settings.cross_layers, "regions_to_text": model.settings.cross_layers,
               "joint": model.settings.joint_layers}
    assert {name: len(found) for name, found in maps.items()} == lengths


def test_regions_have_no_order_before_the_joint_layers():
    model, inputs = build(joint_layers=0), batch()
    order = torch.tensor([0, 3, 1, 4, 2])
    shuffled = inputs | {name: inputs[name][:, order] for name in inputs if name.startswith("region")}
    for name in ("text_contrastive", "region_contrastive", "text_pooled"):
        torch.testing.assert_close(model(**shuffled)[name], model(**inputs)[name], atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only():
    model, inputs = build(dropout=0.5), batch()
    assert torch.equal(model(**inputs)["text_pooled"], model(**inputs)["text_pooled"])
    model.train()
    assert not torch.equal(model(**inputs)["text_pooled"], model(**inputs)["text_pooled"])


def test_pretext_heads_take_any_leading_shape():
    model = build()
    out = model(**batch())
    words, regions = model.predict_words(out["text_sequence"]), model.predict_regions(out["region_sequence"])
    assert words.shape == (3, 6, 40) and regions.shape == (3, 5, 10)
    some = torch.rand(3, 6) < 0.5
    torch.testing.assert_close(model.predict_words(out["text_sequence"][some]), words[some])
    torch.testing.assert_close(model.predict_regions(out["region_sequence"][1, 2]), regions[1, 2])


def test_the_word_decoder_is_the_word_embedding():
    model = build()
    before = model.predict_words(torch.ones(12))
    with torch.no_grad():
        model.text_embedding.words.weight[7] += 1
    changed = (model.predict_words(torch.ones(12)) != before).nonzero().flatten()
    assert changed.tolist() == [7]


def test_random_start_is_that_of_bert():
    model = build(width=256, cross_width=128)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        elif "joint_layers" in name and "qkv" in name:
            assert 0.95 < parameter.abs().max() / math.sqrt(6 / (4 * 256)) <= 1, name
        elif parameter.numel() > 2000:
            assert 0.018 < parameter.std() < 0.022, name


def test_the_matching_head_changes_nothing_else():
    plain, matching = build().state_dict(), build(matching=True)
    for name, value in plain.items():
        assert torch.equal(matching.state_dict()[name], value), name
    assert matching.state_dict().keys() - plain.keys() == {"match_head.weight", "match_head.bias"}
    out = matching(**batch())
    expected = (out["text_pooled"] * out["region_pooled"]) @ matching.match_head.weight.T
    torch.testing.assert_close(matching.predict_match(out["text_pooled"], out["region_pooled"]), expected)


def test_released_size_without_its_unused_parameters():
    with torch.device("meta"):
        model = Capture(CaptureSettings())
    assert sum(parameter.numel() for parameter in model.parameters()) == 148_192_136


def test_a_saved_model_comes_back_identical_and_ready_to_evaluate(tmp_path):
    model, inputs = build(), batch()
    model.save_pretrained(tmp_path / "new" / "checkpoint")
    loaded = Capture.from_pretrained(tmp_path / "new" / "checkpoint")
    assert loaded.settings == model.settings and not loaded.training
    for name, value in model(**inputs).items():
        assert torch.equal(loaded(**inputs)[name], value)
    with safe_open(tmp_path / "new" / "checkpoint" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # what Hugging Face's own loaders ask for
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_checkpoint_holds_the_tied_decoder_once_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "training.json").write_text("{}")
    build().save_pretrained(tmp_path)
    shapes = [tuple(tensor.shape) for tensor in load_file(tmp_path / "model.safetensors").values()]
    assert shapes.count((40, 16)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors",
                                                               "training.json"]


@pytest.mark.parametrize(("change", "fault"), [({"widht": 16}, "unexpected keyword argument 'widht'"),
                                               ({"width": None}, "missing key 'width'")])
def test_a_wrong_key_in_the_configuration_is_named(tmp_path, change, fault):
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(InputError) as error:
        Capture.from_pretrained(tmp_path)
    assert str(path) in str(error.value) and fault in str(error.value)


@pytest.mark.parametrize(("change", "fault"), [
    (lambda weights: weights.pop("word_bias"), 'Missing key(s) in state_dict: "word_bias"'),
    (lambda weights: weights.update(extra=torch.zeros(1)), 'Unexpected key(s) in state_dict: "extra"'),
    (lambda weights: weights.update(word_bias=torch.zeros(41)), "size mismatch for word_bias")])
def test_weights_that_do_not_fit_are_named(tmp_path, change, fault):
    build().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(InputError) as error:
        Capture.from_pretrained(tmp_path)
    assert str(path) in str(error.value) and fault in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"half a fi", b"5"])
def test_a_missing_or_broken_file_is_named(tmp_path, name, content):
    build().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        Capture.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("text_ffn", "32"), ("joint_layers", -1),
                                             ("output", 1.5), ("text_heads", 0), ("dropout", 1.0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is {value!r}; give"):
        dataclasses.replace(TINY, **{name: value})


def test_a_wrong_value_in_the_configuration_names_the_file(tmp_path):
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"text_ffn": 32', '"text_ffn": -32'))
    with pytest.raises(InputError, match=r"config\.json.*text_ffn is -32"):
        Capture.from_pretrained(tmp_path)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="width 16 is not a multiple of visual_heads 3"):
        dataclasses.replace(TINY, visual_heads=3)


def test_more_tokens_and_regions_than_positions_are_refused():
    with pytest.raises(InputError, match="11 tokens and regions, more than max_positions 10"):
        build(max_positions=10)(**batch())
