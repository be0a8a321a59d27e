"""Pairs mined without labels; ours compared with every baseline and with itself without each part."""

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import TINY, TOY_BATCHES, make_catalog, random_pairs

from capture_lib.experiments import beyond, comparison, evaluation, mining, stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import open_searcher
from capture_lib.experiments.variants import ComparisonSettings
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import RetrievalSettings, Words, represent, unit
from capture_lib.retrieval.ranking import METHODS, Method
from capture_lib.training.batches import Pairs

KINDS = 4


def pairs_of_products(folder: Path, count: int = 64) -> tuple[Pairs, list[str]]:
    """Pairs of four products: photo i shows product i % 4 alone; region features and captions tell it."""
    captions = [f"品{chr(0x4E00 + i % KINDS)} kind{i % KINDS} kind{i % KINDS} lot{i % 3}" for i in range(count)]
    pairs = random_pairs(captions, TOY_BATCHES, folder)
    store, rng = pairs.store, np.random.default_rng(0)
    centres = rng.normal(size=(KINDS, store.features.shape[2]))
    features = np.zeros(store.features.shape, np.float16)
    features[:, 0] = centres[np.arange(count) % KINDS] + rng.normal(0, 0.1, (count, centres.shape[1]))
    store = replace(store, features=features, counts=np.ones(count, np.int32), scores=np.ones_like(store.scores))
    return replace(pairs, store=store), captions


# ---- mining


def test_mined_neighbours_show_the_same_product_and_are_not_the_photo_itself(tmp_path: Path):
    pairs, captions = pairs_of_products(tmp_path)
    mined = mining.mine_neighbours(pairs, captions, 0)
    assert len(mined.parts) == 64 and mined.near.shape == (64, 10)
    assert (mined.near % KINDS == np.arange(64)[:, None] % KINDS).all()
    assert (mined.near != np.arange(64)[:, None]).all()


def test_mined_neighbours_are_those_of_a_full_sort(tmp_path: Path):
    pairs, captions = pairs_of_products(tmp_path)
    mined = mining.mine_neighbours(pairs, captions, 0)
    words = unit(Words(captions, RetrievalSettings(), 0).vectors(captions))
    regions = unit(pairs.store.features[:, 0].astype(np.float32))
    similarity = 0.65 * regions @ regions.T + 0.35 * words @ words.T
    np.fill_diagonal(similarity, -np.inf)
    expected = -np.sort(-similarity, 1)[:, :10]
    np.testing.assert_allclose(np.take_along_axis(similarity, mined.near, 1), expected, atol=1e-5)


def test_photos_of_several_products_are_left_out(tmp_path: Path):
    pairs, captions = pairs_of_products(tmp_path)
    store = pairs.store
    boxes = np.array(store.boxes)
    boxes[:20, :2] = [[0, 0, 0.4, 0.4], [0.6, 0.6, 1, 1]]
    counts = np.where(np.arange(64) < 20, 2, 1).astype(np.int32)
    pairs = replace(pairs, store=replace(store, boxes=boxes, counts=counts))
    np.testing.assert_array_equal(mining.mine_neighbours(pairs, captions, 0).parts, np.arange(20, 64))


def test_too_few_photos_of_one_product_are_said(tmp_path: Path, capsys):
    pairs, captions = pairs_of_products(tmp_path, 8)
    assert mining.mine_neighbours(pairs, captions, 0) is None
    assert "8 photos show one product, fewer than 32: no pairs are mined" in capsys.readouterr().out


def test_no_label_can_be_read():
    source = inspect.getsource(mining)
    assert not any(f"{quote}{name}" in source for quote in "\"'." for name in ("labels", "products", "box_labels"))


# ---- compared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stages of toy size."""
    folder = tmp_path_factory.mktemp("beyond")
    profile = replace(TINY, comparison=ComparisonSettings(epochs=1, parallel_jobs=0))
    return Run(profile, make_catalog(folder / "shop", train=60, gallery=16, val=8, test=8), folder / "report", 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each photo shows one product, which a hardly trained detector would not know; two blends, not thirty-six."""
    blends = beyond.WHOLE.representations[:2]
    whole = replace(beyond.WHOLE, representations=blends)
    monkeypatch.setattr("capture_lib.proposals.instances.find_instances", lambda boxes, scores, settings: [0])
    monkeypatch.setattr(mining, "find_instances", lambda boxes, scores, settings: [0])
    monkeypatch.setattr(beyond, "WHOLE", whole)
    monkeypatch.setitem(METHODS, "beyond/instance", whole)
    monkeypatch.setitem(beyond.OF_MODEL, "paper, blend", Method("instance", blends))
    monkeypatch.setitem(beyond.PARTS, beyond.OURS, whole)
    monkeypatch.setitem(beyond.PARTS, "paper, beyond without augmentation", replace(whole, augmented=False))


def test_ours_is_compared_with_every_method_and_with_itself_without_each_part(run: Run, small: None):
    folders = beyond.evaluations(run)
    scores = evaluation.by_method(folders, evaluation.read_scores)
    chosen = evaluation.by_method(folders, evaluation.read_chosen)
    plain = {"late-fusion", "image-only", "text-only", "paper, product", "paper, chosen", "paper, blend"}
    parts = {"beyond without CAPTURE",
             *(f"paper, beyond without {part}" for part in ("wccn", "augmentation", "raw vectors"))}
    assert set(chosen) == set(scores) == plain | {f"{name}, wccn" for name in plain} | parts | {"paper, beyond"}
    for name in plain:  # the same representations to choose from
        assert set(chosen[name][0]["tried"]) == set(chosen[f"{name}, wccn"][0]["tried"])
    assert {name for name in chosen if chosen[name][0]["augmented"]} == {
        name for name in chosen if "beyond" in name and name != "paper, beyond without augmentation"}
    found = beyond.results(scores, np.array(["seen", "unseen"] * 4, object))
    figures = {name: scores[name][0]["standard", "mAP@10"].mean() for name in plain}
    assert figures[found["plain"]] == max(figures.values()) and found["baseline"] in plain - {"paper, blend"}
    expected = scores["paper, beyond"][0]["standard", "mAP@10"].mean() - figures[found["baseline"]]
    assert found["gain"]["mean"] == pytest.approx(expected)
    assert found["gain_unseen"]["low"] <= found["gain_unseen"]["high"] and found["gain_held_out"] is None
    assert set(found["groups"]) == {"all", "seen", "unseen"} and found["groups"]["seen"]["queries"] == 4
    assert set(found["parts"]) == parts and set(found["to"]) == set(found["wccn"]) == plain
    expected = evaluation.read_scores(comparison.untrained(run))["late-fusion"]
    pd.testing.assert_frame_equal(scores["late-fusion"][0], expected)  # as notebook 06 has it
    ways = beyond.tried(run)
    for way, name in {"plain": "late-fusion", "wccn": "late-fusion, wccn",
                      "wccn, augmented": "beyond without CAPTURE"}.items():
        assert ways[way]["mAP@10"] == pytest.approx(chosen[name][0]["val"])
    assert beyond.cost(run)["learning_s"] > 0


def test_what_is_evaluated_is_what_the_parts_say_by_hand(run: Run, small: None):
    """Ours, from vectors after WCCN: neighbours averaged one by one, hits sorted one by one."""
    folder = beyond.evaluations(run)[1]
    scores = evaluation.read_scores(folder)["paper, beyond"]
    chosen = evaluation.read_chosen(folder)["paper, beyond"]
    sets = stages.embedded(with_wccn(run))
    queries, gallery = (represent(sets[split].instance, chosen["representation"]) for split in ("test", "gallery"))
    moved = []
    for vector in gallery:
        mean = gallery[np.argsort(-gallery @ vector)[:4]].mean(0)
        moved.append(0.4 * vector + 0.6 * mean / np.linalg.norm(mean))
        moved[-1] /= np.linalg.norm(moved[-1])
    similarity = queries @ np.stack(moved).T  # every photo is one instance here: nothing is merged
    labels = np.array([labels[0] for labels in sets["gallery"].labels])
    for row, own, wanted in zip(similarity, scores["standard", "Prec@10"], sets["test"].labels, strict=True):
        assert own == pytest.approx(np.isin(labels[np.argsort(-row)[:10]], wanted).mean())


def with_wccn(run: Run) -> Run:
    return replace(run, profile=replace(run.profile, retrieval=replace(run.profile.retrieval, wccn=True)))


def test_a_profile_may_ask_for_wccn(run: Run, small: None):
    plain, after = stages.embedded(run), stages.embedded(with_wccn(run))
    assert not np.allclose(after["test"].instance["words"], plain["test"].instance["words"])
    assert after["test"].instance["words"].shape == plain["test"].instance["words"].shape
    searcher = open_searcher(with_wccn(run))  # a live search compares the same vectors
    np.testing.assert_allclose(searcher.gallery.instance["words"], after["gallery"].instance["words"], atol=1e-6)
    assert "beyond/instance" in stages.choices(with_wccn(run), after)[1]
    assert "beyond/instance" not in ranking.possible_methods(plain["test"])


def test_without_captions_nothing_is_compared(tmp_path: Path):
    bare = Run(TINY, make_catalog(tmp_path / "shop", 40, 8, 8, 8, captions=False), tmp_path / "report", 0)
    assert beyond.evaluations(bare) == []
