"""Baselines and ablations: what each changes, and that every one of them can be trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn import TOY, TOY_BATCHES, sixteen_pairs

from capture_lib.experiments import variants
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.profiles import PROFILES, SMALL_CAPTURE
from capture_lib.retrieval.ranking import OF_INSTANCES
from capture_lib.training import pretrain

DATA = {"vocabulary": 1_000, "region_features": 256}  # of a small world
SIZES = {"released": CaptureSettings(), "cpu": replace(SMALL_CAPTURE, **DATA), "toy": replace(TOY, **DATA)}


@pytest.mark.parametrize("name", SIZES)
def test_baselines_are_about_as_large_as_capture_and_have_the_layers_of_their_form(name: str):
    settings = SIZES[name]
    baselines = variants.baselines(settings)
    wanted = variants.parameters(settings)
    layers = {name: replace(settings, **variant.capture) for name, variant in baselines.items()}
    few = settings.text_layers == 1  # a layer more or less is a sixth of the model
    low, high = (0.8, 1.2) if few else (0.9, 1.1)
    assert all(low * wanted < variants.parameters(changed) < high * wanted for changed in layers.values())
    assert layers["capture"] == settings
    assert layers["two-stream"].joint_layers == 0 < layers["two-stream"].cross_layers
    one = layers["one-stream"]
    assert one.text_layers == one.visual_layers == one.cross_layers == 0 < one.joint_layers
    dual = layers["dual-encoder"]
    assert dual.cross_layers == dual.joint_layers == 0 < dual.text_layers == dual.visual_layers


def test_parameters_are_counted():
    assert variants.parameters(TOY) == sum(weight.numel() for weight in Capture(TOY).parameters())


def test_nearest_tries_until_it_is_larger():
    found = variants.nearest(TOY, lambda count: variants.layer_counts(1, 1, count))
    assert found == variants.layer_counts(1, 1, 1)
    large = replace(TOY, joint_layers=7)
    assert variants.nearest(large, lambda count: {"joint_layers": count}) == {"joint_layers": 7}


def test_layer_counts_are_the_released_ones_at_the_released_depth():
    for name in variants.LAYERS:
        assert variants.scaled(name, CaptureSettings()) == variants.layer_counts(*map(int, name))
        small = variants.scaled(name, SMALL_CAPTURE)
        assert [value == 0 for value in small.values()] == [digit == "0" for digit in name[0] + name]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_variant_has_settings_and_representations_that_exist(profile: str):
    settings = PROFILES[profile]
    for _, variant in variants_of(settings.capture):
        replace(settings.capture, **variant.capture)
        replace(settings.batches, **variant.batches)
        replace(settings.pretrain, **variant.pretrain)
        assert set(variant.representations) <= {*OF_INSTANCES, "region_contrastive"}


def variants_of(settings: CaptureSettings) -> list[tuple[str, variants.Variant]]:
    groups = variants.ablations(settings).values()
    return [*variants.baselines(settings).items(), *(pair for group in groups for pair in group.items())]


@pytest.mark.parametrize("name, variant", variants_of(TOY), ids=[name for name, _ in variants_of(TOY)])
def test_every_variant_learns_from_a_batch(name: str, variant: variants.Variant, tmp_path: Path):
    pairs = sixteen_pairs(tmp_path)
    settings = replace(pretrain.PretrainSettings(learning_rate=3e-3), **variant.pretrain)
    batch_settings = replace(TOY_BATCHES, **variant.batches)
    pairs = replace(pairs, global_token=batch_settings.global_token)
    model = pretrain.build_model(replace(TOY, dropout=0.0, **variant.capture), pairs, 0, settings.tasks).train()
    optimiser = pretrain.make_optimiser(model, settings)
    batch = pairs.masked_batch(torch.arange(16).numpy(), batch_settings, torch.Generator().manual_seed(0),
                               pretrain.MATCHING in settings.tasks)
    objective = pretrain.Objective(model, settings)
    losses = [sum(pretrain.step(objective, batch, optimiser).values()).item() for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_contrastive_loss_after_the_joint_layers_reaches_other_heads(tmp_path: Path):
    pairs = sixteen_pairs(tmp_path)
    model = pretrain.build_model(TOY, pairs, 0)
    batch = pairs.masked_batch(torch.arange(16).numpy(), TOY_BATCHES, torch.Generator().manual_seed(0))
    trained = {}
    for place in (pretrain.BEFORE_CROSS, pretrain.AFTER_JOINT):
        model.zero_grad()
        settings = pretrain.PretrainSettings(tasks=("contrastive",), contrast=place)
        sum(pretrain.Objective(model, settings)(batch).values()).backward()
        trained[place] = {name for name in ("text_output", "text_contrastive")
                          if getattr(model, name).dense.weight.grad is not None}
    assert trained == {pretrain.BEFORE_CROSS: {"text_contrastive"}, pretrain.AFTER_JOINT: {"text_output"}}


def test_without_the_global_token_its_feature_is_zero_and_nothing_else_differs(tmp_path: Path):
    pairs = sixteen_pairs(tmp_path)
    with_mean = pairs.batch(torch.arange(6).numpy())
    without = replace(pairs, global_token=False).batch(torch.arange(6).numpy())
    assert with_mean["region_features"][:, 0].any() and not without["region_features"][:, 0].any()
    assert torch.equal(with_mean["region_features"][:, 1:], without["region_features"][:, 1:])
    for name in ("region_locations", "region_mask", "input_ids"):
        assert torch.equal(with_mean[name], without[name])
    masked = replace(pairs, global_token=False).masked_batch(
        torch.arange(6).numpy(), TOY_BATCHES, torch.Generator().manual_seed(0))
    assert not masked["region_features"][:, 0].any() and masked["region_features"][:, 1:].any()
