"""The index, CombMAX, rankings, the choice on val: against plain loops."""

import faiss
import numpy as np
import pandas as pd
import pytest
from drawn import TINY, make_catalog
from embedded import gallery_set, query_set, random_set

from capture_lib.experiments import evaluation
from capture_lib.experiments.run import Run
from capture_lib.retrieval import metrics, ranking
from capture_lib.retrieval.embedding import represent, unit
from capture_lib.retrieval.ranking import METHODS, Method


def random_units(count: int, seed: int = 0, width: int = 5) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_search_is_exact(depth):
    gallery, queries = random_units(40), random_units(6, 1)
    scores, rows = ranking.search_index(ranking.build_index(gallery), queries, depth)
    cosines = queries @ gallery.T
    assert rows.shape == scores.shape == (6, min(depth, 40))
    assert rows.tolist() == np.argsort(-cosines, axis=1)[:, :depth].tolist()
    assert scores == pytest.approx(-np.sort(-cosines, axis=1)[:, :depth], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_gallery_may_grow_and_shrink(seed):
    """After a change, a search gives what an index of the items that are left gives."""
    rng = np.random.default_rng(seed)
    items = dict(zip(range(100, 130), random_units(30, seed), strict=True))
    index = ranking.build_index(np.array(list(items.values())), np.array(list(items)))
    more = random_units(8, seed + 50)
    index.add_with_ids(more, np.arange(8))
    items.update(enumerate(more))
    removed = rng.choice(list(items), 20, replace=False)
    index.remove_ids(removed)
    for number in removed:
        del items[number]
    queries = random_units(4, seed + 90)
    scores, ids = ranking.search_index(index, queries, 50)
    for query, found, values in zip(queries, ids, scores, strict=True):
        expected = sorted(items, key=lambda number: -float(items[number] @ query))  # noqa: B023
        assert found.tolist() == expected
        assert values == pytest.approx([items[number] @ query for number in expected], abs=1e-6)


def test_the_index_lies_on_the_gpus_that_faiss_sees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: ("on the GPUs", index.ntotal))
    assert ranking.build_index(random_units(7)) == ("on the GPUs", 7)


def loop_comb_max(rows: np.ndarray, scores: np.ndarray, depth: int) -> list[tuple]:
    """All hits by score, first those of the first instance; each gallery row at its first place only."""
    hits = [(i, rows[i, place], scores[i, place]) for i in range(len(rows)) for place in range(rows.shape[1])]
    merged, seen = [], set()
    for instance, row, score in sorted(hits, key=lambda hit: -hit[2]):
        if row not in seen:
            seen.add(row)
            merged.append((row, score, instance))
    return merged[:depth]


@pytest.mark.parametrize(("instances", "depth"), [(1, 8), (2, 8), (3, 5), (5, 100)])
def test_comb_max_is_merging_by_hand(instances, depth):
    rng = np.random.default_rng(instances)
    rows = np.array([rng.permutation(12)[:8] for _ in range(instances)])
    for values in (rng.permutation(instances * 8) / 100, rng.integers(0, 5, instances * 8) / 5):  # apart, tied
        scores = -np.sort(-values.reshape(instances, 8), axis=1)
        merged = ranking.comb_max(rows, scores, depth)
        hits = list(zip(merged.rows, merged.scores, merged.instances, strict=True))
        assert hits == loop_comb_max(rows, scores, depth)


def test_lists_without_hits_merge_to_none():
    assert ranking.comb_max(np.zeros((2, 0), np.int64), np.zeros((2, 0)), 10).rows.shape == (0,)


@pytest.mark.parametrize("depth", [40, 9])
def test_instance_rankings_are_the_best_cosine_of_any_instance(depth):
    queries, gallery = query_set(), gallery_set()
    rankings = ranking.rank(queries, gallery, "instance", "joint", depth)
    cosines = represent(queries.instance, "joint") @ represent(gallery.instance, "joint").T
    assert len(rankings) == len(queries.ids)
    for i, found in enumerate(rankings):
        own = cosines[queries.owners == i]  # (k, G)
        assert found.rows.tolist() == np.argsort(-own.max(0), kind="stable")[:depth].tolist()
        assert found.scores == pytest.approx(-np.sort(-own.max(0))[:depth], abs=1e-6)
        assert found.instances.tolist() == own.argmax(0)[found.rows].tolist()


def test_image_rankings_compare_whole_photos():
    queries, gallery = query_set(), gallery_set()
    cosines = represent(queries.image, "product") @ represent(gallery.image, "product").T
    rankings = ranking.rank(queries, gallery, "image", "product", depth=7)
    assert [found.rows.tolist() for found in rankings] == np.argsort(-cosines, axis=1)[:, :7].tolist()
    assert not any(found.instances.any() for found in rankings)


def test_a_gallery_smaller_than_the_depth_is_ranked_whole():
    rankings = ranking.rank(query_set(), gallery_set(5), "instance", "regions", depth=100)
    assert all(sorted(found.rows) == list(range(5)) for found in rankings)


def test_scores_are_those_of_the_metrics():
    queries, gallery = query_set(), gallery_set()
    rankings = ranking.rank(queries, gallery, "instance", "regions")
    expected = metrics.per_query([found.rows for found in rankings], queries.labels, gallery.labels)
    pd.testing.assert_frame_equal(ranking.score(rankings, queries, gallery), expected)


def test_queries_without_labels_are_not_scored_and_the_others_keep_their_numbers():
    queries, gallery = query_set(), gallery_set()
    rankings = ranking.rank(queries, gallery, "instance", "regions")
    every = ranking.score(rankings, queries, gallery)
    queries.labels[0] = queries.labels[4] = []
    scores = ranking.score(rankings, queries, gallery)
    assert scores.index.tolist() == [1, 2, 3, 5, 6]
    pd.testing.assert_frame_equal(scores, every.loc[scores.index])
    _, tried = ranking.choose(Method("instance", ("regions",)), queries, gallery)
    assert tried["regions"] == scores["standard", "mAP@10"].mean()


def test_evaluation_keeps_the_figures_of_labelled_queries_and_their_number(tmp_path):
    val, test, gallery = query_set(6, seed=2), query_set(), gallery_set()
    test.labels[2] = val.labels[0] = val.labels[1] = []
    rankings = {"chance": evaluation.chance(test, gallery, 10, 0)}
    sets = {"val": val, "test": test, "gallery": gallery}
    run = Run(TINY, make_catalog(tmp_path / "shop", train=1, gallery=0, val=0, test=0), tmp_path, 0)
    evaluation.evaluate(run, tmp_path, sets, {"image-only": METHODS["image-only"]}, rankings)
    assert not (tmp_path / "boxes.parquet").exists()  # the catalog knows no true boxes of test
    chosen = evaluation.read_chosen(tmp_path)["image-only"]
    assert (chosen["queries"], chosen["labelled"]) == (6, 4)
    table = pd.read_parquet(tmp_path / "scores.parquet")
    for name, found in rankings.items():
        scores = ranking.score(found, test, gallery)
        assert scores.index.tolist() == [0, 1, 3, 4, 5, 6]
        pd.testing.assert_frame_equal(table.loc[name], scores)


def test_methods_are_possible_where_their_vectors_are():
    queries = query_set()
    assert ranking.possible(METHODS, queries) == METHODS
    queries.image.clear()
    del queries.instance["words"]
    assert set(ranking.possible(METHODS, queries)) == {
        "capture/instance", "capture-raw-product/instance", "capture-chosen/instance", "image-only",
        "foundation-image", "foundation-fusion", "capture-beside-foundation/instance"}


def test_val_chooses_the_representation_that_knows_the_labels():
    queries, gallery = query_set(24), gallery_set()
    signs = np.eye(8, dtype=np.float32)
    gallery.instance["region_contrastive"] = signs[[i % 8 for i in range(40)]]
    asked = [queries.labels[owner][region % 2] for owner, region in zip(queries.owners, queries.regions, strict=True)]
    queries.instance["region_contrastive"] = signs[[int(label.split()[1]) for label in asked]]
    method = Method("instance", ("product", "region_contrastive", "joint"))
    choice, tried = ranking.choose(method, queries, gallery)
    assert choice == "region_contrastive" and tuple(tried) == method.representations
    for name, figure in tried.items():
        rankings = ranking.rank(queries, gallery, "instance", name)
        assert figure == ranking.score(rankings, queries, gallery)["standard", "mAP@10"].mean()
    assert ranking.choose(method, None, gallery) == ("product", {})


def test_chance_is_a_random_order_that_follows_its_seed():
    queries, gallery = query_set(60), gallery_set()
    first, again, other = (evaluation.chance(queries, gallery, 10, seed) for seed in (0, 0, 1))
    assert all(len(set(found.rows)) == len(found.rows) == 10 for found in first)
    order = [[found.rows.tolist() for found in rankings] for rankings in (first, again, other)]
    assert order[0] == order[1] != order[2]
    hit = np.bincount(np.concatenate([found.rows for found in first]), minlength=40)
    assert hit.min() > 0 and hit.max() < 40  # 15 expected at each


def test_popular_labels_come_first():
    def popularity(val: list[list[str]], gallery: list[str], depth: int) -> list[int]:
        queries, items = random_set(val), random_set([label.split("+") for label in gallery])
        return evaluation.popularity(queries, items, depth).rows.tolist()

    val = [["b", "b"], ["a", "b"], ["c"], ["gone"], ["gone"], ["gone"]]  # b in two queries, a and c in one
    gallery = ["d", "c", "a", "b", "a", "b", "c", "d"]
    assert popularity(val, gallery, 8) == [3, 5, 1, 6, 2, 4, 0, 7]
    assert popularity(val, gallery, 3) == [3, 5, 1]
    assert popularity([["gone"]], ["x", "y", "x"], 9) == [0, 2, 1]
    assert popularity(val, ["d+c", "gift+b", "a+d", "b", "a"], 9) == [1, 3, 0, 2, 4]  # by the label most asked for
