"""Rivals and ablations on a drawn catalog: trained once, chosen on val, judged on test, kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import TINY, grow_catalog, make_catalog

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments import comparison, stages, variants
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import TRUE_BOXES, WHOLE, ComparisonSettings, Variant
from capture_lib.profiles import Profile
from capture_lib.proposals import region_store as regions
from capture_lib.retrieval import embedding as retrieval
from capture_lib.training import pretrain

SIZES = {"train": 40, "gallery": 16, "val": 8, "test": 8}
PROFILE = replace(TINY, comparison=ComparisonSettings(epochs=1, seeds=2, parallel_jobs=0))
FEW = {"recipe": {"recipe": Variant()}, "some": {"1 region": Variant(max_regions=1), "half the pairs": Variant(share=0.5),
                                                 TRUE_BOXES: Variant(asked=TRUE_BOXES)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("comparison")
    return Run(PROFILE, make_catalog(folder / "shop", **SIZES), folder / "report", 0)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "ablations", lambda settings: FEW)


def read_chosen(run: Run) -> dict[str, list[dict]]:
    return comparison.gathered(comparison.evaluations(run), comparison.read_chosen)


def test_every_method_is_judged_for_every_seed_and_nothing_is_made_twice(run: Run, monkeypatch):
    trainings = []
    train = pretrain.train
    monkeypatch.setattr(pretrain, "train", lambda *args: trainings.append(args[4].name) or train(*args))
    scores = comparison.compared(run)
    counts = {name: len(tables) for name, tables in scores.items()}
    baselines = {"capture/instance", "capture/image", "capture-chosen/instance", "capture-chosen/image",
              "two-stream/instance", "two-stream/image", "one-stream/instance", "one-stream/image",
              "dual-encoder/instance", "dual-encoder/image", "image-stream", "text-stream"}
    assert {name for name, count in counts.items() if count == 2} == baselines
    once = {"image-only", "text-only", "late-fusion", "chance", "popularity"}
    once |= {f"ablation/{name}{product}" for name in ("recipe", "1 region", "half the pairs", TRUE_BOXES)
             for product in ("", ", product")}
    assert {name for name, count in counts.items() if count == 1} == once
    assert all(table.shape == (8, 18) and table.to_numpy().min() >= 0 and table.to_numpy().max() <= 1
               for tables in scores.values() for table in tables)
    # CAPTURE (2 seeds, the first is notebook 04's), 2 × (two-stream, one-stream, dual), 2 one-stream forms tried,
    # 3 ablations: what is asked with true boxes is trained as the recipe
    assert len(trainings) == 1 + 1 + 2 * 3 + 2 + 3 and len(set(trainings)) == len(trainings)
    monkeypatch.setattr(pretrain, "train", None)
    again = comparison.compared(run)
    assert all(left.equals(right) for name in scores for left, right in zip(scores[name], again[name], strict=True))


def test_the_first_seed_of_capture_is_judged_as_notebook_05_does(run: Run):
    sides = stages.embedded(run)
    chosen, _ = stages.choices(run, sides)
    for name in ("capture/instance", "capture-chosen/image", "image-only", "late-fusion"):
        ranked = retrieval.rank(sides["test"], sides["gallery"], retrieval.METHODS[name].level, chosen[name])
        expected = retrieval.score(ranked, sides["test"], sides["gallery"])
        pd.testing.assert_frame_equal(comparison.compared(run)[name][0], expected)
        assert read_chosen(run)[name][0]["reading"] == chosen[name].representation


def test_val_chooses_and_test_does_not(run: Run):
    options = {job.part: comparison.evaluated(run, job) for job in comparison.searched(run)}
    assert len(options) == 2  # the forms of one-stream
    best = max(options, key=lambda part: max(row["val"] for row in comparison.read_chosen(options[part]).values()))
    final = [job for job in comparison.finals(run) if job.name == "one-stream"]
    tasks = {job.variant.pretrain["tasks"] for job in final}
    assert [job.seed for job in final] == [0, 1] and all("-".join(task) in best for task in tasks) and len(tasks) == 1
    for rows in read_chosen(run).values():
        for row in rows:
            assert row["val"] == max(row["tried"].values()) == row["tried"][f"{row['reading']}, {row['merge']}"]


def test_a_job_has_the_same_steps_whatever_its_data_and_its_batch(run: Run):
    def job(variant: Variant, **more) -> comparison.Training:
        return comparison.training_of(run, comparison.Job("x", variant, 2, **{"rate": 1.0, "seed": 0} | more))

    whole = job(Variant())
    assert whole.capture == run.profile.capture and whole.batches == run.profile.batches
    assert job(Variant(share=0.25)).pretrain.epochs == 8
    double = job(Variant(batch_factor=2)).pretrain
    assert (double.epochs, double.batch) == (4, 2 * whole.pretrain.batch)
    assert job(Variant(), rate=0.5).pretrain.learning_rate == whole.pretrain.learning_rate / 2
    assert job(Variant(), seed=3) != whole == job(Variant(asked=TRUE_BOXES))


def test_limited_pairs_keep_the_best_regions(run: Run):
    store, _ = stages.region_store(run)
    pairs = stages.pairs_of(run, stages.samples(run, "test"), store, stages.pretrained(run))
    one = comparison.limited(pairs, 1)
    assert comparison.limited(pairs, 0) is pairs
    assert one.store.features.shape[1] == 1 and one.store.counts.max() == 1
    np.testing.assert_array_equal(one.store.boxes[:, 0], store.boxes[:, 0])
    assert one.batch(np.arange(3))["region_features"].shape[1] == 2  # and the global token


def test_stores_with_other_boxes(run: Run):
    whole, true = (regions.open_store(comparison.boxed_store(run, kind)) for kind in (WHOLE, TRUE_BOXES))
    assert set(whole.ids) == set(run.catalog.photos) and (whole.counts == 1).all()
    np.testing.assert_array_equal(whole.boxes[:, 0], np.tile([0, 0, 1, 1], (len(whole.ids), 1)))
    boxed = run.catalog.table[run.catalog.table["boxes"].map(len) > 0].set_index("sample_id")
    assert set(true.ids) == set(boxed.index)
    network, _ = stages.trained_encoder(run)
    for sample in true.ids[:3] + true.ids[-3:]:
        row = true.ids.index(sample)
        boxes = np.stack(boxed.loc[sample, "boxes"])
        assert true.counts[row] == len(boxes)
        sides = np.tile(load_photo(run.catalog.photos[sample]).shape[1::-1], 2)  # width, height, width, height
        np.testing.assert_allclose(true.boxes[row, :len(boxes)] * sides, boxes, atol=1e-3)
        alone = regions.encode_boxes([run.catalog.photos[sample]], [boxes], network, run.profile.regions)
        np.testing.assert_allclose(true.features[row, :len(boxes)], alone, atol=2e-2)


def test_a_judgement_is_read_as_it_was_written(tmp_path: Path):
    rng = np.random.default_rng(0)
    columns = pd.MultiIndex.from_product([["standard", "released"], ["mAP@10", "mAR@50"]])
    scores = {"a/b": pd.DataFrame(rng.random((5, 4)), columns=columns),
              "c, product": pd.DataFrame(rng.random((5, 4)), columns=columns)}
    comparison.keep(tmp_path, scores, {"a/b": {"val": 0.5}})
    found = comparison.read_scores(tmp_path)
    assert list(found) == list(scores) and comparison.read_chosen(tmp_path) == {"a/b": {"val": 0.5}}
    for name, table in scores.items():
        pd.testing.assert_frame_equal(found[name], table)


def small_run(folder: Path, profile: Profile = PROFILE, **catalog) -> Run:
    return Run(profile, make_catalog(folder / "shop", **catalog), folder / "report", 0)


def test_without_captions_only_what_needs_no_training_is_compared(tmp_path: Path):
    scores = comparison.compared(small_run(tmp_path, **SIZES, captions=False))
    assert set(scores) == {"image-only", "chance", "popularity"}


def test_without_labels_or_queries_nothing_is_compared(tmp_path: Path):
    assert comparison.compared(small_run(tmp_path / "no val", train=4, gallery=4, val=0, test=4)) == {}
    run = small_run(tmp_path / "no labels", **SIZES)
    run.catalog.table["labels"] = [[] for _ in range(len(run.catalog.table))]
    write_catalog(run.catalog.table, run.catalog.folder)
    assert comparison.compared(replace(run, catalog=read_catalog(run.catalog.folder))) == {}


def test_a_catalog_that_grew_is_judged_anew_with_the_models_that_are_there(tmp_path: Path, monkeypatch):
    run = small_run(tmp_path, replace(PROFILE, comparison=ComparisonSettings(epochs=1, parallel_jobs=0)), **SIZES)
    before = comparison.compared(run)
    grown = replace(run, catalog=grow_catalog(run.catalog, {"train": range(40, 44), "test": range(8, 11)}))
    monkeypatch.setattr(pretrain, "train", None)  # nothing is trained anew
    after = comparison.compared(grown)
    assert set(after) == set(before)
    assert {len(table) for tables in before.values() for table in tables} == {8}
    assert {len(table) for tables in after.values() for table in tables} == {11}


def test_true_boxes_are_asked_with_only_where_all_have_them(tmp_path: Path):
    run = small_run(tmp_path, **SIZES)
    assert comparison.all_boxed(run)
    rows = run.catalog.table.index[run.catalog.table["split"] == "val"]
    run.catalog.table.at[rows[0], "boxes"] = []
    assert not comparison.all_boxed(run)
    assert TRUE_BOXES not in {job.name.removeprefix("ablation/") for job in comparison.ablated(run)}


def test_captions_on_one_side_alone_are_compared_with_nothing(tmp_path: Path):
    run = small_run(tmp_path, **SIZES)
    run.catalog.table.loc[run.catalog.table["split"] == "gallery", "caption"] = ""
    write_catalog(run.catalog.table, run.catalog.folder)
    run = replace(run, catalog=read_catalog(run.catalog.folder))
    chosen, _ = stages.choices(run, stages.embedded(run))
    assert "text-only" not in chosen and "capture/instance" in chosen
    assert "text-only" not in comparison.read_scores(comparison.plain(run))
