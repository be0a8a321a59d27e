"""Baselines and ablations on a drawn catalog: trained once, chosen on val, evaluated on test, kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import TINY, make_catalog

from capture_lib.experiments import comparison, evaluation, stages, variants
from capture_lib.experiments.plan import tasks_of
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import ComparisonSettings, Variant
from capture_lib.retrieval import ranking
from capture_lib.training import pretrain

SIZES = {"train": 40, "gallery": 16, "val": 8, "test": 8}
PROFILE = replace(TINY, comparison=ComparisonSettings(epochs=1, seeds=2))
FEW = {"recipe": {"recipe": Variant()},
       "some": {"1 region": Variant(max_regions=1), "half the pairs": Variant(share=0.5)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("comparison")
    return Run(PROFILE, make_catalog(folder / "shop", **SIZES), folder / "report", 0)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "ablations", lambda settings: FEW)


def test_tasks_evaluate_every_method_for_every_seed_and_nothing_is_made_twice(run: Run, monkeypatch):
    trainings, train = [], pretrain.train
    monkeypatch.setattr(pretrain, "train", lambda *args: trainings.append(args[4]) or train(*args))
    for task in tasks_of(run).values():
        task.work()
    # with captions in the region encoder and without: CAPTURE, 2 seeds of it, the first is notebook 04's; and without:
    # 2 × (two-stream, one-stream, dual encoder), 3 ablations
    assert len(trainings) == len(set(trainings)) == 2 + 2 + 2 * 3 + 3
    monkeypatch.setattr(pretrain, "train", None)
    scores = comparison.compared(run).scores
    baselines = {f"{name}/{level}" for name in ("capture", "capture-chosen", "two-stream", "one-stream", "dual-encoder")
                 for level in ("instance", "image")} | {"image-stream", "text-stream"}
    baselines |= {"capture-raw-product/instance", "capture-beside-raw/instance"}
    assert {name for name, tables in scores.items() if len(tables) == 2} == baselines
    once = {"image-only", "text-only", "late-fusion", "chance", "popularity"}
    once |= {f"ablation/{name}{product}" for name in ("recipe", "1 region", "half the pairs")
             for product in ("", ", product")}
    assert {name for name, tables in scores.items() if len(tables) == 1} == once
    assert all(table.shape == (8, 18) and table.to_numpy().min() >= 0 and table.to_numpy().max() <= 1
               for tables in scores.values() for table in tables)
    assert comparison.compared_with_captions(run).scores


def test_the_first_seed_of_capture_is_evaluated_as_notebook_05_does(run: Run):
    sets = evaluation.embed(run, stages.pretrained(run).model, stages.caption_words(run))
    results = comparison.compared(run)
    for name, row in comparison.choices(run).items():
        assert results.chosen[name][0] == row
        best = ranking.choose(ranking.METHODS[name], sets["val"], sets["gallery"])
        assert best == (row["representation"], row["tried"])
        ranked = ranking.rank(sets["test"], sets["gallery"], ranking.METHODS[name].level, row["representation"])
        pd.testing.assert_frame_equal(results.scores[name][0], ranking.score(ranked, sets["test"], sets["gallery"]))


def test_val_chooses_and_test_does_not(run: Run):
    searching = replace(PROFILE, comparison=replace(PROFILE.comparison, rates=(0.1, 4.0)))
    searching = replace(run, profile=searching)
    jobs = comparison.searched(searching, "one-stream")
    assert [(job.rate, job.epochs) for job in jobs] == [(0.1, 1), (4.0, 1)]
    found = [evaluation.read_chosen(comparison.evaluated(searching, job)) for job in jobs]
    figures = [chosen["one-stream/instance"]["val"] for chosen in found]
    final = comparison.finals(searching, "one-stream")
    assert [(job.seed, job.epochs) for job in final] == [(0, 2), (1, 2)]
    assert {job.rate for job in final} == {jobs[int(np.argmax(figures))].rate}
    for rows in comparison.compared(run).chosen.values():
        for row in rows:
            assert row["val"] == max(row["tried"].values()) == row["tried"][row["representation"]]


def test_a_profile_may_name_its_ablations(run: Run):
    settings = ComparisonSettings(epochs=5, ablation_seeds=2, ablations=("1 region",))
    jobs = comparison.ablated(replace(run, profile=replace(PROFILE, comparison=settings)))
    assert [(job.name, job.epochs, job.seed) for job in jobs] == [("ablation/1 region", 5, seed) for seed in (0, 1)]
    named = [f"ablation/{name}" for group in FEW.values() for name in group]
    assert [job.name for job in comparison.ablated(run)] == named


def test_a_profile_may_leave_the_rivals_out(run: Run):
    alone = replace(run, profile=replace(PROFILE, comparison=replace(PROFILE.comparison, rivals=False)))
    assert [job.name for job in comparison.finals(alone)] == ["capture", "capture"]  # two seeds
    left_out = tasks_of(run).keys() - tasks_of(alone).keys()
    rivals = ("two-stream", "one-stream", "dual-encoder")
    assert left_out == {f"{name}, seed {seed}" for name in rivals for seed in (0, 1)}


def test_a_job_has_the_same_steps_whatever_its_data_and_its_batch(run: Run):
    def settings(variant: Variant, rate: float = 1.0, seed: int = 0) -> dict:
        return comparison.settings_of(run, comparison.Job("x", variant, 2, rate, seed))

    whole = settings(Variant())
    assert whole["capture"] == run.profile.capture and whole["batches"] == run.profile.batches
    assert settings(Variant(share=0.25))["pretrain"].epochs == 8
    double = settings(Variant(batch_factor=2))["pretrain"]
    assert (double.epochs, double.batch) == (4, 2 * whole["pretrain"].batch)
    assert settings(Variant(), rate=0.5)["pretrain"].learning_rate == whole["pretrain"].learning_rate / 2
    assert settings(Variant(), seed=3) != whole


def test_the_best_regions_alone_may_be_used(run: Run):
    table = stages.samples(run, "test")
    every, one = (evaluation.pairs_of(run, table, Variant(max_regions=limit)) for limit in (0, 1))
    assert one.store.features.shape[1] == 1 and one.store.counts.max() == 1
    np.testing.assert_array_equal(one.store.boxes[:, 0], every.store.boxes[:, 0])
    assert one.batch(np.arange(3))["region_features"].shape[1] == 2  # and the global token


def test_without_captions_only_what_needs_no_training_is_compared(tmp_path: Path):
    mute = Run(PROFILE, make_catalog(tmp_path / "shop", **SIZES, captions=False), tmp_path / "report", 0)
    assert set(comparison.compared(mute).scores) == {"image-only", "chance", "popularity"}


def test_without_labels_or_queries_nothing_is_compared(tmp_path: Path):
    few = Run(PROFILE, make_catalog(tmp_path / "no val", 4, 4, 0, 4), tmp_path / "report", 0)
    assert comparison.compared(few).scores == {}
    catalog = make_catalog(tmp_path / "no labels", 4, 4, 4, 4)
    catalog.table["labels"] = [[] for _ in range(len(catalog.table))]
    assert comparison.compared(replace(few, catalog=catalog)).scores == {}


def test_where_captions_taught_the_regions_the_same_methods_are_compared_beside(run: Run):
    plain = comparison.compared(run)
    results = comparison.compared_with_captions(run)
    looked = {name for name in plain.scores if "/" not in name or name.startswith("capture")}
    looked -= {"chance", "popularity", "text-only", "image-stream", "text-stream"}
    assert set(results.scores) == {f"{name} + captions" for name in looked}
    assert set(results.boxes) == set(results.scores) if plain.boxes else not results.boxes
    assert not results.scores["image-only + captions"][0].equals(plain.scores["image-only"][0])
    assert run.taught().place("detector") == run.place("detector")
    assert run.taught().place("region_encoder") != run.place("region_encoder")


def test_a_box_that_is_mended_in_the_catalog_is_evaluated_anew(run: Run, capsys):
    comparison.untrained(run)
    catalog = run.catalog
    rows = catalog.table.copy()
    row = rows.index[rows["split"] == "test"][0]
    rows.at[row, "box_labels"] = ["another"] * len(rows.at[row, "boxes"])
    comparison.untrained(replace(run, catalog=replace(catalog, table=rows)))
    assert "comparison/untrained: made anew, because catalog changed" in capsys.readouterr().out
