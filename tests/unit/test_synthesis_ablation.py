"""What a choice of the synthesis does: what is changed, what is compared, and the real entry point on drawn photos."""

from dataclasses import fields, replace

import numpy as np
from drawn import TINY, make_catalog

from capture_lib.experiments import stages
from capture_lib.experiments import synthesis_ablation as ablation
from capture_lib.experiments.run import Run
from capture_lib.proposals import evaluation
from capture_lib.proposals.composites import SynthesisSettings


def test_each_variant_turns_one_choice_off_and_the_last_one_all():
    whole, variants = SynthesisSettings(), ablation.variants()
    assert variants.pop(ablation.ALL) == ({}, 0) and variants.pop(ablation.OTHER_SEED)[0] == {}
    changed, more = variants.pop("none of them")
    assert more == 0 and set(changed) == {name for change, _ in variants.values() for name in change}
    for change, more in variants.values():
        other = replace(whole, **change)
        assert more == 0 and sum(getattr(whole, f.name) != getattr(other, f.name) for f in fields(whole)) == 1


def test_hits_count_the_true_boxes_that_some_proposal_fits():
    true = np.array([[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    near = true + np.array([0.0, 0, 0.1, 0])  # IoU 0.8
    far = true + np.array([0.1, 0, 0.1, 0])  # IoU 0.6
    found = [(boxes, np.ones(len(boxes))) for boxes in (true, near[:1], far, np.array([[0.0, 0, 1, 1]]))]
    assert ablation.count_hits(found, [true] * 4) == [[2, 2], [1, 1], [2, 0], [0, 0]]


def test_the_table_gives_recall_and_paired_differences():
    rng = np.random.default_rng(0)
    totals = rng.integers(1, 5, 200).tolist()
    whole = [[total, total // 2] for total in totals]
    worse = [[max(a - 1, 0), b] for a, b in whole]
    rows = ablation.table({ablation.ALL: whole, "without tilt": worse}, totals, 0)
    assert rows[ablation.ALL]["recall@0.5"]["value"] == 1
    assert set(rows[ablation.ALL]["difference@0.75"].values()) == {0}
    difference = rows["without tilt"]["difference@0.5"]
    assert np.isclose(difference["value"], -200 / sum(totals)) and difference["high"] < 0
    assert difference["low"] < difference["value"] < difference["high"]
    assert set(rows["without tilt"]["difference@0.75"].values()) == {0}


def test_the_stage_trains_every_variant_once_on_photos_of_val(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "NONE", {"light": False})
    run = Run(TINY, make_catalog(tmp_path, 32, 8, 6, 4), tmp_path / "report", 0)
    rows = stages.ablated(run)
    assert list(rows) == ["all choices", "all, another seed", "without light", "none of them"]
    assert all(0 <= row["recall@0.5"]["value"] <= 1 for row in rows.values())
    monkeypatch.setattr(ablation, "hits", None)  # it is there now, and not made again
    assert stages.ablated(run) == rows
    table, truth = ablation.evaluated(run.catalog, run.profile.ablation, 0)
    assert len(table) == len(truth) == 4 and set(table["split"]) == {"val"}
    fits = evaluation.boxed(run.catalog, ("val",))
    every = dict(zip(fits[0]["sample_id"], map(np.ndarray.tolist, fits[1]), strict=True))
    assert [boxes.tolist() for boxes in truth] == [every[sample] for sample in table["sample_id"]]


def test_without_true_boxes_in_val_there_is_nothing_to_compare(tmp_path):
    assert stages.ablated(Run(TINY, make_catalog(tmp_path, 32, 8, 0, 4), tmp_path / "report", 0)) == {}
