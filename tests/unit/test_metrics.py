"""The metrics against plain loops and scikit-learn, and rankings worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from capture_lib.retrieval import metrics

# ---------------------------------------------------------------------------------------- the naive oracles


def loop_released(ranking, asked, gallery, n):
    """One query by the released rules; an error leaves it with the figures it has by then."""
    figures = {"mAP": 0.0, "mAR": 0.0, "Prec": 0.0}
    held = dict(enumerate(gallery))
    rows = {label: [row for row in held if label in held[row]] for labels in gallery for label in labels}
    try:
        positives = [row for label in asked for row in rows[label]]
        k = min(n, len(positives), len(ranking))
        hits = [place for place, row in enumerate(ranking[:k], start=1) if row in positives]
        precision = len(hits) / k
        precisions = [number / place for number, place in enumerate(hits, start=1)]
        figures.update(Prec=precision, mAP=sum(precisions) / len(hits) if hits else 0.0)
        found = [label for row in ranking[:n] for label in held[row]]
        expected = {label: min(asked.count(label) * int(n / len(asked)), len(rows[label])) for label in asked}
        recalls = [min(found.count(label), expected[label]) / expected[label] for label in set(asked)]
        figures["mAR"] = sum(recalls) / len(recalls)
    except (KeyError, ZeroDivisionError):
        pass
    return figures


def loop_standard(ranking, asked, gallery, n):
    """One query by the formulas."""
    held = [gallery[row] if row >= 0 else [] for row in ranking[:n]]
    positives = sum(any(label in asked for label in labels) for labels in gallery)
    hits, precisions = 0, 0.0
    for place, labels in enumerate(held, start=1):
        if any(label in asked for label in labels):
            hits += 1
            precisions += hits / place
    recalls = []
    for label in set(asked):
        expected = min(round(asked.count(label) / len(asked) * n), sum(label in labels for labels in gallery))
        recalls.append(min(sum(label in labels for labels in held) / expected, 1) if expected else 0.0)
    mean_recall = sum(recalls) / len(recalls) if recalls else 0.0
    return {"mAP": precisions / min(n, positives) if positives else 0.0, "mAR": mean_recall, "Prec": hits / n}


def loop(rankings, query_labels, gallery):
    """All queries, in the table that `per_query` returns."""
    columns = {}
    for definition, score in (("released", loop_released), ("standard", loop_standard)):
        for figure in metrics.FIGURES:
            for n in metrics.CUTOFFS:
                columns[definition, f"{figure}@{n}"] = [
                    score(list(ranking), asked, gallery, n)[figure]
                    for ranking, asked in zip(rankings, query_labels, strict=True)
                ]
    return pd.DataFrame(columns)


def random_task(seed, queries=40, items=140, labels=25, strange_labels=0, strange_ids=0.0, several=False):
    """Rankings of every kind: repeated labels, up to 14, short and empty lists, unknown labels and ids.

    Gallery items have one label each, or `several`: none to four, of which one is frequent.
    """
    rng = np.random.default_rng(seed)
    counts = rng.choice([0, 1, 1, 2, 3, 4], items) if several else np.ones(items, int)
    gallery = [[f"brand{c % 4} product{c}" for c in rng.permutation(labels)[:count] ** 2 // labels] for count in counts]
    gallery = [list(dict.fromkeys(held)) for held in gallery]
    names = sorted(set().union(*gallery)) + [f"nowhere {i}" for i in range(strange_labels)]
    asked, rankings = [], []
    for _ in range(queries):
        asked.append([str(name) for name in rng.choice(names, rng.choice([1, 2, 3, 5, 12, 14]))])
        liking = rng.random(items) + [0.6 * (not set(held).isdisjoint(asked[-1])) for held in gallery]
        ranking = np.argsort(-liking)[: rng.choice([0, 3, 60, 100, 130])]
        rankings.append(np.where(rng.random(len(ranking)) < strange_ids, metrics.NO_ITEM, ranking))
    return rankings, asked, gallery


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("strange_labels", "strange_ids"), [(0, 0.0), (3, 0.0), (0, 0.02), (3, 0.02)])
def test_per_query_equals_plain_loops(seed, several, strange_labels, strange_ids):
    task = random_task(seed, strange_labels=strange_labels, strange_ids=strange_ids, several=several)
    pd.testing.assert_frame_equal(metrics.per_query(*task), loop(*task), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------ reference values


def test_standard_average_precision_equals_scikit_learn():
    rng = np.random.default_rng(0)
    gallery = [f"product {c}" for c in rng.integers(6, size=90)]
    rankings = [rng.permutation(90) for _ in range(20)]
    scores = metrics.per_query(rankings, [["product 1", "product 4"]] * 20, gallery)
    relevant = np.isin(gallery, ["product 1", "product 4"])
    by_place = -np.arange(90)
    expected = [average_precision_score(relevant[ranking], by_place) for ranking in rankings]
    np.testing.assert_allclose(scores["standard"]["mAP@100"], expected, atol=1e-12)


# ------------------------------------------------------------------------------------------- worked by hand


def score_one(ranking, asked, gallery, definition):
    return metrics.per_query([np.array(ranking)], [asked], gallery)[definition].iloc[0]


def test_one_hit_at_rank_1_and_nine_misses():
    gallery = ["a"] * 10 + ["b"] * 10
    ranking = [0, *range(10, 19)]
    assert score_one(ranking, ["a"], gallery, "released")["mAP@10"] == 1.0
    assert score_one(ranking, ["a"], gallery, "standard")["mAP@10"] == pytest.approx(0.1)


def test_figures_of_a_small_ranking():
    gallery = ["a", "a", "b", "c", "c", "c"]
    ranking = [0, 3, 2, 4]  # hit, miss, hit, miss; one "a" is not ranked
    released = score_one(ranking, ["a", "b"], gallery, "released")  # k = min(10, 3 positives, 4 ranked)
    assert released["mAP@10"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert released["Prec@10"] == pytest.approx(2 / 3)
    assert released["mAR@10"] == pytest.approx((1 / 2 + 1 / 1) / 2)
    standard = score_one(ranking, ["a", "b"], gallery, "standard")
    assert standard["mAP@10"] == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert standard["Prec@10"] == pytest.approx(2 / 10)
    assert standard["mAR@10"] == pytest.approx((1 / 2 + 1 / 1) / 2)


def test_expected_counts_differ_where_n_is_no_multiple_of_the_labels():
    gallery = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    asked = ["a", "a", "b"]  # of ten places: released 6 and 3, standard 7 and 3
    six = [*range(6), 20, 21, 22, 40]
    assert score_one(six, asked, gallery, "released")["mAR@10"] == 1.0
    assert score_one(six, asked, gallery, "standard")["mAR@10"] == pytest.approx((6 / 7 + 1) / 2)


def test_more_labels_than_places():
    names = [f"product {i}" for i in range(12)]
    gallery = names * 3
    ranking = np.arange(36)
    assert score_one(ranking, names, gallery, "released")["mAR@10"] == 0.0  # 10 // 12: nothing is expected
    assert score_one(ranking, names, gallery, "released")["mAP@10"] == 1.0
    assert score_one(ranking, names, gallery, "standard")["mAR@10"] == pytest.approx(10 / 12)


def test_a_label_that_the_gallery_lacks():
    gallery = ["a"] * 10 + ["b"] * 10
    asked = ["a", "nowhere"]
    assert (score_one(np.arange(20), asked, gallery, "released") == 0).all()
    standard = score_one(np.arange(20), asked, gallery, "standard")
    assert standard["mAP@10"] == 1.0
    assert standard["mAR@10"] == pytest.approx(0.5)


def test_an_id_that_the_gallery_lacks_costs_the_released_recall_only():
    gallery = ["a"] * 10 + ["b"] * 10
    ranking = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, metrics.NO_ITEM]
    released = score_one(ranking, ["a"], gallery, "released")
    assert released["mAR@10"] == pytest.approx(0.9)
    assert released["mAR@50"] == 0.0
    assert released["Prec@50"] == pytest.approx(0.9)


def test_an_item_of_several_labels_is_a_hit_for_each_and_possible_once():
    gallery = [["gift", "a"], ["a", "gift"], ["b", "gift"], ["gift"], [], ["c", "c"]]
    ranking = [4, 0, 2, 1]  # no label, hit, miss, hit
    for definition, precision in (("standard", (1 / 2 + 2 / 4) / 2), ("released", 1 / 2)):  # released looks at 2 places
        figures = score_one(ranking, ["a"], gallery, definition)
        assert figures["mAP@10"] == pytest.approx(precision) and figures["mAR@10"] == 1.0
    both = score_one(ranking, ["a", "gift"], gallery, "standard")
    assert both["mAP@10"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 4)  # four items, though two have both labels
    assert both["mAR@10"] == pytest.approx((2 / 2 + 3 / 4) / 2)
    assert score_one([5], ["c"], gallery, "standard")["mAP@10"] == 1.0


def test_an_only_label_needs_no_list_and_order_in_a_list_does_not_matter():
    rankings, asked, gallery = random_task(4, strange_labels=1)
    plain = metrics.per_query(rankings, asked, gallery)
    pd.testing.assert_frame_equal(metrics.per_query(rankings, asked, [label for label, in gallery]), plain)
    rankings, asked, gallery = random_task(4, several=True)
    mirrored = [labels[::-1] + labels for labels in gallery]
    pd.testing.assert_frame_equal(metrics.per_query(rankings, asked, mirrored),
                                  metrics.per_query(rankings, asked, gallery))


def test_a_gallery_without_items_or_labels_has_nothing_to_find():
    assert (metrics.per_query([np.zeros(0, int)], [["a"]], []) == 0).all(axis=None)
    assert (metrics.per_query([np.arange(3)], [["a"]], [[], [], []]) == 0).all(axis=None)


def test_a_query_without_labels_counts_as_0():
    assert (metrics.per_query([np.arange(5)], [[]], ["a"] * 5) == 0).all(axis=None)


# ---------------------------------------------------------------------------------------------- properties


def test_a_perfect_ranking_has_1_everywhere_it_can():
    gallery = ["a"] * 60 + ["b"] * 60 + ["c"] * 60
    mixed = np.ravel(np.column_stack([np.arange(60), np.arange(60, 120)]))[:100]
    scores = metrics.per_query([mixed, mixed], [["a", "b"], ["b", "a"]], gallery)
    np.testing.assert_allclose(scores, 1.0)


def test_a_ranking_without_a_hit_has_0_everywhere():
    assert (metrics.per_query([np.arange(5, 10)], [["a"]], ["a"] * 5 + ["b"] * 5) == 0).all(axis=None)


def test_order_of_queries_of_labels_and_of_gallery_does_not_matter():
    rankings, asked, gallery = random_task(7, strange_labels=2, strange_ids=0.01, several=True)
    scores = metrics.per_query(rankings, asked, gallery)
    rng = np.random.default_rng(1)
    queries, items = rng.permutation(len(asked)), rng.permutation(len(gallery))
    place = np.append(np.argsort(items), metrics.NO_ITEM)  # of each gallery row
    again = metrics.per_query(
        [place[rankings[q]] for q in queries], [asked[q][::-1] for q in queries], [gallery[i] for i in items]
    )
    pd.testing.assert_frame_equal(again, scores.iloc[queries].reset_index(drop=True))


def test_moving_a_hit_forward_never_lowers_standard_average_precision():
    gallery = ["a"] * 5 + ["b"] * 95
    rankings = [[*range(5, 5 + misses), 0, *range(5 + misses, 99)] for misses in range(12)]
    values = [score_one(ranking, ["a"], gallery, "standard")["mAP@10"] for ranking in rankings]
    assert values[:10] == sorted(values[:10], reverse=True)
    assert values[9] > values[10] == 0


def test_rankings_and_queries_must_pair_up():
    with pytest.raises(ValueError, match="shorter"):
        metrics.per_query([np.arange(3)] * 2, [["a"]], ["a"] * 3)


# ----------------------------------------------------------------------------------------------- summaries


def test_summary_holds_the_mean_inside_its_interval_and_repeats_itself():
    scores = metrics.per_query(*random_task(3))
    summary = metrics.summarise(scores, resamples=200)
    for definition, figure in scores.columns:
        interval = summary[definition][figure]
        assert interval["value"] == pytest.approx(scores[definition][figure].mean())
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert summary == metrics.summarise(scores, resamples=200)


def test_no_queries_have_no_mean():
    with pytest.raises(ValueError, match="no queries"):
        metrics.summarise(metrics.per_query([], [], ["a"]))


# ---------------------------------------------------------------------------------------- box by box


def test_a_box_is_judged_by_the_ranking_of_the_instance_that_found_it():
    gallery = ["a", "a", "b", "c"]
    rankings = [np.array([0, 2, 1]), np.array([3, 2, 0])]  # of two instances
    found = np.array([0, 1, -1, 1, 0])
    scores = metrics.per_box(rankings, found, ["a", "b", "a", "c", "gone"], gallery)
    assert scores["found"].tolist() == [1, 1, 0, 1, 1]
    assert scores["R@1"].tolist() == [1, 0, 0, 1, 0]
    # a: hits at ranks 1 and 3 of two possible; b: its one photo at rank 2; c: at rank 1
    assert scores["mAP@10"].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2, 0, 1, 0])
