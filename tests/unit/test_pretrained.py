"""Pretrained image models: opened as they were saved, adapted or left alone, and refused in one line."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from drawn import TINY, files_below, make_catalog, make_composites, refused
from PIL import Image

from capture_lib import cli
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals import detector, pretrained, region_encoder, region_store
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.region_encoder import EncoderSettings, PretrainedEncoder

CONVOLUTIONAL, TRANSFORMER = "test_efficientnet", "test_vit"


def make_model(name: str, **options) -> torch.nn.Module:
    """A random model with batch norms that have seen something."""
    torch.manual_seed(1)
    model = timm.create_model(name, **options).eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both models in timm's layout."""
    place = tmp_path_factory.mktemp("models")
    for name in (CONVOLUTIONAL, TRANSFORMER):
        timm.models.save_for_hf(make_model(name, num_classes=10), place / f"my {name}", safe_serialization=True)
    return {name: place / f"my {name}" for name in (CONVOLUTIONAL, TRANSFORMER)}


def pooled(model: torch.nn.Module, photos: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    """A model's vectors of photos (B, 3, H, W) in [0, 1], step by step."""
    channels = [(photos[:, channel] - mean[channel]) / std[channel] for channel in range(3)]
    with torch.no_grad():
        return model.forward_head(model.forward_features(torch.stack(channels, 1)), pre_logits=True)


# ---------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_features_are_those_of_the_saved_model_on_explicit_crops(folders, name):
    encoder = PretrainedEncoder(EncoderSettings(margin=0.25), str(folders[name])).eval()
    photos = torch.rand(2, 3, 400, 420, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[40.0, 33, 296, 289], [72, 40, 328, 296]]), torch.tensor([[60.0, 50, 316, 306]])]
    # of 256 pixels, 320 with their margin: two pixels a cell of the model's 160
    crops = [photos[0, :, 1:321, 8:328], photos[0, :, 8:328, 40:360], photos[1, :, 18:338, 28:348]]
    crops = torch.nn.functional.avg_pool2d(torch.stack(crops), 2)
    config = make_model(name).pretrained_cfg
    expected = pooled(make_model(name, num_classes=10), crops, config["mean"], config["std"])
    with torch.inference_mode():
        torch.testing.assert_close(encoder.features(photos, boxes), expected, atol=1e-4, rtol=1e-3)
    assert encoder.width == expected.shape[1] == len(region_store.encode(photos, boxes, encoder)[1][0])


def test_a_folder_named_as_a_model_needs_weights_alone(tmp_path):
    model = make_model("test_resnet")
    (tmp_path / "test_resnet").mkdir()
    torch.save(model.state_dict(), tmp_path / "test_resnet" / "any.pth")
    found = pretrained.open_model(str(tmp_path / "test_resnet"))
    photos = torch.rand(2, 3, 64, 64)
    config = model.pretrained_cfg
    normalised = pretrained.preprocessing(found)[1](photos)
    with torch.no_grad():
        torch.testing.assert_close(found(normalised), pooled(model, photos, config["mean"], config["std"]))


def test_weights_whose_batch_norms_are_folded_are_padded_and_scaled_as_in_tensorflow(tmp_path):
    folder = tmp_path / CONVOLUTIONAL
    folder.mkdir()
    model = make_model(CONVOLUTIONAL, pad_type="same").half()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    torch.save(model.state_dict(), folder / "half.pth")
    found = pretrained.open_model(str(folder))
    photos = torch.rand(2, 3, 63, 65)  # odd sides: other padding gives other vectors
    expected = pooled(model.float(), photos, (0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        torch.testing.assert_close(found(pretrained.preprocessing(found)[1](photos)), expected)
    # and so it is when it is saved and opened again
    pretrained.save_model(found, tmp_path / "again")
    again = pretrained.open_model(str(tmp_path / "again"))
    with torch.no_grad():
        torch.testing.assert_close(again(pretrained.preprocessing(again)[1](photos)), expected)


def test_weights_beside_the_checkout(shared):
    folder = shared / "pretrained" / "mobilenetv2_100"
    encoder = PretrainedEncoder(EncoderSettings(), str(folder)).eval()
    assert encoder.width == 1280 and tuple(encoder.size) == (224, 224) and encoder.settings.steps == 40
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    state = torch.load(folder / "mobilenetv2_100_timm_fp16.pth", weights_only=True)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    photo = Image.open(sorted((shared / "photos" / "grocery" / "images").iterdir())[0]).convert("RGB")
    photo = to_tensor(np.array(photo.resize((224, 224)))[None])
    with torch.inference_mode():
        torch.testing.assert_close(encoder(photo), pooled(model, photo, (0.5,) * 3, (0.5,) * 3), atol=1e-4, rtol=1e-4)
    assert [one.shape[1:] for one in Detector(replace(TINY.detector, pretrained=str(folder))).backbone(photo)] == [
        (32, 28, 28), (96, 14, 14)]


@pytest.mark.parametrize("source, kind", [
    ("convnext_tiny", "timm"), ("vit_small_patch14_dinov2.lvd142m", "timm"), ("timm/resnet18.a1_in1k", "timm"),
    ("hf-hub:somebody/a-model", "timm"), ("google/owlv2-base-patch16", "transformers")])
def test_a_name_tells_whose_model_it_is(source, kind):
    assert pretrained.kind_of(source) == kind


def test_a_folder_tells_whose_model_it_is(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "owlv2"}')
    assert pretrained.kind_of(str(tmp_path)) == "transformers"
    assert {pretrained.kind_of(str(folder)) for folder in folders.values()} == {"timm"}


# ---------------------------------------------------------------------------------------------- refusals


class Anything:
    """Not a tensor."""


@pytest.mark.parametrize("content, pieces", [
    ({}, ("holds no image model of timm", "model.safetensors")),
    ({"config.json": b"{"}, ("config.json: not a JSON object",)),
    ({"config.json": b"[3]"}, ("config.json: not a JSON object",)),
    ({"config.json": b'{"model_type": "clip"}', "model.safetensors": b""}, ("a model of transformers",)),
    ({"config.json": b'{"architecture": "resnet1000"}', "model.safetensors": b""}, ("holds no image model of timm",)),
    ({"config.json": b'{"architecture": "test_vit"}'}, ("holds no image model of timm",)),
    ({"config.json": b'{"architecture": "test_vit"}', "model.safetensors": b"\x20"}, ("cannot be opened", "damaged")),
])
def test_a_folder_of_other_things_is_refused(tmp_path, content, pieces):
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    refused(lambda: pretrained.open_model(str(tmp_path)), str(tmp_path), *pieces)


def test_weights_that_are_damaged_or_of_another_model_are_refused(folders, tmp_path):
    for file in folders[CONVOLUTIONAL].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(lambda: pretrained.open_model(str(tmp_path)), "damaged")
    weights.write_bytes((folders[TRANSFORMER] / "model.safetensors").read_bytes())
    refused(lambda: pretrained.open_model(str(tmp_path)), "another model's")
    model = make_model(CONVOLUTIONAL)
    model.bn1.weight.data.fill_(float("nan"))
    pretrained.save_model(model, tmp_path)
    refused(lambda: PretrainedEncoder(EncoderSettings(), str(tmp_path)), "finite")


def test_objects_are_not_unpickled(tmp_path):
    folder = tmp_path / "test_resnet"
    folder.mkdir()
    for save in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        save({"conv1.weight": Anything()}, folder / "any.pth")
        refused(lambda: pretrained.open_model(str(folder)), "more than tensors", str(folder))


@pytest.mark.parametrize("source, pieces", [
    ("mobilenetv2_1000", ("timm has no such weights", "mobilenetv2_100")),
    ("vit_base_patch14_dinov2.lvd142", ("near are", "vit_base_patch14_dinov2.lvd142m")),
    ("/no/such/folder", ("no such folder", "config.json")),
    ("google/owlv2-base-patch16", ("a model of transformers",)),
    (__file__, ("no such folder",)),
])
def test_a_wrong_name_is_refused(source, pieces):
    refused(lambda: pretrained.open_model(source), source, *pieces)


def test_without_the_hub_a_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("mobilenetv2_100", "timm/mobilenetv2_100.ra_in1k", "hf-hub:somebody/a-model"):
        refused(partial(pretrained.open_model, name), name, "cannot be opened", "without the hub, name a folder")


# ---------------------------------------------------------------------------------------------- training


@pytest.fixture
def composites(tmp_path) -> Path:
    return make_composites(tmp_path / "composites", replace(TINY.synthesis, size=96, foreground_size=64))


def adapted(name: str, folders: dict, composites: Path, folder: Path, **changes) -> tuple:
    """An encoder before and after its training, and the history."""
    settings = EncoderSettings(
        pretrained=str(folders[name]), adapt_steps=3, adapt_rate=1e-2, adapt_crop=64, adapt_batch=6)
    settings = replace(settings, **changes)
    folder.mkdir()
    history = region_encoder.train(settings, composites, folder, seed=0)
    before = PretrainedEncoder(settings, settings.pretrained).model.state_dict()
    return before, region_encoder.load(replace(settings, pretrained="/gone since"), folder).model.state_dict(), history


def test_a_convolutional_model_is_adapted_and_its_batch_norms_keep_their_statistics(folders, composites, tmp_path):
    before, after, history = adapted(CONVOLUTIONAL, folders, composites, tmp_path / "out")
    assert len(history) == 3 and before.keys() == after.keys()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if "running" in name or "tracked" in name}


@pytest.mark.parametrize("name, changes", [(TRANSFORMER, {}), (CONVOLUTIONAL, {"adapt_steps": 0})])
def test_a_transformer_or_no_steps_leave_a_model_as_it_is(folders, composites, tmp_path, name, changes):
    before, after, history = adapted(name, folders, composites, tmp_path / "out", **changes)
    assert history == [] and all(torch.equal(before[name], after[name]) for name in before)


def test_captions_may_teach_an_adapted_model_too(folders, composites, tmp_path):
    settings = EncoderSettings(pretrained=str(folders[CONVOLUTIONAL]), adapt_steps=2, adapt_crop=64)
    (tmp_path / "plain").mkdir()
    region_encoder.train(settings, composites, tmp_path / "plain", 0)
    texts = np.eye(8, dtype=np.float32)
    assert len(region_encoder.train(settings, composites, tmp_path, 0, texts, tmp_path / "plain")) == 1


def test_without_a_name_nothing_of_it_matters(composites, tmp_path):
    made = []
    for number, changes in enumerate(({}, {"adapt_steps": 7, "adapt_rate": 0.5, "adapt_crop": 8})):
        torch.manual_seed(0)
        folder = tmp_path / str(number)
        folder.mkdir()
        region_encoder.train(replace(TINY.encoder, **changes), composites, folder, seed=0)
        made.append(files_below(folder))
    assert made[0] == made[1] and set(made[0]) == {"model.safetensors", "shared.safetensors"}


def test_a_detector_has_a_pretrained_backbone_and_comes_back(folders, composites, tmp_path):
    settings = replace(TINY.detector, pretrained=str(folders[CONVOLUTIONAL]), size=96, steps=2)
    photos = to_tensor(np.load(composites / "composites.npy")[:2])
    model = Detector(settings).train()
    maps = model.backbone(photos)
    expected = make_model(CONVOLUTIONAL, num_classes=10).forward_intermediates(
        pretrained.preprocessing(model.backbone.model)[1](photos), intermediates_only=True)
    strides = {96 // one.shape[-1]: one for one in expected}
    torch.testing.assert_close(maps, [strides[8], strides[16]])
    torch.manual_seed(0)
    detector.train(settings, composites, tmp_path, seed=0)
    loaded = detector.load(replace(settings, pretrained="/gone since"), tmp_path)
    assert loaded.feature_map(photos).shape == (2, 16, 12, 12)
    stem = make_model(CONVOLUTIONAL, num_classes=10).conv_stem.weight
    assert not torch.equal(loaded.backbone.model.conv_stem.weight, stem)


def test_a_transformer_is_no_backbone(folders):
    refused(lambda: Detector(replace(TINY.detector, pretrained=str(folders[TRANSFORMER]))), "not convolutional",
            str(folders[TRANSFORMER]), "convnext_tiny")


# ---------------------------------------------------------------------------------------------- the line


def test_the_region_store_follows(folders, tmp_path):
    profile = replace(TINY, parts="encoder=mine", encoder=replace(
        TINY.encoder, pretrained=str(folders[CONVOLUTIONAL]), adapt_steps=1))
    run = Run(profile, make_catalog(tmp_path / "own", 24, 4, 0, 2), tmp_path / "report", 0)
    store, folder = stages.region_store(run)
    encoder, _ = stages.trained_encoder(run)
    width = make_model(CONVOLUTIONAL).num_features
    assert store.features.shape == (30, 3, width) and encoder.width == width
    assert json.loads((folder / "meta.json").read_text())["feature_width"] == width


def test_the_command_says_what_is_wrong_before_anything_is_made(tmp_path, capsys):
    assert cli.main(["run", "--profile", "smoke", "--encoder", "no_model", "--out", str(tmp_path / "out")]) == 2
    assert "no_model: timm has no such weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
