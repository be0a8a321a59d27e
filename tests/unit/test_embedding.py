"""Overlaps, instances, search, merging and ranking against plain loops; readings against cosines written out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import random_store

from capture_lib.model.capture import CaptureSettings
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import metrics
from capture_lib.retrieval.embedding import Choice, EmbeddedSet, Method, RetrievalSettings
from capture_lib.training import batches, pretrain

SETTINGS = RetrievalSettings()
BLOCKS = ("text_pooled", "region_pooled", "text_contrastive", "region_contrastive", "regions", "words")


def make_side(labels: list[list[str]], instances: int = 1, seed: int = 0, width: int = 6) -> EmbeddedSet:
    """A side of random vectors; query i has 1 + i % `instances` instances."""
    rng = np.random.default_rng(seed)
    counts = 1 + np.arange(len(labels)) % instances
    owners = np.repeat(np.arange(len(labels)), counts)
    image = {name: rng.normal(size=(len(labels), width)).astype(np.float32) for name in BLOCKS}
    instance = {name: rng.normal(size=(len(owners), width)).astype(np.float32) for name in BLOCKS}
    ids = [f"{seed}-{i}" for i in range(len(labels))]
    regions = np.concatenate([np.arange(count) for count in counts])
    return EmbeddedSet(ids, labels, [f"caption {i}" for i in ids], owners, regions, image, instance)


def gallery_side(count: int = 40, seed: int = 9) -> EmbeddedSet:
    return make_side([[f"label {i % 8}"] for i in range(count)], seed=seed)


def query_side(count: int = 7, seed: int = 1) -> EmbeddedSet:
    return make_side([[f"label {i % 8}", f"label {(i + 3) % 8}"] for i in range(count)], instances=4, seed=seed)


# --------------------------------------------------------------------------------------------- instances


def loop_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 0.7, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.4, (count, 2))], 1)


def test_box_overlap_is_the_iou():
    boxes = np.concatenate([random_boxes(np.random.default_rng(0), 30), [[0, 0, 1, 1], [0.9, 0.9, 1, 1]]])
    for box in boxes:
        assert retrieval.box_overlap(box, boxes) == pytest.approx([loop_overlap(box, other) for other in boxes])
    assert retrieval.box_overlap(boxes[0], boxes[:0]).shape == (0,)
    assert retrieval.box_overlap(np.zeros(4), np.zeros((1, 4))).tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_instances_are_the_best_proposals_that_are_apart(seed):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 12), -np.sort(-rng.random(12))
    settings = replace(SETTINGS, max_instances=1 + seed % 6, min_score=0.3, min_odds=0.2, nms_iou=0.2)
    expected = []
    for i in range(12):
        apart = all(loop_overlap(boxes[i], boxes[j]) <= 0.2 for j in expected)
        likely = scores[i] / (1 - scores[i]) >= 0.2 * scores[0] / (1 - scores[0])
        if apart and likely and scores[0] >= 0.3 and len(expected) < settings.max_instances:
            expected.append(i)
    assert retrieval.find_instances(boxes, scores, settings) == expected


def test_a_photo_without_a_good_proposal_has_no_instance():
    assert retrieval.find_instances(np.zeros((0, 4)), np.zeros(0), SETTINGS) == []
    poor, good = replace(SETTINGS, min_score=0.5), replace(SETTINGS, min_score=0.01)
    assert retrieval.find_instances(np.array([[0, 0, 1, 1.0]]), np.array([0.4]), poor) == []
    assert retrieval.find_instances(np.array([[0, 0, 1, 1.0]]), np.array([0.4]), good) == [0]
    apart = np.array([[0, 0, 0.2, 0.2], [0.4, 0, 0.6, 0.2], [0.7, 0, 0.9, 0.2]])
    assert retrieval.find_instances(apart, np.array([1.0, 1.0, 0.9]), SETTINGS) == [0, 1]  # no division by zero


def test_a_query_without_an_instance_is_asked_by_its_best_proposal():
    owners, regions = retrieval.instances_of(random_store(4, regions=4), np.arange(4), replace(SETTINGS, min_score=2))
    assert owners.tolist() == [0, 1, 2, 3] and not regions.any()


def test_instances_know_their_photo():
    store = random_store(9, regions=4)
    rows = np.array([7, 2, 2, 0])
    settings = replace(SETTINGS, min_score=0.0, min_odds=0.0, nms_iou=0.9)
    owners, regions = retrieval.instances_of(store, rows, settings)
    found = [regions[owners == i].tolist() for i in range(4)]
    assert found == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2], [0]]  # photo i has 1 + i % 4 regions
    assert owners.tolist() == sorted(owners) and regions.dtype == np.int64


# ----------------------------------------------------------------------------------------------- vectors


def test_words_bring_like_captions_together():
    kinds = [f"{brand} {kind}" for brand in ("abc", "品牌") for kind in ("精华液", "口红", "serum")]
    captions = [f"{kind} {n}ml" for kind in kinds for n in range(6)]
    words = retrieval.Words(captions, replace(SETTINGS, text_dimensions=8), seed=0)
    vectors = words.vectors(["abc 精华液 3ml", "abc 精华液 4ml", "品牌 serum 2ml", "☂", ""])
    assert vectors.shape == (5, 8) and vectors.dtype == np.float32
    unit = retrieval.unit(vectors)
    assert unit[0] @ unit[1] > 0.5 > unit[0] @ unit[2]
    assert not vectors[3:].any()
    again = retrieval.Words(captions, replace(SETTINGS, text_dimensions=8), seed=0).vectors(captions)
    assert np.array_equal(again, words.vectors(captions))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A table of 7 samples, their pairs and a small random model."""
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in (6, 1, 3, 0, 2, 5, 4)],
                          "caption": [f"kind{i} 色 {i}" for i in range(7)],
                          "labels": [[f"label {i}"] for i in range(7)]})
    settings = batches.BatchSettings(text_length=8)
    tokenizer = batches.make_tokenizer(settings, table["caption"], tmp_path_factory.mktemp("tokenizer"))
    pairs = batches.make_pairs(table, random_store(8), tokenizer, settings)
    sizes = CaptureSettings(text_length=8, max_positions=32, width=16, text_layers=1, text_heads=2, text_ffn=32,
                            visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1, cross_heads=2,
                            cross_width=16, joint_layers=1, joint_heads=2, output=12)
    return table, pairs, pretrain.build_model(sizes, pairs, seed=0).eval()


def test_embedding_in_batches_is_embedding_one_by_one(world):
    _, pairs, model = world
    chosen, regions = np.array([4, 0, 2, 2, 6]), np.array([0, 2, 3, 1, 0])
    for asked in (None, regions):
        together = retrieval.embed(model, pairs, chosen, asked, batch=2)
        for i, pair in enumerate(chosen):
            with torch.inference_mode():
                alone = model(**pairs.batch(chosen[i:i + 1], None if asked is None else asked[i:i + 1]))
            for name, vectors in together.items():
                assert vectors.shape == (5, 12) and vectors[i] == pytest.approx(alone[name][0].numpy(), abs=1e-5), pair
    assert not np.allclose(together["region_pooled"][2], together["region_pooled"][3])  # two regions of one photo


def test_a_side_of_queries_and_one_of_single_products(world):
    table, pairs, model = world
    settings = replace(SETTINGS, min_score=0.0, min_odds=0.0, nms_iou=0.9, text_dimensions=3)
    words = retrieval.Words(list(table["caption"]) * 2, settings, 0)
    queries = retrieval.embed_samples(table, pairs, model, words, settings, single=False)
    gallery = retrieval.embed_samples(table, pairs, model, words, settings, single=True)
    assert queries.ids == gallery.ids == list(table["sample_id"]) and queries.labels[2] == ["label 2"]
    assert [(queries.owners == i).sum() for i in range(7)] == [3, 2, 4, 1, 3, 2, 1]
    assert gallery.owners.tolist() == list(range(7)) and not gallery.regions.any()
    assert set(queries.image) == set(BLOCKS) - {"regions"} and set(queries.instance) == set(BLOCKS)
    for side in (queries, gallery):
        for i, (owner, region) in enumerate(zip(side.owners, side.regions, strict=True)):
            feature = pairs.store.features[pairs.rows[owner], region].astype(np.float32)
            assert np.array_equal(side.instance["regions"][i], feature) and feature.any()
            assert np.array_equal(side.instance["words"][i], side.image["words"][owner])
        for name, vectors in retrieval.embed(model, pairs, side.owners, side.regions).items():
            assert np.array_equal(side.instance[name], vectors)


def test_without_a_model_or_words_their_blocks_and_methods_are_missing(world):
    table, pairs, _ = world
    bare = retrieval.embed_samples(table, pairs, None, None, SETTINGS, single=False)
    assert not bare.image and set(bare.instance) == {"regions"}
    assert set(retrieval.possible_methods(bare)) == {"image-only"}
    assert set(retrieval.possible_methods(query_side())) >= {"capture/instance", "capture/image", "image-only",
                                                             "text-only", "late-fusion"}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (n, m) written out."""
    return np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in b] for x in a.astype(float)])


def test_readings_are_the_cosines_that_they_claim():
    a, b = query_side().instance, gallery_side().instance
    both = {name: cosine(a[name], b[name]) for name in BLOCKS}
    joint = (both["region_pooled"] + both["text_pooled"]) / 2
    contrastive = (both["region_contrastive"] + both["text_contrastive"]) / 2
    expected = {
        "product": cosine(retrieval.unit(a["region_pooled"]) * retrieval.unit(a["text_pooled"]),
                          retrieval.unit(b["region_pooled"]) * retrieval.unit(b["text_pooled"])),
        "joint": joint, "contrastive": contrastive, "all": (joint + contrastive) / 2,
        "joint image": both["region_pooled"], "contrastive image": both["region_contrastive"],
        "joint text": both["text_pooled"], "contrastive text": both["text_contrastive"],
        "regions": both["regions"], "words": both["words"],
        "fusion 0.2": 0.2 * both["regions"] + 0.8 * both["words"],
        "fusion 0.5": (both["regions"] + both["words"]) / 2,
        "fusion 0.8": 0.8 * both["regions"] + 0.2 * both["words"],
    }
    expected["product, contrastive"] = (expected["product"] + 2 * contrastive) / 3  # three blocks, each of length 1
    for name, cosines in expected.items():
        found = retrieval.read(a, name) @ retrieval.read(b, name).T
        assert found == pytest.approx(cosines, abs=1e-5), name


def test_every_reading_of_every_method_gives_unit_vectors():
    for method in retrieval.METHODS.values():
        for representation in method.representations:
            vectors = retrieval.read(query_side().instance, representation)
            assert vectors.dtype == np.float32 and np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def test_a_zero_vector_stays_zero_and_finite():
    vectors = {"region_pooled": np.zeros((2, 4)), "text_pooled": np.ones((2, 4))}
    assert not retrieval.read(vectors, "product").any()
    assert np.isfinite(retrieval.read(vectors, "joint")).all()


# ---------------------------------------------------------------------------------------------- rankings


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_search_is_exact(depth):
    rng = np.random.default_rng(0)
    gallery, queries = (retrieval.unit(rng.normal(size=(n, 5))) for n in (40, 6))
    scores, rows = retrieval.search(gallery, queries, depth)
    cosines = queries @ gallery.T
    assert rows.shape == scores.shape == (6, min(depth, 40))
    assert rows.tolist() == np.argsort(-cosines, axis=1)[:, :depth].tolist()
    assert scores == pytest.approx(-np.sort(-cosines, axis=1)[:, :depth], abs=1e-6)


def loop_merge(rows: np.ndarray, scores: np.ndarray, how: str, depth: int) -> list[tuple]:
    """Merging by hand: hits in order, each gallery row at its first place only."""
    hits = [(i, place, rows[i, place], scores[i, place]) for i in range(len(rows)) for place in range(rows.shape[1])]
    keys = {"score": lambda hit: -hit[3], "yielding": lambda hit: 0.002 * hit[1] - hit[3]}
    hits.sort(key=keys.get(how, lambda hit: (hit[1], -hit[3])))
    kept, seen = [], set()
    for instance, _, row, score in loop_turns(hits) if how == "balanced" else hits:
        if row not in seen:
            seen.add(row)
            kept.append((row, score, instance))
    return kept[:depth]


def loop_turns(hits: list[tuple]) -> list[tuple]:
    """Turns by hand: those who have not brought a hit in this turn offer their best new one; the best is taken."""
    brought: list[tuple] = []
    while True:
        waiting, new = {hit[0] for hit in hits}, len(brought)
        while True:
            left = [hit for hit in hits if hit[0] in waiting and hit[2] not in {other[2] for other in brought}]
            if not left:
                break
            best = max(left, key=lambda hit: hit[3])
            waiting.remove(best[0])
            brought.append(best)
        if len(brought) == new:
            return brought


@pytest.mark.parametrize("how", [*retrieval.MERGES, retrieval.YIELDING])
@pytest.mark.parametrize(("instances", "depth"), [(1, 8), (2, 8), (3, 5), (5, 100)])
def test_merging_is_merging_by_hand(how, instances, depth):
    rng = np.random.default_rng(instances)
    rows = np.array([rng.permutation(12)[:8] for _ in range(instances)])
    scores = -np.sort(-rng.permutation(instances * 8).reshape(instances, 8) / 100, axis=1)  # no two alike
    merged = retrieval.merge(rows, scores, how, depth)
    assert list(zip(merged.rows, merged.scores, merged.instances, strict=True)) == loop_merge(rows, scores, how, depth)
    assert len(set(merged.rows)) == len(merged.rows)


@pytest.mark.parametrize("seed", range(30))
def test_balanced_turns_are_fair(seed):
    """No hit twice; shares within one while lists last; the order of the instances is of no account."""
    rng = np.random.default_rng(seed)
    instances, length, depth = (int(rng.integers(1, top)) for top in (7, 30, 40))
    rows = np.array([rng.permutation(30 + seed)[:length] for _ in range(instances)])
    scores = -np.sort(-rng.permutation(instances * length).reshape(instances, length) / 500, axis=1)
    merged = retrieval.merge(rows, scores, "balanced", depth)
    assert len(set(merged.rows)) == len(merged.rows) == min(depth, len(np.unique(rows)))
    for end in range(1, len(merged.rows) + 1):
        shares = np.bincount(merged.instances[:end], minlength=instances)
        left = [i for i in range(instances) if not set(rows[i]) <= set(merged.rows[:end])]
        assert not left or shares.max() - shares[left].min() <= 1
    shuffled = rng.permutation(instances)
    other = retrieval.merge(rows[shuffled], scores[shuffled], "balanced", depth)
    assert other.rows.tolist() == merged.rows.tolist() and other.scores.tolist() == merged.scores.tolist()
    assert shuffled[other.instances].tolist() == merged.instances.tolist()


def test_balanced_gives_a_turn_that_rounds_waste():
    twins = np.array([[1, 2, 3], [1, 2, 3], [7, 8, 9]])  # two boxes of one product, and another product
    sure = np.array([[0.9, 0.8, 0.7], [0.89, 0.79, 0.69], [0.5, 0.4, 0.3]])
    found = {how: retrieval.merge(twins, sure, how, 10).rows.tolist() for how in retrieval.MERGES}
    assert found == {"score": [1, 2, 3, 7, 8, 9], "rounds": [1, 7, 2, 8, 3, 9], "balanced": [1, 2, 7, 3, 8, 9]}


def test_tied_instances_take_turns_in_their_order():
    merged = retrieval.merge(np.array([[1, 2], [3, 4]]), np.array([[0.5, 0.5], [0.5, 0.5]]), "balanced", 10)
    assert merged.rows.tolist() == [1, 3, 2, 4] and merged.instances.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("how", retrieval.MERGES)
def test_lists_without_hits_merge_to_none(how):
    assert retrieval.merge(np.zeros((2, 0), np.int64), np.zeros((2, 0)), how, 10).rows.shape == (0,)


def test_an_instance_that_brought_many_hits_yields_to_one_that_brought_few():
    rows, scores = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[0.900, 0.8995, 0.899], [0.8985, 0.80, 0.79]])
    found = {how: retrieval.merge(rows, scores, how, 4) for how in ("score", "yielding")}
    assert found["score"].rows.tolist() == [0, 1, 2, 3] and found["yielding"].rows.tolist() == [0, 3, 1, 2]
    assert found["yielding"].scores.tolist() == [0.900, 0.8985, 0.8995, 0.899]  # what is shown stays the cosine


def test_smoothing_brings_a_product_s_photos_together_and_keeps_lengths():
    rng = np.random.default_rng(0)
    product = np.repeat(np.arange(12), 8)
    centres = rng.normal(size=(12, 16))
    vectors, asking = (retrieval.unit(centres[product] + rng.normal(size=(96, 16))) for _ in range(2))
    after = retrieval.smooth(vectors)
    assert after == pytest.approx(retrieval.unit(after), abs=1e-6) and after.dtype == np.float32
    right = [(product[np.argsort(-asking @ held.T)[:, :8]] == product[:, None]).mean() for held in (vectors, after)]
    assert right[1] > right[0] + 0.03
    assert retrieval.smooth(vectors, neighbours=1) == pytest.approx(vectors, abs=1e-6)
    assert retrieval.smooth(vectors[:2]).shape == (2, 16)  # fewer than the neighbours


@pytest.mark.parametrize("depth", [40, 9])
def test_instance_rankings_are_the_best_cosine_of_any_instance(depth):
    queries, gallery = query_side(), gallery_side()
    rankings = retrieval.rank(queries, gallery, "instance", Choice("joint"), depth)
    cosines = retrieval.read(queries.instance, "joint") @ retrieval.read(gallery.instance, "joint").T
    assert len(rankings) == len(queries.ids)
    for i, ranking in enumerate(rankings):
        own = cosines[queries.owners == i]  # (k, G)
        assert ranking.rows.tolist() == np.argsort(-own.max(0), kind="stable")[:depth].tolist()
        assert ranking.scores == pytest.approx(-np.sort(-own.max(0))[:depth], abs=1e-6)
        assert ranking.instances.tolist() == own.argmax(0)[ranking.rows].tolist()


def test_image_rankings_compare_whole_photos():
    queries, gallery = query_side(), gallery_side()
    cosines = retrieval.read(queries.image, "product") @ retrieval.read(gallery.image, "product").T
    rankings = retrieval.rank(queries, gallery, "image", Choice("product"), depth=7)
    assert [ranking.rows.tolist() for ranking in rankings] == np.argsort(-cosines, axis=1)[:, :7].tolist()
    assert not any(ranking.instances.any() for ranking in rankings)


def test_a_gallery_smaller_than_the_depth_is_ranked_whole():
    rankings = retrieval.rank(query_side(), gallery_side(5), "instance", Choice("regions"), depth=100)
    assert all(sorted(ranking.rows) == list(range(5)) for ranking in rankings)


def test_chance_is_a_random_order_that_follows_its_seed():
    queries, gallery = query_side(60), gallery_side()
    first, again, other = (retrieval.chance(queries, gallery, 10, seed) for seed in (0, 0, 1))
    assert all(len(set(ranking.rows)) == len(ranking.rows) == 10 for ranking in first)
    order = [[ranking.rows.tolist() for ranking in rankings] for rankings in (first, again, other)]
    assert order[0] == order[1] != order[2]
    hit = np.bincount(np.concatenate([ranking.rows for ranking in first]), minlength=40)
    assert hit.min() > 0 and hit.max() < 40  # 15 expected at each


def test_scores_are_those_of_the_metrics():
    queries, gallery = query_side(), gallery_side()
    rankings = retrieval.rank(queries, gallery, "instance", Choice("regions"))
    expected = metrics.per_query([ranking.rows for ranking in rankings], queries.labels,
                                 [label for label, in gallery.labels])
    pd.testing.assert_frame_equal(retrieval.score(rankings, queries, gallery), expected)


def test_val_chooses_the_reading_that_knows_the_labels():
    queries, gallery = query_side(24), gallery_side()
    signs = np.eye(8, dtype=np.float32)
    gallery.instance["region_contrastive"] = signs[[i % 8 for i in range(40)]]
    asked = [queries.labels[owner][region % 2] for owner, region in zip(queries.owners, queries.regions, strict=True)]
    queries.instance["region_contrastive"] = signs[[int(label.split()[1]) for label in asked]]
    method = Method("instance", ("product", "contrastive image", "joint"))
    choice, tried = retrieval.choose(method, queries, gallery)
    assert choice.representation == "contrastive image"
    assert set(tried) == {f"{representation}, {how}" for representation in method.representations for how in retrieval.MERGES}
    assert max(tried, key=tried.get) == f"{choice.representation}, {choice.merge}"
    for name, figure in tried.items():
        representation, how = name.split(", ")
        rankings = retrieval.rank(queries, gallery, "instance", Choice(representation, how))
        assert figure == retrieval.score(rankings, queries, gallery)["standard", "mAP@10"].mean()
    assert retrieval.choose(method, None, gallery) == (Choice("product", "score"), {})


def test_hits_are_kept_with_their_scores_and_instances(tmp_path: Path):
    queries, gallery = query_side(), gallery_side()
    rankings = retrieval.rank(queries, gallery, "instance", Choice("joint"), depth=6)
    retrieval.write_hits(tmp_path / "hits.parquet", queries, gallery, rankings)
    table = pd.read_parquet(tmp_path / "hits.parquet")
    assert len(table) == 7 * 6 and table["rank"].tolist() == [1, 2, 3, 4, 5, 6] * 7
    second = table[table["query_id"] == queries.ids[3]]
    assert second["gallery_id"].tolist() == [gallery.ids[row] for row in rankings[3].rows]
    assert second["score"].to_numpy() == pytest.approx(rankings[3].scores)
    assert second["instance"].tolist() == rankings[3].instances.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["hits.parquet"]
