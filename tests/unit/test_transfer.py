"""A detector and an encoder of one catalog, judged on another: what is asked, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import TINY, make_catalog, refused

from capture_lib import cli, profiles
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments import run as runs
from capture_lib.experiments.run import Run
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals import region_store as regions
from capture_lib.proposals import transfer


def test_an_altered_run_keeps_its_stages_apart(tmp_path):
    run = Run(profiles.get("smoke"), make_catalog(tmp_path), tmp_path, 0)
    other, third = transfer.altered(run, "mobilenetv2_100", "weights.pth"), transfer.altered(run, scenes="folder")
    assert transfer.altered(run) == run and len({r.stages for r in (run, other, third)}) == 3
    assert {r.stages.parent for r in (run, other, third)} == {run.stages.parent}
    assert third.profile.synthesis.scenes == "folder" and third.profile.detector == run.profile.detector
    settings = other.profile.detector
    assert (settings.backbone, settings.weights) == ("mobilenetv2_100", "weights.pth")
    assert settings.steps == run.profile.detector.steps and other.profile.synthesis == run.profile.synthesis


def test_regions_come_with_their_boxes_and_labels_up_to_a_limit(tmp_path):
    catalog = make_catalog(tmp_path, 2, 3, 4, 0)
    table = catalog.table[catalog.table["split"] != "train"]
    asked = transfer.labelled_regions(catalog, table, 400, 0)
    assert len(asked.samples) == 7 and len(asked.labels) == 4 * 2 + 3  # val shows two products, the gallery one
    by_id = catalog.table.set_index("sample_id")
    for sample, boxes, start in zip(asked.samples, asked.boxes, np.cumsum([0, *map(len, asked.boxes)]), strict=False):
        assert boxes.tolist() == list(map(list, by_id.loc[sample, "boxes"]))
        assert asked.labels[start:start + len(boxes)].tolist() == list(by_id.loc[sample, "box_labels"])
    assert len(transfer.labelled_regions(catalog, table, 5, 0).labels) <= 5
    bare = table.assign(boxes=[[]] * len(table), box_labels=[[]] * len(table))
    whole = transfer.labelled_regions(catalog, bare, 400, 0)
    assert {sample.split("-")[0] for sample in whole.samples} == {"gallery"}  # several labels tell of no region
    for sample, boxes in zip(whole.samples, whole.boxes, strict=True):
        height, width = load_photo(catalog.photos[sample]).shape[:2]
        assert boxes.tolist() == [[0, 0, width, height]]


def test_only_regions_with_a_fellow_can_be_asked():
    assert transfer.repeated(np.array(list("aabbbc"))) == 5
    assert transfer.repeated(np.array(list("abc"))) == transfer.repeated(np.zeros(0)) == 0


def test_quarter_colours_are_the_mean_colours_of_the_quarters():
    photo = torch.zeros(1, 3, 8, 8)
    photo[0, 0, :4, :4] = photo[0, 1, 4:, 4:] = 1
    found = transfer.QuarterColours().features(photo, [torch.tensor([[0.0, 0, 8, 8]])])
    red, green, blue = found.reshape(3, 2, 2) + 0.5
    assert red[0, 0] > 0.9 and red[1, 1] < 0.1 and green[1, 1] > 0.9 and green[0, 0] < 0.1 and blue.abs().max() < 1e-6


def test_perfect_vectors_are_right_and_random_ones_at_chance():
    labels = np.repeat(np.arange(20), 5)
    perfect, random = np.eye(20)[labels], np.random.default_rng(0).normal(size=(100, 64))
    rows = transfer.identity_table({"perfect": perfect, "random": random}, labels, 0)
    assert rows["perfect"]["mAP"] == {"value": 1, "low": 1, "high": 1} == rows["perfect"]["R@1"]
    assert rows["random"]["mAP"]["low"] < rows["random"]["mAP"]["value"] < 0.15  # 4 of 99 are right


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Run:
    """A run on a drawn catalog that the command line opens by the name of any profile."""
    run = Run(TINY, make_catalog(tmp_path / "own", 24, 8, 4, 0), tmp_path / "report", 0)
    monkeypatch.setattr(runs, "open_run", lambda *_, **__: run)
    return run


def test_the_command_judges_on_another_catalog_and_trains_nothing_there(trained, tmp_path, capsys):
    other = make_catalog(tmp_path / "other", 0, 8, 6, 6)
    figures = tmp_path / "figures.json"
    assert cli.main(["transfer", str(other.folder), "--sizes", "48", "64", "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    assert "proposals (tiny on other): photos 12, boxes 24, NMS threshold 0.6" in said and "searched at 64 px" in said
    assert "crop encoder, trained" in said and "chance" in said
    assert not (other.folder / "stages").exists() and (trained.catalog.folder / "stages").exists()
    assert cli.main(["transfer", str(other.folder), "--sizes", "48", "--only", "proposals"]) == 0
    assert "identity" not in capsys.readouterr().out
    found = runs.json.loads(figures.read_text())
    assert found["judged_on"] == "other" and found["provenance"]["stem"] == "transfer"
    assert set(found["identity"]["rows"]) == {"crop encoder, trained", "detector's map (RoIAlign)",
                                              "crop encoder, untrained", "colours, 2×2", "chance"}
    assert set(found["proposals"]["rows"]) == {"whole photo", "fixed grid", "sliding boxes", "searched at 48 px",
                                               "searched at 64 px"}


def test_the_figures_are_those_of_the_encoder_itself(trained, tmp_path):
    other = make_catalog(tmp_path / "other", 0, 16, 0, 0)  # no queries: the gallery is asked
    found = transfer.identities(trained, other, TINY.regions)
    asked = transfer.labelled_regions(other, other.table, 400, 0)
    paths = [other.photos[sample] for sample in asked.samples]
    vectors = regions.encode_boxes(paths, asked.boxes, transfer.QuarterColours(), TINY.regions)
    precision, first = encoder.identity(vectors, asked.labels)
    row = found["rows"]["colours, 2×2"]
    assert found["regions"] == 16 and row["mAP"]["value"] == pytest.approx(precision.mean())
    assert row["R@1"]["value"] == pytest.approx(first.mean()) and list(row) == ["mAP", "R@1"]


def test_queries_are_asked_among_themselves_and_in_the_gallery(trained, tmp_path):
    found = transfer.identities(trained, make_catalog(tmp_path / "other", 0, 8, 6, 6), TINY.regions)
    assert (found["regions"], found["gallery"]) == (24, 8)
    row = found["rows"]["colours, 2×2"]
    assert list(row) == ["mAP", "R@1", "mAP in the gallery", "R@1 in the gallery"]
    assert row["R@1 in the gallery"]["value"] > 0.5 > found["rows"]["chance"]["R@1 in the gallery"]["value"]


def test_one_photo_of_each_product_is_asked_in_the_gallery_alone(trained, tmp_path):
    other = make_catalog(tmp_path / "other", 0, 6, 0, 3)
    ours = [row.sample_id for row in other.table.itertuples() if row.split == "gallery"]
    table = other.table.assign(boxes=[[]] * len(other.table), box_labels=[[]] * len(other.table))
    table = table[table["sample_id"].isin(ours)].reset_index(drop=True)  # six products, each once
    again = table.assign(sample_id=[f"test-{i}" for i in range(len(table))], split="test")
    write_catalog(pd.concat([table, again], ignore_index=True), other.folder)
    found = transfer.identities(trained, read_catalog(other.folder), TINY.regions)
    assert (found["regions"], found["gallery"]) == (6, 6)
    assert list(found["rows"]["colours, 2×2"]) == ["mAP in the gallery", "R@1 in the gallery"]
    assert found["rows"]["colours, 2×2"]["R@1 in the gallery"]["value"] == 1  # the same photo


def test_a_catalog_that_tells_nothing_is_refused_in_one_line(trained, tmp_path, capsys):
    other = make_catalog(tmp_path / "other", 4, 0, 0, 0)
    refused(lambda: transfer.report(trained, other, (48,)), "no photo on disk has what proposals and identity need")
    assert cli.main(["transfer", str(tmp_path / "none")]) == 2
    assert cli.main(["transfer", str(other.folder), "--backbone", "resnet18"]) == 2
    assert cli.main(["transfer", str(other.folder), "--sizes", "448", "0"]) == 2
    assert cli.main(["transfer", str(other.folder), "--profile", "product1m"]) == 2
    none = tmp_path / "none.pth"
    assert cli.main(["transfer", str(other.folder), "--backbone", "nosuchnet", "--weights", str(none)]) == 2
    assert cli.main(["transfer", str(other.folder), "--backbone", "resnet18", "--weights", str(none)]) == 2
    assert cli.main(["transfer", str(other.folder), "--scenes", str(tmp_path / "none")]) == 2
    output = capsys.readouterr()
    errors = output.err.splitlines()
    assert len(errors) == 7 and output.out == "" and not (trained.catalog.folder / "stages").exists()
    assert "no network of timm" in errors[4] and "no such weights" in errors[5] and "no photos" in errors[6]
    assert "--weights" in errors[1] and "32 pixels" in errors[2] and "no world" in errors[3]
    unlabelled = other.table.assign(labels=pd.Series([[]] * len(other.table)))
    write_catalog(unlabelled, tmp_path / "bare")
    bare = read_catalog(tmp_path / "bare")
    refused(lambda: transfer.report(trained, bare, (48,)), "a label that another one has too")
