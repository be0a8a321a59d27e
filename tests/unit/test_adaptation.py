"""Training on unlabelled photos and pairs, judged on whole photos: what is asked, chosen, trained, and reported."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import TINY, draw, make_catalog, refused
from PIL import Image

from capture_lib import cli, profiles
from capture_lib.catalog.table import Catalog, read_catalog, write_catalog
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals import adaptation
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals.adaptation import REPRESENTATIONS, AdaptationSettings, Network, Photos, Reader

SMALL = AdaptationSettings(sizes=(48, 64), foreground=48, composites=30, composite=48, products=2, crop=32, steps=3,
                           batch=4, rates=(1e-3, 1e-2), pair_rates=(1e-3,), pair_epochs=1, shares=(0.5,))


def single_products(folder, train: int = 36, captions: bool = True) -> Catalog:
    """A drawn catalog whose queries show one product each, as its gallery does; no boxes."""
    catalog = make_catalog(folder, train, 8, 0, 0, captions)
    gallery = catalog.split("gallery")
    parts = [catalog.table.assign(products=None)]
    for split, width in (("val", 112), ("test", 144)):
        rows = gallery.assign(split=split, caption="", sample_id=[f"{split}-{i}" for i in range(len(gallery))],
                              image=[f"images/{split}-{i}.png" for i in range(len(gallery))])
        for number, image in enumerate(rows["image"]):
            Image.fromarray(draw([number], 96, width)[0]).save(folder / image)
        parts.append(rows)
    table = pd.concat(parts, ignore_index=True)
    table["boxes"] = table["box_labels"] = pd.Series([[]] * len(table))
    write_catalog(table, folder)
    return read_catalog(folder)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(TINY, single_products(tmp_path / "own"), tmp_path / "report", 0)


@pytest.fixture
def weights(tmp_path) -> str:
    """A file of weights for the small network."""
    torch.manual_seed(1)
    torch.save(Network("test_resnet").trunk.state_dict(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_a_network_reads_its_maps_whole_and_in_quarters(weights):
    network, photos = Network("test_resnet", weights).eval(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found, again = network(photos), Network("test_resnet", weights).eval()(photos)
        pooled = network.trunk((photos - 0.5) / 0.5)  # timm's own pooled features
    assert set(found) == set(REPRESENTATIONS) and torch.equal(found["head"], again["head"])
    assert torch.allclose(found["head"], pooled, atol=1e-5)
    quarters = found["head, 2×2"].reshape(2, -1, 4).mean(2)  # an even map: the whole is the mean of its quarters
    assert torch.allclose(quarters, found["head"], atol=1e-5)
    assert not torch.allclose(found["head"], Network("test_resnet").eval()(photos)["head"])


def test_queries_show_one_product_that_the_gallery_has(run):
    photos = Photos(run.catalog)
    assert [len(photos.split(side)) for side in ("val", "test", "gallery")] == [8, 8, 8]
    table = run.catalog.table.copy()
    table.at[table.index[table["sample_id"] == "test-0"][0], "labels"] = ["kind 0", "kind 1"]
    table.at[table.index[table["sample_id"] == "test-1"][0], "labels"] = ["elsewhere"]
    assert list(Photos(Catalog(run.catalog.folder, table)).split("test")["sample_id"]) == [f"test-{i}" for i in
                                                                                        range(2, 8)]
    without = table[table["split"] != "gallery"]
    refused(lambda: Photos(Catalog(run.catalog.folder, without)), "no test photo on disk has one label")


def test_vectors_that_name_the_product_are_right_and_equal_ones_change_nothing(run):
    photos = Photos(run.catalog)
    names = {side: np.array([own[0] for own in photos.split(side)["labels"]]) for side in ("val", "test", "gallery")}
    perfect = {side: (labels[:, None] == np.unique(names["gallery"])).astype(float) for side, labels in names.items()}
    assert photos.on_val(perfect) == 1 and photos.figures(perfect, "test").tolist() == [[1, 1]] * 8
    wrong = perfect | {"test": np.roll(perfect["test"], 1, axis=1)}
    options = {"frozen": {"a": (None, 0.5), "b": (None, 0.75), "c": (None, 0.75)}}
    found = adaptation.report(run, photos, {"frozen": perfect, "same": perfect, "wrong": wrong}, options, SMALL)
    assert found["rows"]["same"]["mAP, change"] == {"value": 0, "low": 0, "high": 0}
    assert found["rows"]["wrong"]["R@1, change"] == {"value": -1, "low": -1, "high": -1}
    assert found["rows"]["chance"]["mAP"]["value"] < 0.9 and found["chosen"] == "frozen: b"
    assert (found["queries"], found["val"], found["gallery"]) == (8, 8, 8)
    assert found["tried"] == {"frozen": {"a": 0.5, "b": 0.75, "c": 0.75}}


def test_training_pulls_twin_crops_together_and_leaves_its_start_as_it_was(run, weights):
    start = Reader(Network("test_resnet", weights).eval(), "last stage, 2×2", 48)
    before = {name: value.clone() for name, value in start.network.state_dict().items()}
    settings = replace(SMALL, steps=30)
    source = adaptation.composites(run, settings)
    after = adaptation.trained(start, source, settings, 3e-3, 0)
    again = adaptation.trained(start, source, settings, 3e-3, 0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in start.network.state_dict().items())
    assert all(torch.equal(value, again[name]) for name, value in after.state_dict().items())
    left, right = next(encoder.positive_pairs(source, encoder.EncoderSettings(crop=32, batch=8), 5))

    def loss(network: Network) -> float:
        with torch.inference_mode():
            return float(adaptation.nt_xent(*(network(crops)[start.representation] for crops in (left, right)), 0.1))

    assert loss(after) < loss(start.network)
    means = [name for name in before if name.endswith("running_mean")]
    assert means and all(torch.equal(after.state_dict()[name], before[name]) for name in means)


def test_photos_are_trained_on_and_compared_with_the_frozen_start(run, weights):
    found = adaptation.with_photos(run, "test_resnet", weights, SMALL)
    assert list(found["rows"]) == ["chance", "random weights", "frozen, head, 48 px", "frozen", "trained on photos"]
    assert len(found["tried"]["frozen"]) == 2 * len(REPRESENTATIONS)
    assert len(found["tried"]["trained on photos"]) == 2 * 2 * len(REPRESENTATIONS)
    frozen = found["rows"]["frozen"]
    assert frozen["mAP, change"]["value"] == 0 < frozen["mAP"]["value"] <= 1
    change = found["rows"]["trained on photos"]["mAP, change"]["value"]
    assert change == pytest.approx(found["rows"]["trained on photos"]["mAP"]["value"] - frozen["mAP"]["value"])
    plain = Reader(Network("test_resnet", weights).eval(), "head", 48)
    photos = Photos(run.catalog)
    by_hand = photos.figures({side: plain.vectors(run, photos.split(side)) for side in ("test", "gallery")}, "test")
    assert found["rows"]["frozen, head, 48 px"]["R@1"]["value"] == pytest.approx(by_hand[:, 1].mean())


def test_pairs_are_pretrained_on_beside_the_frozen_start(run, weights, tmp_path):
    found = adaptation.with_pairs(run, "test_resnet", weights, SMALL)
    kinds = [adaptation.UNTRAINED, adaptation.PRETRAINED, adaptation.BESIDE, adaptation.MATCHED]
    assert list(found["rows"]) == ["chance", "frozen", *kinds] and set(found["tried"]) == {"frozen", *kinds}
    assert all(name.startswith("rate 0.001, ") for name in found["tried"][kinds[1]])
    unjudged = run.catalog.table[run.catalog.table["split"] != "val"]
    blind = adaptation.with_pairs(replace(run, catalog=Catalog(run.catalog.folder, unjudged)), "test_resnet", weights,
                                  SMALL)
    assert blind["val"] == 0 and blind["chosen"].startswith("frozen: last stage, 48 px; ")  # the first of each
    dumb = Run(TINY, single_products(tmp_path / "dumb", 4, captions=False), tmp_path / "report", 0)
    refused(lambda: adaptation.with_pairs(dumb, "test_resnet", weights, SMALL),
            f"0 train photos on disk have a caption; pairs needs {stages.MIN_PAIRS}")


def test_vectors_side_by_side_have_the_weighted_mean_of_the_cosines():
    rng = np.random.default_rng(0)
    a, b = ({side: rng.normal(size=(3, 5)) for side in ("test", "gallery")} for _ in range(2))
    both = adaptation.joined(a, b, 0.2)
    cosines = [adaptation.unit(v["test"]) @ adaptation.unit(v["gallery"]).T for v in (a, b, both)]
    assert np.allclose(cosines[2], 0.2 * cosines[0] + 0.8 * cosines[1], atol=1e-6)


def test_the_command_trains_on_the_catalog_that_it_judges(run, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(profiles.PROFILES, "cpu", replace(run.profile, world=profiles.SIZES["mini"]))
    monkeypatch.setattr(adaptation, "AdaptationSettings", lambda: SMALL)
    start = ["transfer", str(run.catalog.folder), "--backbone", "test_resnet", "--weights", weights]
    assert cli.main([*start, "--only", "photos", "--json", str(tmp_path / "figures.json")]) == 0
    said = capsys.readouterr().out
    assert "photos (tiny on own): queries 8, val 8, gallery 8" in said and "trained on photos" in said
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["photos"]["settings"]["steps"] == SMALL.steps and found["provenance"]["catalog"] == "own"
    assert str(tmp_path) not in (tmp_path / "figures.json").read_text()
    assert cli.main(["transfer", str(run.catalog.folder), "--only", "pairs"]) == 2
    assert "give --backbone and --weights" in capsys.readouterr().err
