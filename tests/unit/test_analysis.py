"""What labels say, neighbours, single products, popularity, mistakes and attention, against plain loops."""

from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn import TOY, sixteen_pairs

from capture_lib.catalog.lists import find_lists, read_list
from capture_lib.report import figures
from capture_lib.retrieval import analysis, metrics
from capture_lib.retrieval.analysis import SORTS, parse_label
from capture_lib.retrieval.embedding import METHODS, Choice, EmbeddedSet, Ranking, unit
from capture_lib.training import pretrain
from capture_lib.world.planning import SIZES, products_of
from capture_lib.world.wording import BRANDS

HOSTILE = ("_hidden", "$x^$", "<script>", "$", "", "长" * 40)
LABELS = [f"label {n % 7}" for n in range(40)] + ["label alone", "", ""]


def gallery_side(labels: list[str], seed: int = 0) -> EmbeddedSet:
    """A gallery of random vectors."""
    rng, count = np.random.default_rng(seed), len(labels)
    vectors = {name: rng.normal(size=(count, 6)).astype(np.float32)
              for name in ("region_pooled", "text_pooled", "regions", "words")}
    shifted = {name: block + 1 for name, block in vectors.items()}
    return EmbeddedSet([str(n) for n in range(count)], [[label] if label else [] for label in labels], [""] * count,
                np.arange(count), np.zeros(count, int), vectors, shifted)


def rankings_of(count: int, gallery: int, depth: int = 30, seed: int = 0) -> list[Ranking]:
    rng = np.random.default_rng(seed)
    return [Ranking(rng.permutation(gallery)[:depth], np.zeros(depth), np.zeros(depth, int)) for _ in range(count)]


# ------------------------------------------------------------------------------------------- what labels say


def test_labels_of_the_world_say_brand_kind_and_product():
    """Read from the text alone, it is what the world knows of all its products."""
    products, kinds = products_of(SIZES["full"]), {}
    for product in products:
        read = parse_label(product.label)
        assert read.brand == BRANDS[product.brand][0]
        assert read.product + product.variant.name == product.label
        kinds.setdefault(product.kind, set()).add(read.kind)
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set.union(*kinds.values())) == len(kinds) and "" not in set.union(*kinds.values())


@pytest.mark.parametrize(("label", "brand", "kind", "product"), [
    ("Ovelune 无花果润唇膏茉莉", "Ovelune", "lip balm", "Ovelune 无花果润唇膏"),  # not 唇膏, a lipstick
    ("Ovelune 水漾精华液", "Ovelune", "serum", "Ovelune 水漾精华液"),  # not the 水 before
    ("Ovelune  水漾面霜 50ml ", "Ovelune", "cream", "Ovelune 水漾面霜"),
    ("Oat-Milk", "", "", "Oat-Milk"), ("面霜", "", "cream", "面霜"), ("kind 3", "kind", "", "kind 3"),
    ("", "", "", ""),
])
def test_what_a_label_does_not_say_is_unknown(label, brand, kind, product):
    assert parse_label(label) == analysis.Named(brand, kind, product)


def test_most_published_labels_say_brand_and_kind(shared: Path):
    lists = find_lists(shared / "product1m")
    labels = {label for file in lists.values() for named in read_list(file)["labels"] for label in named}
    read = [parse_label(label) for label in labels]
    assert len(labels) == 392 and len({named.brand for named in read}) == 40  # as counted in the published lists
    assert np.mean([named.kind != "" for named in read]) > 0.9


def test_groups_are_left_out_where_labels_tell_too_little():
    assert list(analysis.groups(["Oat-Milk", "Soy-Milk", "Oat-Milk"])) == ["label"]
    assert list(analysis.groups(["A 面霜", "A 晚霜", "B 面霜", ""])) == ["brand"]
    assert analysis.groups(["Oat-Milk", "Soy-Milk"]) == analysis.groups(["", ""]) == analysis.groups([]) == {}
    assert analysis.groups(["A 面霜", "A 面霜", "", "", ""]) == {}
    told = analysis.groups(["A 面霜", "A 面霜", "B 口红", ""])
    assert told["kind"].tolist() == ["cream", "cream", "lipstick", ""]


# ------------------------------------------------------------------------------ the gallery against itself


def test_neighbours_are_the_nearest_others():
    vectors = unit(np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32))
    asked = np.array([3, 17, 29])
    for row, near in zip(asked, analysis.neighbours(vectors, asked, 6), strict=True):
        others = [other for other in np.argsort(-vectors @ vectors[row]) if other != row]
        assert near.tolist() == others[:6]


def test_nobody_is_its_own_neighbour():
    """Not even among photos that all have one vector, nor where there are fewer others than asked for."""
    same = np.repeat(unit(np.ones((1, 4), np.float32)), 25, axis=0)
    for near in (analysis.neighbours(same, np.arange(25), 10), analysis.random_neighbours(25, np.arange(25), 10, 0)):
        assert near.shape == (25, 10) and not (near == np.arange(25)[:, None]).any()
        assert all(len(set(row)) == 10 and set(row) <= set(range(25)) for row in near.tolist())
    assert analysis.neighbours(same[:3], np.arange(3), 10).shape == (3, 2)
    assert analysis.random_neighbours(3, np.arange(3), 10, 0).shape == (3, 2)


def test_random_neighbours_are_any_others():
    near = analysis.random_neighbours(4, np.full(6000, 2), 1, 0)[:, 0]
    share = np.bincount(near, minlength=4) / 6000
    assert share == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.03)


def test_alike_against_a_loop():
    rng, of = np.random.default_rng(0), np.array(["a", "b", "", "a", "a", "b", "c", ""], object)
    asked, near = np.arange(8), rng.integers(0, 8, (8, 5))
    share, by_chance = analysis.alike(near, asked, of)
    known = [row for row in range(8) if of[row]]
    assert share.tolist() == [sum(of[other] == of[row] for other in near[row]) / 5 for row in known]
    assert by_chance.tolist() == [(list(of).count(of[row]) - 1) / 7 for row in known]


@pytest.mark.parametrize("name", ["capture/instance", "image-only", "text-only", "chance"])
def test_single_products_against_the_metrics_of_a_gallery_without_the_asker(name: str):
    choices = {"capture/instance": Choice("product"), "image-only": Choice("regions"), "text-only": Choice("words")}
    gallery = gallery_side(LABELS)
    table = analysis.single_product(gallery, choices, seed=3)[name]
    assert table.index.tolist() == list(range(40))  # "label alone" and the unlabelled are not asked
    for row, figure in table.iterrows():
        if name == "chance":
            near = analysis.random_neighbours(len(LABELS), np.arange(40), 10, 3)[row]
        else:
            vectors = gallery.image if METHODS[name].level == "image" else gallery.instance
            vectors = analysis.read(vectors, choices[name].representation)
            near = np.array([other for other in np.argsort(-vectors @ vectors[row]) if other != row][:10])
        others = LABELS[:row] + LABELS[row + 1:]
        evaluated = metrics.per_query([near - (near > row)], [[LABELS[row]]], others)["standard"]
        assert figure["mAP@10"] == pytest.approx(evaluated["mAP@10"][0])
        assert figure["R@1"] == float(LABELS[near[0]] == LABELS[row])


def test_single_products_of_a_gallery_that_cannot_ask():
    for labels in ([], [""], ["a"], ["a", "b"], ["", ""]):
        assert analysis.single_product(gallery_side(labels), {}, 0) == {}
    assert list(analysis.single_product(gallery_side(["a", "a"]), {}, 0)) == ["chance"]


def test_the_map_keeps_neighbours_and_its_seed():
    rng = np.random.default_rng(0)
    vectors = unit(np.concatenate([rng.normal(size=(30, 5)) + 9, rng.normal(size=(30, 5)) - 9]).astype(np.float32))
    places = analysis.flat_map(vectors, 1)
    centres = places[:30].mean(0), places[30:].mean(0)
    nearer = [np.argmin([np.linalg.norm(place - centre) for centre in centres]) for place in places]
    assert nearer == [0] * 30 + [1] * 30
    assert (analysis.flat_map(vectors, 1) == places).all()
    assert np.isfinite(analysis.flat_map(vectors[:4], 1)).all()


# ------------------------------------------------------------------------- one list for all; every rank


def test_popular_labels_come_first():
    val = [["b", "b"], ["a", "b"], ["c"], ["gone"], ["gone"], ["gone"]]  # b in two queries, a and c in one
    gallery = ["d", "c", "a", "b", "a", "b", "c", "d"]
    assert analysis.popular(val, gallery, 8).tolist() == [3, 5, 1, 6, 2, 4, 0, 7]
    assert analysis.popular(val, gallery, 3).tolist() == [3, 5, 1]
    assert analysis.popular([], ["x", "y", "x"], 9).tolist() == [0, 2, 1]
    assert analysis.popular(val, [], 9).tolist() == []


def test_precision_at_every_rank_against_loops():
    queries = [["label 1"], ["label 2", "label 3", "label 3"], ["nowhere"]]
    rankings = rankings_of(3, len(LABELS))
    rows = [ranking.rows for ranking in rankings]
    found, best = analysis.precision_at(rows, queries, LABELS), analysis.best_precision(queries, LABELS)
    assert found.shape == best.shape == (3, 100)
    for query, labels in enumerate(queries):
        right = sum(label in labels for label in LABELS)
        for k in (1, 2, 10, 30, 31, 100):
            assert found[query, k - 1] == pytest.approx(sum(LABELS[row] in labels for row in rows[query][:k]) / k)
            assert best[query, k - 1] == pytest.approx(min(k, right) / k)
    assert (found <= best).all()
    assert found[:, 9] == pytest.approx(metrics.per_query(rows, queries, LABELS)["standard"]["Prec@10"])


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("hit", "sort"), [
    ("A 白茶面霜旅行装", "right"), ("A 白茶面霜家用装", "another size or shade"),
    ("A 白茶面霜", "another size or shade"), ("A 燕麦面霜旅行装", "same brand and kind"), ("A 白茶口红", "same brand"),
    ("A something", "same brand"), ("B 白茶面霜旅行装", "same kind"), ("面霜", "same kind"), ("B 白茶口红", "neither"),
    ("B something", "unknown"), ("nothing", "unknown"), ("", "unknown"),
])
def test_sorts_of_mistakes(hit: str, sort: str):
    assert SORTS[analysis.sort_of(hit, "A 白茶面霜旅行装")] == sort


GALLERY = ["A 白茶面霜", "A 白茶面霜小", "A 燕麦面霜", "A 口红", "B 面霜", "B 口红", "", "A 白茶面霜", "B 面霜"]
QUERIES = [["A 白茶面霜"], ["B 口红", "A 白茶面霜小"], []]


def test_sorts_of_hits_against_loops():
    rankings = rankings_of(3, len(GALLERY), depth=6)
    counts, held = analysis.sorts_of_hits(rankings, QUERIES, GALLERY, depth=5)
    for query, labels in enumerate(QUERIES):
        sorts = [min((analysis.sort_of(item, label) for label in labels), default=5) for item in GALLERY]
        assert held[query].tolist() == [sorts.count(sort) for sort in range(len(SORTS))]
        first = [sorts[row] for row in rankings[query].rows[:5]]
        assert counts[query].tolist() == [first.count(sort) for sort in range(len(SORTS))]


def test_shares_of_wrong_hits():
    counts, held = np.zeros((2, len(SORTS)), int), np.zeros((2, len(SORTS)), int)
    counts[0, [0, 1, 3]], counts[1, [1, 5]] = (4, 3, 1), (2, 2)
    held[0, [0, 1, 5]], held[1, [1, 5]] = (9, 1, 3), (5, 5)
    shares = analysis.shares_of_wrong(counts, held)
    assert [shares[sort]["value"] for sort in SORTS[1:]] == [5 / 8, 0, 1 / 8, 0, 2 / 8, 0]
    assert shares[SORTS[1]]["chance"] == pytest.approx((4 * 1 / 4 + 4 * 1 / 2) / 8)
    assert all(share["low"] <= share["value"] <= share["high"] for share in shares.values())
    assert sum(share["chance"] for share in shares.values()) == pytest.approx(1)
    assert (shares[SORTS[1]]["low"], shares[SORTS[1]]["high"]) == (2 / 4, 3 / 4)  # all drawn from one of the two
    counts[:, 1:] = 0
    assert analysis.shares_of_wrong(counts, held) is None


def test_confused_pairs_leave_out_what_nobody_can_tell():
    rankings = [Ranking(np.arange(9), np.zeros(9), np.zeros(9, int))] * 2
    table = analysis.confused(rankings, [["A 白茶面霜"], ["A 白茶面霜", "B 口红"]], GALLERY)
    pairs = {(row[0], row[1]): (row[2], row[3]) for row in table.itertuples(index=False)}
    assert pairs["A 白茶面霜", "A 白茶面霜小"] == ("another size or shade", 2)
    assert pairs["A 白茶面霜", "A 燕麦面霜"] == ("same brand and kind", 2)
    assert pairs["A 白茶面霜", "B 面霜"] == ("same kind", 2)  # of the first query alone, both photos
    assert pairs["B 口红", "B 面霜"] == ("same brand", 2)  # nearer than the same kind of another brand
    assert table["hits"].is_monotonic_decreasing
    assert not [pair for pair in pairs if "" in pair or pair[0] == pair[1]]


# -------------------------------------------------------------------------------------------- attention


def test_attention_is_the_last_joint_layers_own(tmp_path: Path):
    pairs = sixteen_pairs(tmp_path)
    model = pretrain.build_model(replace(TOY, joint_layers=2), pairs, 0).eval()
    words, seen = analysis.attention_of(model, pairs, np.array([6]))  # of 3 real regions out of 4
    assert words.shape == (1, 2, TOY.text_length) and seen.shape == (1, 2, 5)
    inputs = pairs.batch(np.array([6]))
    with torch.inference_mode():
        last = model(**inputs, attention=True)["attention"]["joint"][-1][0].mean(0).numpy()
    real = int(inputs["text_mask"].sum() + inputs["region_mask"].sum())
    assert words[0] == pytest.approx(last[[0, TOY.text_length], :TOY.text_length] * real)
    assert seen[0] == pytest.approx(last[[0, TOY.text_length], TOY.text_length:] * real)
    assert words[0].sum(1) + seen[0].sum(1) == pytest.approx([real, real], rel=1e-5)
    shares = analysis.attention_shares(words, seen)[0]
    assert shares.sum(1) == pytest.approx([1, 1])
    assert shares[1] * real == pytest.approx([words[0, 1].sum(), seen[0, 1, 1:].sum(), seen[0, 1, 0]])
    assert not words[0][:, inputs["text_mask"][0] == 0].any() and not seen[0, :, 4].any()


def test_an_instance_looks_at_its_own_region(tmp_path: Path):
    pairs = sixteen_pairs(tmp_path)
    model = pretrain.build_model(TOY, pairs, 0).eval()
    _, seen = analysis.attention_of(model, pairs, np.array([6, 6]), np.array([0, 2]))
    assert (seen > 0).any(1).tolist() == [[True, True, False, False, False], [True, False, False, True, False]]


# ---------------------------------------------------------------------------------------------- figures


def test_pictures_take_any_text_of_a_catalog():
    figures.setup()
    names = np.array(HOSTILE * 2, object)
    figure, ax = plt.subplots()
    figures.points(np.random.default_rng(0).normal(size=(len(names), 2)), names, ax)
    figure.savefig(BytesIO(), format="png")
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown[0] == "others" and len(shown) == 1 + len(set(HOSTILE) - {""})
    plt.close(figure)


def test_points_beyond_the_eight_largest_groups_are_grey():
    names = [f"group {n}" for n in range(10) for _ in range(10 - n)]
    figure, ax = plt.subplots()
    figures.points(np.zeros((len(names), 2)), names, ax)
    counts = Counter(len(drawn.get_offsets()) for drawn in ax.collections)
    assert counts == Counter([3, *range(3, 11)])  # groups 8 and 9 together, then those of 10 to 3 points
    plt.close(figure)


def test_a_heat_table_escapes_and_breaks():
    page = figures.heat_table(np.array([[1.0, 2.0, 0.5]]), ["<b>"], ["<script>", "b", "c"], most=2).data
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert page.count("<table") == 2 and ">2.0" in page


def test_weighted_boxes_show_the_heaviest_in_front():
    photo = np.full((40, 60, 3), 200, np.uint8)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [0.1, 0.2, 0.8, 0.9]])
    drawn = figures.weighted_boxes(photo, boxes, np.array([3.0, 0.3]), top=3.0, told=0)
    assert drawn.shape == (80, 120, 3)
    heavy = np.array(figures.shade(1.0)[:3]) * 255
    assert np.abs(drawn[40, 12] - heavy).max() < 3
    assert (figures.weighted_boxes(photo, boxes, np.array([0.3, 0.3]), top=3.0, told=2)
            == figures.weighted_boxes(photo, boxes, np.array([0.3, 0.3]), top=3.0, told=0)).all()  # pale: not told
